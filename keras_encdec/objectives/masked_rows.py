"""Examples to rows that an encoder alone reads, whose hidden tokens it predicts.

Leaves which tokens are hidden to `keras_encdec.objectives.mntp`. NumPy only.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.objectives.objective import Example
from keras_encdec.objectives.rows import Batch, Rows


class MaskedRows(Rows):
    """Rows of S tokens, of which T at most are hidden."""

    def room(self, example: Example) -> tuple[int, int]:
        return len(example.inputs), len(example.targets)

    def batch(self, rows: Sequence[Sequence[Example]], size: int = 0) -> Batch:
        """Lays each row's examples side by side.

        Args:
            rows: the examples of each row.
            size: empty rows, which count nothing, are added up to this many.

        Returns:
            `x` with `token_ids` and `padding_mask` (B, S), which is 1 for a row's first example, 2
            for its second, and `mask_positions` (B, T), all int32; `y` (B, T), the tokens that
            were hidden there; and `sample_weight` (B, T), 0 where there is none.
        """
        rows = [*rows, *([()] * (size - len(rows)))]
        ids, mask = self._fill(
            [[e.inputs for e in row] for row in rows], self.source, self.source_pad
        )
        positions, _ = self._fill([_places(row) for row in rows], self.target, 0)
        hidden = [[example.targets for example in row] for row in rows]
        y, _ = self._fill(hidden, self.target, self.target_pad)
        x = {"token_ids": ids, "padding_mask": mask, "mask_positions": positions}
        return x, y, self._weights(rows, hidden)


def _places(row: Sequence[Example]) -> list[np.ndarray]:
    """Where in a row the hidden tokens of its examples stand."""
    sizes = [len(example.inputs) for example in row]
    starts = np.cumsum([0, *sizes])
    places = [example.places for example in row]
    return [start + some for start, some in zip(starts, places, strict=False) if some is not None]


class MaskedConverter(FeatureConverter):
    """Makes rows of texts for an encoder alone, by `MNTP`."""

    def of_pairs(self, *args: Any, **kwargs: Any) -> list[Example]:
        """Refuses pairs, of which an encoder alone makes nothing."""
        raise ValueError("Expected plain texts for MNTP. Received: pairs.")

    @functools.cached_property
    def rows(self) -> MaskedRows:
        rows = super().rows
        return MaskedRows(**dataclasses.asdict(rows))
