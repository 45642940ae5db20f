"""Where documents are cut into windows, and with which seeds.

Knows lengths only, so that the n-th example of a corpus can be found without
reading the ones before it.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_encdec.objectives.draws import fold
from keras_encdec.objectives.objective import Example, Objective


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of a token stream, in its order.

    Args:
        starts: (n,) int64, where each begins in the stream.
        lengths: (n,) int64, its tokens, at least 2.
        seeds: (n,) uint64, the seed its example is made with.
        dropped: tokens in no window: single ones left over.
    """

    starts: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    dropped: int

    def __len__(self) -> int:
        return len(self.starts)

    def example(self, index: int, tokens: Any, objective: Objective) -> tuple[np.ndarray, Example]:
        """Window `index` of the stream `tokens`, and the example made of it."""
        start = int(self.starts[index])
        window = tokens[start : start + int(self.lengths[index])]
        return window, objective(window, int(self.seeds[index]))


def cut(
    document_lengths: np.ndarray,
    objective: Objective,
    inputs_length: int,
    targets_length: int,
    seed: int,
    cross_documents: bool = False,
    first: int = 0,
) -> Windows:
    """Cuts documents into consecutive windows, each as long as its seed asks for.

    Args:
        document_lengths: (d,) tokens of each document, end tokens included.
        objective: says how many tokens an example takes.
        inputs_length: S, room for an encoder input.
        targets_length: T, room for a target and its end token.
        seed: window k of document j is made with `fold(fold(seed, j), k)`, so that a
            document's examples do not depend on what stands beside it.
        cross_documents: whether a window may go on into the next document. If not,
            the last window of each document is as long as what is left.
        first: the number of the first document.
    """
    sizes = np.asarray(document_lengths, "int64")
    if cross_documents:
        sizes = sizes.sum(keepdims=True)
    document, seeds, raw = _enough(sizes, objective, inputs_length, targets_length, seed, first)
    ends = np.cumsum(raw)  # of all windows laid back to back
    opening = np.searchsorted(document, np.arange(len(sizes)))
    start = ends - raw - (ends - raw)[opening[document]]
    length = np.minimum(raw, sizes[document] - start)
    keep = length >= 2
    start += (np.cumsum(sizes) - sizes)[document]
    return Windows(start[keep], length[keep], seeds[keep], int(np.sum(length == 1)))


def _enough(
    sizes: np.ndarray,
    objective: Objective,
    inputs_length: int,
    targets_length: int,
    seed: int,
    first: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For at least as many windows as there can be: document, seed, and the length it draws."""
    shortest = np.iinfo("int64").max
    while True:
        counts = -(-sizes // shortest)
        document = np.repeat(np.arange(len(sizes)), counts)
        within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        seeds = fold(fold(seed, (document + first).astype("uint64")), within.astype("uint64"))
        raw = objective.raw_lengths(inputs_length, targets_length, seeds)
        if not len(raw) or raw.min() >= shortest:
            return document, seeds, raw
        shortest = raw.min()
