"""What generation keeps for each token, beside the memory there is.

So that a length that no machine holds is refused, rather than never returned from.
"""

import os
from typing import Any

import keras
import numpy as np

from keras_encdec.spec import StackSpec


def require_room(decoder: StackSpec, rows: int, length: int, dtype: str) -> None:
    """Asks whether the keys and values of all rows fit.

    Args:
        decoder: its spec.
        rows: of the decode loop.
        length: tokens of each.
        dtype: that it computes in.

    Raises:
        MemoryError: if there is less memory.
    """
    attention = decoder.attention
    each = 2 * attention.num_kv_heads * attention.head_dim * decoder.num_layers
    needed, there = rows * length * each * np.dtype(dtype).itemsize, available()
    if there is not None and needed > there:
        raise MemoryError(
            f"Expected room for the keys and values of {rows} rows of {length:,} tokens, "
            f"{needed / 1e9:,.1f} GB. Received: {there / 1e9:,.1f} GB of memory. Lower "
            "max_length, batch_size or num_samples."
        )


def available() -> int | None:
    """Bytes that are free where the model computes, on all its devices; None if unknown."""
    if keras.backend.backend() == "jax":
        import jax

        stats: list[Any] = [device.memory_stats() for device in jax.local_devices()]
        if all(stats):
            return sum(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
    if keras.backend.backend() != "jax" and _has_accelerator():
        return None
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return None


def _has_accelerator() -> bool:
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
