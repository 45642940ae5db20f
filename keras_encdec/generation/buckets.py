"""The few sizes that arrays have in generation, so that few programs are compiled.

Knows how lengths and batches are rounded up. That padding changes no result is the
masks' business.
"""

# Decoder tokens are paid for one by one; encoder tokens, read at once, cost little below 128.
SMALLEST_TARGET, SMALLEST_SOURCE = 32, 128
_ROWS_APART = 8


def length(needed: int, largest: int | None = None, smallest: int = SMALLEST_TARGET) -> int:
    """The next power of two from `smallest` on, at most `largest`, where that is enough."""
    size = max(smallest, 1 << (needed - 1).bit_length())
    return max(needed, min(size, largest)) if largest else size


def closer(needed: int, smallest: int = SMALLEST_TARGET) -> int:
    """As `length`, for what is read in one go and often: 32, 48, 64, 96, 128, 192, ..."""
    size = length(needed, smallest=smallest)
    between = size * 3 // 4
    return between if size > smallest and needed <= between else size


def rows(needed: int, replicas: int = 1) -> int:
    """1, 2, 4, then multiples of 8, each a multiple of the data replicas."""
    size = 1 << (needed - 1).bit_length()
    if needed > _ROWS_APART:
        size = -(-needed // _ROWS_APART) * _ROWS_APART
    return -(-size // replicas) * replicas
