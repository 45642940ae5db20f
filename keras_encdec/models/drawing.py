"""Answers that a pair draws to prompts, and the arrays that a step reads of them.

Knows that each prompt is read once for all of its answers, that answers are never tokenised
again, and which few sizes arrays have. Leaves which prompts, and what answers are worth, to
`keras_encdec.models.rollouts`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras_hub.samplers import RandomSampler

from keras_encdec.data.prompted import Prompted
from keras_encdec.data.prompts import Prompts
from keras_encdec.generation import buckets
from keras_encdec.generation.call import Call, encode
from keras_encdec.generation.engine import Engine
from keras_encdec.generation.options import DecodingOptions
from keras_encdec.objectives.rows import Inputs

_PARTS = 1, 2, 4  # of the longest answer's length: the sizes of decoder arrays


class Answered(NamedTuple):
    """Answers of b prompts, G to each.

    Args:
        x: model inputs, of the encoder (b, S) and of the decoder (b, G, T).
        labels: (b, G, T).
        texts: b * G of them.
        lengths: (b, G) tokens, the end token included.
        truncated: (b, G) 1 where there is no end token.
    """

    x: Inputs
    labels: np.ndarray
    texts: list[str]
    lengths: np.ndarray
    truncated: np.ndarray


class Drawing:
    """Draws answers by a model as it is at the time.

    Args:
        model: the task, with a preprocessor.
        source: all prompts there are, which are tokenised here.
        samples: G.
        max_length: tokens of an answer at most, or None for as many as the decoder has room for.
        temperature: to draw at.
        rows: prompts at a time, at most.

    Raises:
        MemoryError: if no memory holds what is generated at the same time.
    """

    def __init__(
        self,
        model: Any,
        source: Prompted,
        samples: int,
        max_length: int | None,
        temperature: float,
        rows: int,
    ):
        converter = model._required_converter()
        self.model, self.samples, self.rows = model, samples, rows
        self.prompts = Prompts.of_ids(source.tokens(converter), converter)
        self.length = max_length or converter.decoder_sequence_length
        longest, room = max(self.prompts.lengths), converter.encoder_sequence_length
        self._width = buckets.length(max(1, longest), room, buckets.SMALLEST_SOURCE)
        # A token more than an answer has: the start, which the decoder reads first.
        self._options = DecodingOptions(
            self.length + 1,
            converter.stop_token_ids,
            num_samples=samples,
            temperature=float(temperature),
        )
        self._engine = Engine(model.backbone, RandomSampler(), model.run_eagerly)
        self._engine.require_room(rows, samples, self.length + 1)

    def __call__(self, numbers: Sequence[int], seed: Sequence[int]) -> Answered:
        """Answers to some prompts.

        Args:
            numbers: of the prompts.
            seed: numbers that all chance follows from.
        """
        engine = self._current()
        call = Call(engine, self._options, self.model._detokenizer(), seed)
        prompts = self.prompts.some(list(numbers))
        session = call.session(encode(engine, prompts, rows=self.rows), list(numbers))
        session.advance()
        ids, mask = session.tokens()
        texts = call.texts(session).whole(strip_prompt=True)
        there = (mask & ~session.given)[:, 1:]
        ended = np.isin(ids[:, 1:], self._options.stop_token_ids) & there
        size = self._size(int(there.sum(axis=1).max()))
        shape = (len(numbers), self.samples, size)
        read, written, there = (
            a[:, :size].reshape(shape) for a in (ids[:, :-1], ids[:, 1:], there)
        )
        x = {name: a for name, a in prompts.arrays().items() if name.startswith("encoder")}
        x = {name: a[:, : self._width] for name, a in x.items()}
        x |= {"decoder_token_ids": np.where(there, read, 0), "decoder_padding_mask": there}
        x = {name: a.astype("int32") for name, a in x.items()}
        labels = np.where(there, written, 0).astype("int32")
        truncated = 1.0 - ended.any(axis=1).reshape(shape[:2])
        return Answered(x, labels, texts, there.sum(axis=2), truncated.astype("float32"))

    def _current(self) -> Engine:
        """With the weights as they are."""
        model = self.model
        model.make_generate_function()  # in the middle of an epoch, `fit` holds the weights
        if not self._engine.is_current:
            self._engine = Engine(model.backbone, RandomSampler(), model.run_eagerly)
        return self._engine

    def _size(self, longest: int) -> int:
        """T of arrays: a half, a quarter or all of the longest that there may be."""
        if keras.backend.backend() == "tensorflow":  # its batches have one width
            return self.length
        sizes = (math.ceil(self.length / part) for part in _PARTS)
        return min(size for size in sizes if size >= longest)
