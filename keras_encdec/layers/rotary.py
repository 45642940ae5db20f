"""Rotary positions. Knows the rotation; leaves which positions to its callers."""

from keras import ops


def rotate(x, positions, base):
    """Rotates the two halves of each head by an angle that grows with position.

    Args:
        x: (B, T, N, H).
        positions: (B, T) int.
        base: wavelength base; pair j turns by position / base^(2j / H).

    Returns:
        (B, T, N, H) in the dtype of `x`; computed in float32.
        Source: arXiv 2104.09864 with half-split pairs, as gemma/gm/math has it.
    """
    half = x.shape[-1] // 2
    exponent = ops.arange(half, dtype="float32") / half
    angle = ops.cast(positions, "float32")[..., None, None] / ops.power(base, exponent)
    sin, cos = ops.sin(angle), ops.cos(angle)
    first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)
    rotated = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.cast(rotated, x.dtype)
