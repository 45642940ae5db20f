"""Outputs that a pair draws to prompts, and the arrays that a step reads of them.

Knows that each prompt is read once for all of its outputs, that outputs are never tokenised
again, and which few sizes arrays have. Leaves which prompts, and what answers are worth, to
`keras_encdec.models.rollouts`, teachers to `keras_encdec.models.own_outputs`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
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


class Outputs(NamedTuple):
    """What a model wrote to b prompts, G times to each.

    Args:
        read: (b, G, T) ids that the decoder reads, 0 behind the last.
        written: (b, G, T) ids that it writes, the end token included.
        there: (b, G, T) True where there are such.
        ended: (b, G) True where there is an end token.
        texts: makes b * G texts.
    """

    read: np.ndarray
    written: np.ndarray
    there: np.ndarray
    ended: np.ndarray
    texts: Callable[[], list[str]]


class Drawing:
    """Draws outputs by a model as it is at the time.

    Args:
        model: the task, with a preprocessor.
        samples: G.
        temperature: to draw at.
        length: T, tokens of an output at most.
        rows: prompts at a time, at most.

    Raises:
        MemoryError: if no memory holds what is generated at the same time.
    """

    def __init__(self, model: Any, samples: int, temperature: float, length: int, rows: int):
        self.model, self.samples, self.length, self.rows = model, samples, length, rows
        # A token more than an output has: the start, which the decoder reads first.
        self._options = DecodingOptions(
            length + 1,
            model._required_converter().stop_token_ids,
            num_samples=samples,
            temperature=float(temperature),
        )
        self._engine = Engine(model.backbone, RandomSampler(), model.run_eagerly)
        self._engine.require_room(rows, samples, length + 1)

    def __call__(self, prompts: Prompts, numbers: Sequence[int], seed: Sequence[int]) -> Outputs:
        """Outputs to prompts.

        Args:
            prompts: b of them; decoders begin with a single token.
            numbers: theirs, by which each draws its own.
            seed: numbers that all chance follows from.
        """
        engine = self._current()
        call = Call(engine, self._options, self.model._detokenizer(), seed)
        session = call.session(encode(engine, prompts, rows=self.rows), list(numbers))
        session.advance()
        ids, mask = session.tokens()
        there = (mask & ~session.given)[:, 1:]
        ended = np.isin(ids[:, 1:], self._options.stop_token_ids) & there
        sides = (np.where(there, side, 0) for side in (ids[:, :-1], ids[:, 1:]))
        shape = len(numbers), self.samples, self.length
        read, written, there, ended = (a.reshape(shape) for a in (*sides, there, ended))
        texts = partial(call.texts(session).whole, strip_prompt=True)
        return Outputs(read, written, there, ended.any(axis=-1), texts)

    def _current(self) -> Engine:
        """With the weights as they are."""
        model = self.model
        model.make_generate_function()  # in the middle of an epoch, `fit` holds the weights
        if not self._engine.is_current:
            self._engine = Engine(model.backbone, RandomSampler(), model.run_eagerly)
        return self._engine


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


class Answering:
    """Draws answers to prompts that are known from the beginning.

    Args:
        model: the task, with a preprocessor.
        source: all prompts there are, which are tokenised here.
        samples: G.
        max_length: tokens of an answer at most, or None for as many as the decoder has room for.
        temperature: to draw at.
        rows: prompts at a time, at most.

    Raises:
        MemoryError: as `Drawing`.
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
        self.prompts = Prompts.of_ids(source.tokens(converter), converter)
        self.length = max_length or converter.decoder_sequence_length
        longest, room = max(self.prompts.lengths), converter.encoder_sequence_length
        self._width = buckets.length(max(1, longest), room, buckets.SMALLEST_SOURCE)
        self._draw = Drawing(model, samples, temperature, self.length, rows)

    def __call__(self, numbers: Sequence[int], seed: Sequence[int]) -> Answered:
        """Answers to some prompts.

        Args:
            numbers: of the prompts.
            seed: numbers that all chance follows from.
        """
        prompts = self.prompts.some(list(numbers))
        drawn = self._draw(prompts, numbers, seed)
        lengths = drawn.there.sum(axis=-1)
        size = self._size(int(lengths.max()))
        read, written, there = (a[..., :size].astype("int32") for a in drawn[:3])
        x = {name: a for name, a in prompts.arrays().items() if name.startswith("encoder")}
        x = {name: a[:, : self._width].astype("int32") for name, a in x.items()}
        x |= {"decoder_token_ids": read, "decoder_padding_mask": there}
        truncated = (~drawn.ended).astype("float32")
        return Answered(x, written, drawn.texts(), lengths, truncated)

    def _size(self, longest: int) -> int:
        """T of arrays: a half, a quarter or all of the longest that there may be."""
        if keras.backend.backend() == "tensorflow":  # its batches have one width
            return self.length
        sizes = (math.ceil(self.length / part) for part in _PARTS)
        return min(size for size in sizes if size >= longest)
