"""Rotary positions. Knows the rotation; leaves which positions to its callers."""

import functools
import math

import numpy as np
from keras import ops

from keras_encdec.spec import RotarySpec, Tensor


def rotate(x: Tensor, positions: Tensor, spec: RotarySpec) -> Tensor:
    """Rotates the two halves of each head by an angle that grows with position.

    Args:
        x: (B, T, N, H).
        positions: (B, T) int.
        spec: `RotarySpec`.

    Returns:
        (B, T, N, H) in the dtype of `x`; computed in float32.
        Source: arXiv 2104.09864 with half-split pairs, as gemma/gm/math has it.
    """
    timescale = ops.convert_to_tensor(timescales(spec, x.shape[-1]), "float32")
    angle = ops.cast(positions, "float32")[..., None, None] / timescale
    sin, cos = ops.sin(angle), ops.cos(angle)
    first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)
    rotated = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.cast(rotated, x.dtype)


@functools.cache  # eager backends ask at every token
def timescales(spec: RotarySpec, head_dim: int) -> np.ndarray:
    """(H / 2,): pair j turns by position / timescale."""
    half = head_dim // 2
    scale = spec.base ** (np.arange(half) / half)
    low, high = spec.low_frequency_factor, spec.high_frequency_factor
    if low is None or high is None or spec.original_length is None:
        return scale * spec.factor
    turns = spec.original_length / (2 * math.pi * scale)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept / scale + (1 - kept) / (scale * spec.factor))
