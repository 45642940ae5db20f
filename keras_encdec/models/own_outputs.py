"""Batches whose targets a share of the time are the student's own outputs.

Knows which batches those are, and what of a batch its outputs replace. Leaves drawing to
`keras_encdec.models.drawing`, and what a teacher says of them to
`keras_encdec.training.distillation`.
"""

import functools
from typing import Any

import numpy as np

from keras_encdec.data.batching import Batching, BatchSource
from keras_encdec.data.prompts import Prompts
from keras_encdec.models.drawing import Drawing
from keras_encdec.models.on_policy import OnPolicy, Position
from keras_encdec.objectives.draws import fold, uniform
from keras_encdec.objectives.rows import Batch, Inputs

_OWN = 0x676B64  # keeps these draws apart from those of the rows' order


class OwnOutputs(OnPolicy):
    """Batches to train on; in those on policy, the model has written what its decoder reads.

    Which are on policy follows from the seed, the epoch and the batch's number (algorithm 1 of
    arXiv 2306.13649). Rows that count nothing stay as they are; in the others each token counts
    what the labels that it replaces did on average.

    Args:
        model: a task, compiled with a `Distillation` that has a share `on_policy`.
        order: the batches without outputs of its own.
        batching: how they were made.

    Raises:
        ValueError: if there is no preprocessor, a `class_weight`, or more than one process.
    """

    def __init__(self, model: Any, order: BatchSource, batching: Batching):
        super().__init__(order)
        if batching.labels is not None and batching.labels.class_weight is not None:
            raise ValueError(
                "Expected no class_weight with on_policy: the labels are the model's own outputs. "
                "Received: one. Weigh rows by sample_weight."
            )
        converter = model._required_converter()
        self._share, self._seed = model._distillation.on_policy, converter.seed
        # One for each shape of batches, of which most data has a single one.
        self._drawing = functools.cache(functools.partial(Drawing, model, 1, 1.0))

    def _made(self, position: Position, batch: Batch) -> Batch:
        x, y, weight = batch
        y = y["labels"] if isinstance(y, dict) else y
        rows = np.flatnonzero(weight.any(axis=1))
        if not (self._is_own(position) and len(rows)):
            return x, y, weight
        draw = self._drawing(length=y.shape[1], rows=len(y))
        outputs = draw(_prompts(x, rows), rows.tolist(), (self._seed, *position))
        read, written, there = (part[:, 0] for part in outputs[:3])
        counts = weight[rows].sum(axis=1) / np.count_nonzero(weight[rows], axis=1)
        decoder = {"decoder_token_ids": read, "decoder_padding_mask": there}
        x = x | {name: _replaced(x[name], rows, part) for name, part in decoder.items()}
        weight = _replaced(weight, rows, counts[:, None] * there)
        return x, _replaced(y, rows, written), weight

    def _is_own(self, position: Position) -> bool:
        epoch, number = position
        return uniform(fold(fold(fold(self._seed, _OWN), epoch), number)) < self._share


def _prompts(x: Inputs, rows: np.ndarray) -> Prompts:
    """What is written to: some rows' encoder inputs, and the first token that a decoder reads.

    Raises:
        ValueError: if examples share a row.
    """
    found = {name: array[rows] for name, array in x.items()}
    mask = found["decoder_padding_mask"]
    if mask.max() > 1:
        raise ValueError(
            "Expected one example a row with on_policy, as outputs replace whole rows. Received: "
            f"{int(mask.max())} in one. Fit data that is not packed."
        )
    first = np.argmax(mask > 0, axis=1)[:, None]
    start = np.take_along_axis(found["decoder_token_ids"], first, axis=1)
    found |= {"decoder_token_ids": start, "decoder_padding_mask": np.ones_like(start)}
    return Prompts.of_arrays(found)


def _replaced(array: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`array` with other values in some rows."""
    array = array.copy()
    array[rows] = values
    return array
