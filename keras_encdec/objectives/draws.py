"""Seeds to numbers: the same on every machine and with every version of NumPy.

NumPy promises that for no generator's shuffles, so the few draws that objectives
need are made here, from SplitMix64 (https://doi.org/10.1145/2714064.2660195). Its
outputs within one stream are all different, which `composition` makes use of.
"""

from typing import Any

import numpy as np

_ALL = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def fold(seed: Any, index: Any) -> Any:
    """A seed of its own for number `index` under `seed`: 64 bits.

    Args:
        seed: int, or array of uint64.
        index: int, or array of uint64 for as many seeds.
    """
    return _mix((_mix(_word(seed)) + (_word(index) + 1) * _STEP) & _ALL)


def uniform(seed: Any) -> Any:
    """A float in [0, 1) from an int, or as many from an array of uint64."""
    return (_mix(_word(seed)) >> 11) * 2.0**-53


def between(seed: int, low: int, high: int) -> int:
    """An integer from `low` to `high`, both included."""
    return low + _mix(_word(seed)) % (high - low + 1)


def bits(seed: int, count: int) -> np.ndarray:
    """`count` different uint64."""
    steps = np.arange(1, count + 1, dtype="uint64")
    steps *= _STEP
    steps += _mix(_word(seed))
    return _mix(steps)


def composition(keys: np.ndarray, parts: int) -> np.ndarray:
    """Cuts `len(keys) + 1` items into `parts` segments, each way equally likely.

    Args:
        keys: different random numbers, one per place between two items.
        parts: number of segments, from 1 to the number of items; none is empty.

    Returns:
        (parts,) int: where each segment ends.
    """
    if parts == 1:
        return np.array([len(keys) + 1])
    last = np.partition(keys, parts - 2)[parts - 2]
    ends = np.empty(parts, "int64")
    ends[:-1] = np.flatnonzero(keys <= last)
    ends[:-1] += 1
    ends[-1] = len(keys) + 1
    return ends


def _word(seed: Any) -> Any:
    """An integer of any type and sign as 64 bits; arrays hold such already."""
    return seed if isinstance(seed, np.ndarray) else int(seed) & _ALL


def _mix(z: Any) -> Any:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _ALL
    return z ^ (z >> 31)
