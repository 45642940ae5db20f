"""The few sizes that arrays have in generation, so that few programs are compiled.

Knows how lengths and batches are rounded up. That padding changes no result is the
masks' business.
"""

SMALLEST_LENGTH = 32
_ROWS_APART = 8


def length(needed: int, largest: int | None = None) -> int:
    """The next power of two from 32 on, at most `largest`, where that is enough."""
    size = max(SMALLEST_LENGTH, 1 << (needed - 1).bit_length())
    return max(needed, min(size, largest)) if largest else size


def rows(needed: int, replicas: int = 1) -> int:
    """1, 2, 4, then multiples of 8, each a multiple of the data replicas."""
    size = 1 << (needed - 1).bit_length()
    if needed > _ROWS_APART:
        size = -(-needed // _ROWS_APART) * _ROWS_APART
    return -(-size // replicas) * replicas
