"""Weights that lie in MXFP4, read as the numbers that they are: four bits each, and a scale for 32.

Knows the format (OCP Microscaling Formats, version 1.0) and how transformers lays it into files.
A number of four bits times a power of two is exact in bfloat16; beyond its range it is infinite,
which conversions refuse.
Source: transformers 5.23, `convert_moe_packed_tensors` of integrations/mxfp4.py.
"""

from typing import Protocol

import ml_dtypes
import numpy as np

from keras_encdec.spec import Shape

Part = tuple[slice, ...]

_BLOCKS, _SCALES = "_blocks", "_scales"
_POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "float32")
_VALUES = np.concatenate([_POSITIVE, -_POSITIVE])
_OF_BYTE = np.stack([_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], axis=-1)


class Stored(Protocol):
    """Tensors by name, as of `keras_encdec.conversion.sources.SafetensorsSource`."""

    def tensors(self) -> dict[str, tuple[Shape, str]]: ...

    def read(self, name: str, part: Part | None = None) -> np.ndarray: ...

    def release(self, name: str) -> None: ...


class Mxfp4Source:
    """What lies in a source, each pair of `NAME_blocks` and `NAME_scales` as NAME in bfloat16.

    Blocks (E, R, C / 32, 16) of bytes, with scales (E, R, C / 32), are a tensor (E, C, R).

    Args:
        source: where they lie.
    """

    def __init__(self, source: Stored) -> None:
        self._source = source
        self._headers = source.tensors()
        names = [name.removesuffix(_BLOCKS) for name in self._headers if name.endswith(_BLOCKS)]
        self._packed = {name: shape for name in names if (shape := self._shape(name)) is not None}

    def _shape(self, name: str) -> Shape | None:
        """Of a tensor in blocks; None where there are none that fit each other."""
        blocks, scales = (self._headers.get(name + end, ((), "")) for end in (_BLOCKS, _SCALES))
        fits = blocks[1] == scales[1] == "U8" and len(blocks[0]) == 4 and blocks[0][3] == 16
        if not fits or blocks[0][:3] != scales[0]:
            return None
        experts, rows, groups, _ = blocks[0]
        return experts, 32 * groups, rows

    def tensors(self) -> dict[str, tuple[Shape, str]]:
        parts = {name + end for name in self._packed for end in (_BLOCKS, _SCALES)}
        others = {name: header for name, header in self._headers.items() if name not in parts}
        return others | {name: (shape, "bfloat16") for name, shape in self._packed.items()}

    def read(self, name: str, part: Part | None = None) -> np.ndarray:
        if name not in self._packed:
            return self._source.read(name, part)
        experts, columns, rows = part or (slice(None),) * 3
        blocks, scales = (
            self._source.read(name + end, (experts, rows)) for end in (_BLOCKS, _SCALES)
        )
        return dequantized(blocks, scales).swapaxes(1, 2)[:, columns]

    def release(self, name: str) -> None:
        ends = (_BLOCKS, _SCALES) if name in self._packed else ("",)
        for end in ends:
            self._source.release(name + end)


def dequantized(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks (E, R, C / 32, 16) and scales (E, R, C / 32), uint8, as (E, R, C) in bfloat16.

    The lower half of a byte is the first of its two numbers; a scale s says 2^(s - 127).
    """
    experts, rows, groups, size = blocks.shape
    values = np.empty((experts, rows, 2 * groups * size), ml_dtypes.bfloat16)
    for value, block, scale in zip(values, blocks, scales, strict=True):  # memory of one at a time
        power = np.ldexp(np.float32(1), scale.astype("int32") - 127)
        value[:] = (_OF_BYTE[block] * power[..., None, None]).reshape(rows, -1)
    return values
