"""What generation keeps for each token, beside the memory there is.

So that a length that no machine holds is refused, rather than never returned from.
"""

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_encdec.spec import StackSpec

_MACHINE, _GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# Limit, use, and what a limit makes room for by itself: of version 2, and of version 1.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


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
    own = [a for i, a in enumerate(decoder.attentions) if decoder.lender_of(i) is None]
    each = sum(2 * attention.num_kv_heads * attention.head_dim for attention in own)
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
    return min((n for n in (_of_the_machine(), _of_the_container()) if n is not None), default=None)


def _of_the_machine() -> int | None:
    """What a program can still have, the page cache included; known on Linux."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = dict(line.split(":", 1) for line in _MACHINE.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return None


def _of_the_container() -> int | None:
    """What is left of the limit of a container; None where there is none."""
    for limit, used, stat in _LIMITS:
        with contextlib.suppress(OSError, KeyError, ValueError):  # no such file, or "max"
            left = int((_GROUPS / limit).read_text()) - int((_GROUPS / used).read_text())
            cached = dict(line.split() for line in (_GROUPS / stat).read_text().splitlines())
            return left + int(cached["inactive_file"])
    return None


def _has_accelerator() -> bool:
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
