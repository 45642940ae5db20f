"""Text on its way to tokens: what counts as text, and how it is checked."""

import numpy as np


def is_text(x) -> bool:
    """Whether `x` is raw text: a string, a list or array of strings, a tf.data of them."""
    if isinstance(x, (str, bytes)):
        return True
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "US" or (x.dtype == object and x.size > 0 and is_text(x.flat[0]))
    if isinstance(x, (list, tuple)):
        return len(x) > 0 and is_text(x[0])
    spec = getattr(x, "element_spec", None)
    return getattr(spec, "dtype", None) == "string" or getattr(x, "dtype", None) == "string"


def strings(x, what: str, may_be_empty: bool = False) -> list[str]:
    """`x` as a list of Python strings.

    Args:
        x: a string or a batch of them: list, tuple, array or eager string tensor.
        what: the name to use in errors.
        may_be_empty: accept empty strings.

    Raises:
        ValueError: if there is nothing, or something empty or not text.
    """
    if hasattr(x, "numpy"):
        x = x.numpy()
    if isinstance(x, np.ndarray):
        x = x.tolist()
    batch = list(x) if isinstance(x, (list, tuple)) else [x]
    if not batch:
        raise ValueError(f"Expected at least one string for {what}. Received: an empty batch.")
    return [_string(item, what, may_be_empty) for item in batch]


def is_single(x) -> bool:
    """Whether `x` is one string rather than a batch."""
    shape = getattr(x, "shape", None)
    return isinstance(x, (str, bytes)) or (shape is not None and len(shape) == 0)


def _string(x, what: str, may_be_empty: bool) -> str:
    if isinstance(x, bytes):
        x = x.decode("utf-8")
    if not isinstance(x, str):
        raise ValueError(
            f"Expected text (str) for {what}. Received: {x!r} of type {type(x).__name__}. "
            "Convert it to a string first."
        )
    if not x.strip() and not may_be_empty:
        raise ValueError(
            f"Expected text for {what}. Received: {x!r}, which is empty. Leave such rows out."
        )
    return x
