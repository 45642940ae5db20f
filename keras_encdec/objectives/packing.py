"""Which examples share a row, so that little of it is padding.

Knows lengths only. Leaves segment numbers to the preprocessor, and what a segment
sees to `keras_encdec.layers.masks`.
"""

from collections.abc import Iterator, Sequence

import numpy as np

# Examples looked at together: enough to find a fit, few enough to stay in their order.
GROUP = 2048


def pack(lengths: np.ndarray, room: Sequence[int]) -> Iterator[list[int]]:
    """Groups examples into rows, each side of which has its own room.

    A row takes, as long as one of its group fits, the example that comes nearest to
    what is free on both sides: the norm-based greedy rule of "Heuristics for Vector
    Bin Packing" (Panigrahy, Talwar, Uyeda and Wieder, 2011).

    Args:
        lengths: (n, sides) tokens of each example on each side.
        room: (sides,) tokens of a row.

    Yields:
        The indices of a row's examples.

    Raises:
        ValueError: if an example is larger than a row.
    """
    share = np.asarray(lengths, "float64") / np.asarray(room)
    if share.size and share.max() > 1:
        index = int(share.max(axis=1).argmax())
        raise ValueError(
            f"Expected examples that fit a row of {tuple(room)} tokens. "
            f"Received: example {index} of {tuple(np.asarray(lengths)[index].tolist())}."
        )
    for start in range(0, len(share), GROUP):
        for row in _rows(share[start : start + GROUP]):
            yield [start + i for i in row]


def _rows(share: np.ndarray) -> Iterator[list[int]]:
    """Rows of one group; `share` holds the part of a row that each example takes."""
    left = np.arange(len(share))
    while len(left):
        row, free, fitting = [], np.ones(share.shape[1]), left
        while len(fitting):
            best = fitting[np.argmin(((free - share[fitting]) ** 2).sum(axis=1))]
            row.append(int(best))
            free = free - share[best]
            fitting = fitting[fitting != best]
            fitting = fitting[np.all(share[fitting] <= free + 1e-9, axis=1)]
        yield row
        left = left[~np.isin(left, row)]
