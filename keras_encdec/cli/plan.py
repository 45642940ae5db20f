"""`keras-encdec plan`: what a conversion will do and the memory it needs, from configs alone."""

from collections.abc import Sequence

import keras
from rich.console import Console

from keras_encdec.sharing.load import plan
from keras_encdec.spec import count_parameters


def show_plan(encoder: str, decoder: str | None, dtype: str, decoder_layers: str | None) -> None:
    """Prints the plan of a pair, and its weights' and a training step's memory.

    Args:
        encoder: name of a recipe, or of a decoder-only model.
        decoder: name of a decoder-only model, or None.
        dtype: dtype of the weights.
        decoder_layers: a number, numbers with commas, or `start:stop:step`; or None.

    Raises:
        ValueError: if there are no such models or layers.
    """
    size = keras.backend.standardize_dtype(dtype)
    size_bytes = {"float32": 4, "bfloat16": 2, "float16": 2}.get(size)
    if size_bytes is None:
        raise ValueError(f"Expected dtype float32, bfloat16 or float16. Received: {dtype!r}.")
    result = plan(encoder, decoder, decoder_layers=_layers(decoder_layers))
    console = Console()
    console.print(str(result), soft_wrap=True)
    weights = count_parameters({s.target: s.shape for s in result.steps}) * size_bytes
    console.print(f"weights in {dtype}: {_readable(weights)}")
    console.print(f"with gradients and Adam's two moments: {_readable(4 * weights)}")


def _layers(text: str | None) -> int | Sequence[int] | None:
    if text is None:
        return None
    try:
        if ":" in text:
            return range(*map(int, text.split(":")))
        return [int(part) for part in text.split(",")] if "," in text else int(text)
    except (ValueError, TypeError):
        raise ValueError(
            f"Expected --decoder-layers such as 13, 0,2,4 or 0:26:2. Received: {text!r}."
        ) from None


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
