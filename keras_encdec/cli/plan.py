"""`keras-encdec plan`: the plan of a recipe and the memory it needs, from specs alone."""

import keras
from rich.console import Console

from keras_encdec.sharing.load import plan
from keras_encdec.spec import count_parameters


def show_plan(pair: str, dtype: str) -> None:
    """Prints the plan of `pair`, and its weights' and a training step's memory.

    Args:
        pair: name of a recipe.
        dtype: dtype of the weights.

    Raises:
        ValueError: if there is no such recipe.
    """
    size = keras.backend.standardize_dtype(dtype)
    size_bytes = {"float32": 4, "bfloat16": 2, "float16": 2}.get(size)
    if size_bytes is None:
        raise ValueError(f"Expected dtype float32, bfloat16 or float16. Received: {dtype!r}.")
    result = plan(pair)
    console = Console()
    console.print(str(result), soft_wrap=True)
    weights = count_parameters({s.target: s.shape for s in result.steps}) * size_bytes
    console.print(f"weights in {dtype}: {_readable(weights)}")
    console.print(f"with gradients and Adam's two moments: {_readable(4 * weights)}")


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
