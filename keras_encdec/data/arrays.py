"""Arrays of any framework, and lists, as NumPy's; weights of rows.

Leaves what is in them to `keras_encdec.data.recognize`.
"""

from typing import Any

import numpy as np


def array_of(x: Any) -> Any:
    """An array or tensor of any framework, or a list of numbers, as a NumPy array."""
    if x is None or isinstance(x, np.ndarray):
        return x
    if hasattr(x, "detach"):
        x = x.detach().cpu()
    if hasattr(x, "numpy") and not hasattr(x, "to_numpy"):
        return np.asarray(x.numpy())
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"Expected rows of one length. Received: {short(x)}. Pad them first."
        ) from error


def weights_of(weight: Any, count: int) -> np.ndarray | None:
    """One weight, or several, for each of `count` rows."""
    if weight is None:
        return None
    if not isinstance(weight, np.ndarray) and _is_ragged(weight):
        weight = _padded([np.asarray(row, "float32") for row in weight])
    array = np.asarray(array_of(weight))
    numbers = array.dtype.kind in "biuf"
    array = array.astype("float32") if numbers else np.full(0, np.nan, "float32")
    array = array[None] if not array.ndim else array
    if len(array) != count or array.ndim > 2 or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(
            f"Expected a sample_weight, finite and 0 or more, for each of {count} rows. Received: "
            f"shape {array.shape}."
        )
    return array


def _is_ragged(rows: Any) -> bool:
    return isinstance(rows, (list, tuple)) and len({np.size(row) for row in rows}) > 1


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    length = max(row.size for row in rows)
    return np.stack([np.pad(row, (0, length - row.size)) for row in rows])


def short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 80 else text[:77] + "..."
