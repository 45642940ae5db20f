"""Rotary positions. Knows the rotation and its speeds; leaves which positions to its callers."""

import functools
import math
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_encdec.spec import RotarySpec, Tensor


class InTexts(NamedTuple):
    """Positions, where the speed of rotation depends on a text's length.

    Args:
        positions: (B, T) int.
        lengths: (B, T) int, tokens of the text that each one is in.
    """

    positions: Tensor
    lengths: Tensor


Positions = Tensor | InTexts  # as tensors alone, of texts of `original_length` at most


def rotate(x: Tensor, positions: Positions, spec: RotarySpec) -> Tensor:
    """Rotates the two halves of what turns of each head by an angle that grows with position.

    Args:
        x: (B, T, N, H).
        positions: (B, T) int, or `InTexts`.
        spec: `RotarySpec`.

    Returns:
        (B, T, N, H) in the dtype of `x`; computed in float32.
        Source: arXiv 2104.09864 with half-split pairs, as gemma/gm/math has it.
    """
    width = spec.turned(x.shape[-1])
    lengths = None
    if isinstance(positions, InTexts):
        positions, lengths = positions
    timescale = ops.convert_to_tensor(timescales(spec, width), "float32")
    if lengths is not None and spec.original_length is not None:
        long = ops.convert_to_tensor(timescales(spec, width, long=True), "float32")
        timescale = ops.where((lengths > spec.original_length)[..., None, None], long, timescale)
    angle = ops.cast(positions, "float32")[..., None, None] / timescale
    sin, cos = (spec.attention_factor * part for part in (ops.sin(angle), ops.cos(angle)))
    first, second = ops.split(ops.cast(x[..., :width], "float32"), 2, axis=-1)
    rotated = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    rotated = ops.cast(rotated, x.dtype)
    return rotated if width == x.shape[-1] else ops.concatenate([rotated, x[..., width:]], axis=-1)


@functools.cache  # eager backends ask at every token
def timescales(spec: RotarySpec, width: int, long: bool = False) -> np.ndarray:
    """(H / 2,): pair j of the H that turn, by position / timescale.

    Args:
        spec: `RotarySpec`.
        width: H.
        long: of a text of more than `original_length` tokens.
    """
    half = width // 2
    scale = spec.base ** (np.arange(half) / half)
    scale[spec.turning_pairs(width) :] = np.inf  # pairs that stand still
    if spec.short_factors is not None and spec.long_factors is not None:
        return scale * spec.factor * (spec.long_factors if long else spec.short_factors)
    low, high = spec.low_frequency_factor, spec.high_frequency_factor
    if low is None or high is None or spec.original_length is None:
        return scale * spec.factor
    if spec.yarn:
        kept = _kept_by_yarn(spec, width, (high, low), spec.original_length)
    else:
        turns = spec.original_length / (2 * math.pi * scale)
        kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept / scale + (1 - kept) / (scale * spec.factor))


def _kept_by_yarn(
    spec: RotarySpec, width: int, ends: tuple[float, float], length: int
) -> np.ndarray:
    """(H / 2,): 1 for a pair that stays as it is, 0 for a slow one.

    As `_compute_yarn_parameters` of transformers has it, which bounds the last of the pairs
    between by H - 1, though there are H / 2 pairs.

    Args:
        spec: `RotarySpec`.
        width: H.
        ends: how often the first and the last of the pairs between turn in `length`.
        length: tokens of a text in pretraining.
    """
    log = math.log(spec.base)
    first, last = (width * math.log(length / (2 * math.pi * n)) / (2 * log) for n in ends)
    if spec.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 * (first == last)
    return 1 - np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)
