"""Which targets are scored together: each distinct input is read once for all of its targets.

Knows order and batches. Leaves programs to `keras_encdec.generation.engine`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_encdec.data.images import Seen
from keras_encdec.generation.engine import Engine
from keras_encdec.objectives.images import IMAGES
from keras_encdec.objectives.rows import Inputs


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
    sizes = (weights > 0).sum(axis=1)

    def targets(source: Any, place: dict[int, int], rows: list[int]) -> Iterator[dict[int, Any]]:
        rows = sorted(rows, key=lambda row: -sizes[row])
        for some, count in _batches(rows, batch_size):
            places = [place[number[row]] for row in some]
            given: Any = [source, places, *(a[some] for a in decoder)]
            found = engine.score(*given, rows=count, temperature=temperature)
            counted = weights[some] > 0
            yield {row: tuple(part[i][counted[i]] for part in found) for i, row in enumerate(some)}

    def write(rows: list[int]) -> Iterator[dict[int, Any]]:
        asked: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            asked[number[row]].append(row)
        for some, count in _batches(list(asked), batch_size):
            rows = [first[i] for i in some]
            images = seen.some(rows).get(IMAGES) if seen else None
            source = engine.states(*(a[rows] for a in sides), rows=count, images=images)
            place = {i: at for at, i in enumerate(some)}
            yield from targets(source, place, [row for i in some for row in asked[i]])

    return write


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


def _batches(numbers: Sequence[int], size: int) -> Iterator[tuple[list[int], int]]:
    """So many at a time; the last are padded to as many, so that no program is made for them."""
    count = size if len(numbers) > size else 0
    for at in range(0, len(numbers), size):
        yield list(numbers[at : at + size]), count
