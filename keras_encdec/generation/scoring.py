"""Which targets are scored together: each distinct input is read once for all of its targets.

Its keys and values, too, are made once for as many of them as stand in a batch: of a long input
and short targets that is most of the work. Knows order and batches. Leaves programs to
`keras_encdec.generation.engine`.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from keras_encdec.data.images import Seen
from keras_encdec.generation import buckets
from keras_encdec.generation.engine import Engine
from keras_encdec.objectives.images import IMAGES
from keras_encdec.objectives.rows import Inputs

_T = TypeVar("_T")


def in_groups(
    engine: Engine,
    x: Inputs,
    labels: np.ndarray,
    weights: np.ndarray,
    batch_size: int,
    temperature: float = 1.0,
    seen: Seen | None = None,
) -> Callable[[list[int]], Iterator[dict[int, Any]]]:
    """For `jobs.run`: numbers of rows to the log-probabilities of their labels.

    Of each row `(log_probs, likeliest)`, one for each label that counts; see `log_likelihoods`.

    Args:
        engine: `Engine`.
        x: the four model inputs, (B, S) and (B, T).
        labels: (B, T) int.
        weights: (B, T), 0 where there is no label.
        batch_size: inputs, and targets, at a time.
        temperature: that logits are divided by.
        seen: images of the rows, where there are some.
    """
    sides = x["encoder_token_ids"], x["encoder_padding_mask"]
    decoder = x["decoder_token_ids"], x["decoder_padding_mask"], labels, weights
    first, number = _distinct(*sides, seen)
    counted = weights > 0
    sizes = counted.sum(axis=1)

    def write(rows: list[int]) -> Iterator[dict[int, Any]]:
        asked: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            asked[number[row]].append(row)
        for some, count in _batches(list(asked), batch_size):
            firsts = [first[i] for i in some]
            images = seen.some(firsts).get(IMAGES) if seen else None
            source = engine.states(*(a[firsts] for a in sides), rows=count, images=images)
            place = {i: at for at, i in enumerate(some)}
            each = {i: sorted(asked[i], key=lambda row: -sizes[row]) for i in some}
            for batch in _together(each, sizes, batch_size):
                places = [place[i] for i in batch.inputs]
                given: Any = [source, places, *batch.of(decoder)]
                found = engine.score(*given, inputs=batch.count, temperature=temperature)
                yield {
                    row: tuple(part[at][counted[row]] for part in found)
                    for at, row in batch.rows.items()
                }

    return write


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Targets that are scored at once, as many for each input.

    Args:
        inputs: B of them, by number.
        each: n, targets of an input; with those that are missing.
        rows: the place among the B * n to the row of each target.
        count: inputs to pad to.
    """

    inputs: list[int]
    each: int
    rows: dict[int, int]
    count: int

    def of(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of arrays (N, T) these targets, (B * n, T); 0 where one is missing."""
        shape = len(self.inputs) * self.each
        found = []
        for array in arrays:
            some = np.zeros((shape, *array.shape[1:]), array.dtype)
            some[list(self.rows)] = array[list(self.rows.values())]
            found.append(some)
        return found


def _together(asked: dict[int, list[int]], sizes: np.ndarray, batch_size: int) -> Iterator[_Batch]:
    """Batches of about so many targets: inputs that have about as many of them, long ones first."""
    alike: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for number, rows in asked.items():
        for at in range(0, len(rows), batch_size):
            part = rows[at : at + batch_size]
            alike[buckets.rows(len(part))].append((number, part))
    for each, parts in alike.items():
        parts.sort(key=lambda part: -sizes[part[1][0]])
        for some, count in _batches(parts, max(1, batch_size // each)):
            places = {
                at * each + k: row for at, (_, own) in enumerate(some) for k, row in enumerate(own)
            }
            yield _Batch([number for number, _ in some], each, places, count)


def _distinct(
    token_ids: np.ndarray, mask: np.ndarray, seen: Seen | None
) -> tuple[list[int], list[int]]:
    """Of inputs (B, S), the first row of each distinct one, and for each row which one it is."""
    known: dict[Any, int] = {}
    first: list[int] = []
    number = []
    for row, ids in enumerate(np.where(mask > 0, token_ids, -1)):
        images = seen.digests(row) if seen else []
        found = known.setdefault((ids.tobytes(), *images), len(first))
        if found == len(first):
            first.append(row)
        number.append(found)
    return first, number


def _batches(items: Sequence[_T], size: int) -> Iterator[tuple[list[_T], int]]:
    """So many at a time; the last are padded to as many, so that no program is made for them."""
    count = size if len(items) > size else 0
    for at in range(0, len(items), size):
        yield list(items[at : at + size]), count
