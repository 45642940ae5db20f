"""A decoding session: the rows of one call while tokens are generated for them.

Knows which kind of session a sampler needs and what it can be asked for, what is padded,
and the random state that the rows draw from. Leaves programs to
`keras_encdec.generation.engine`, text to `keras_encdec.generation.generator`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras_hub.samplers import Sampler

from keras_encdec import hosts, layout
from keras_encdec.generation import buckets, loop
from keras_encdec.generation.beams import BeamSearch
from keras_encdec.generation.options import DecodingOptions
from keras_encdec.spec import Tensor


class DecodingSession:
    """Rows to which a sampler adds one token after another.

    Args:
        engine: `Engine`.
        context: from `Engine.encode`, for the B rows and those that fill the batch.
        token_ids: (B, T) int array, of prompts and room for generated tokens.
        given: (B, T) bool array, the first tokens of each row.
        samples: n, rows to generate for each; they stand one after another.
        stop_token_ids: ids that end a row.
        temperature: in place of the sampler's, or None.
        seed: of these rows alone; None to derive one from the sampler's own state, see
            `Engine.draw_seeds`.
    """

    scores: np.ndarray | None = None

    def __init__(
        self,
        engine: Any,
        context: Any,
        token_ids: np.ndarray,
        given: np.ndarray,
        samples: int = 1,
        stop_token_ids: tuple[int, ...] = (),
        temperature: float | None = None,
        seed: int | None = None,
    ):
        self.engine, self.context, self.seed, self.samples = engine, context, seed, samples
        self.ids, self.given = (np.repeat(x, samples, axis=0) for x in (token_ids, given))
        self.rows, self.length = len(token_ids) * samples, token_ids.shape[1]
        self.temperature = engine.sampler.temperature if temperature is None else temperature
        self.stops = stop_token_ids
        rows, room = ops.shape(context.visible.end)[0], self.room(self.length)
        ids, given = (pad(np.asarray(x), room, rows, first_row=True) for x in (token_ids, given))
        done = np.arange(rows) >= len(token_ids)
        shortest = int(np.sum(given, axis=1).min())
        ids, given, done = map(distributed, (ids.astype("int32"), given.astype(bool), done))
        self.state = self._begin(ids, given, done, shortest)

    @classmethod
    def check(cls, sampler: Any, options: DecodingOptions) -> None:
        """Raises ValueError where such a session cannot do what is asked."""
        if options.return_scores:
            raise ValueError(
                f"Expected BeamSearch for return_scores. Received: {type(sampler).__name__}. "
                "Use lm.score for the outputs of other samplers."
            )

    @staticmethod
    def room(length: int) -> int:
        """Tokens that arrays have room for, where rows have `length`."""
        return buckets.length(length)

    def _rows_each(self) -> int:
        """Rows of the state for each input."""
        return self.samples

    def _begin(self, ids: Tensor, given: Tensor, done: Tensor, shortest: int) -> loop.State:
        prompt = min(buckets.length(shortest - 1), self.room(self.length)) if shortest > 1 else 0
        sizes = {"prompt": prompt, "samples": self._rows_each()}
        return self.engine.begin(ids, given, done, self.context, self._seeds(), **sizes)

    def _seeds(self) -> list[np.ndarray]:
        """The random state to begin with."""
        if self.seed is None:
            return self.engine.draw_seeds()
        start = [self.seed, 0]  # as keras.random.SeedGenerator(seed) begins
        return [np.array(start, state.dtype) for state in self.engine.sampler.variables]

    def advance(self, until: int | None = None) -> "DecodingSession":
        """Generates until rows are `until` tokens long, by default to the end; `self`."""
        until = self.length if until is None else min(until, self.length)
        numbers = np.int32(until), np.float32(self.temperature), self._stop_ids()
        self.state = self.engine.advance(self.context, *numbers, self.state)
        return self

    def _stop_ids(self) -> np.ndarray:
        return np.array(self.stops or (-1,), "int32")

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(B * n, T) ids, and (B * n, T) bool of those in the prompt or generated, on the host.

        Raises:
            FloatingPointError: if logits were NaN or Inf.
        """
        ids = hosts.whole(self.state.token_ids)[: self.rows, : self.length]
        check_finite(ids != loop.NO_TOKEN, "a token")
        return ids, until_stop(ids, self.given, self.stops, self.index)

    @property
    def index(self) -> int:
        """Tokens of each row so far, prompts and generated."""
        return int(hosts.whole(self.state.index))

    @property
    def finished(self) -> bool:
        """Whether all rows are full or have ended."""
        return self.index >= self.length or bool(hosts.whole(ops.all(self.state.done)))

    def end(self, rows: Sequence[bool]) -> None:
        """Ends those of the B * n rows that are True in `rows`."""
        if any(rows) and not self.finished:
            ended = np.pad(rows, (0, self.state.done.shape[0] - self.rows))
            self.state = self.state._replace(done=ops.logical_or(self.state.done, ended))


class BeamSession(DecodingSession):
    """Rows of `BeamSearch`, generated to the end at once; the n best of each input.

    Attributes:
        scores: (B * n,) float32 log-likelihoods of the rows; None until they are generated.
    """

    @classmethod
    def check(cls, sampler: Any, options: DecodingOptions) -> None:
        if options.samples > sampler.num_beams:
            raise ValueError(
                f"Expected num_samples of at most num_beams = {sampler.num_beams}. "
                f"Received: {options.samples}."
            )
        _refuse_temperature(sampler, options)

    def _rows_each(self) -> int:
        return 1

    def advance(self, until: int | None = None) -> DecodingSession:
        """Generates to the end."""
        if self.scores is not None:
            return self
        numbers = np.int32(self.length), self._stop_ids()
        found = self.engine.beams(self.context, *numbers, self.state)
        ids = ops.reshape(found.token_ids[:, : self.samples], (-1, found.token_ids.shape[2]))
        scores = hosts.whole(found.scores)[:, : self.samples]
        self.scores = scores.reshape(-1)[: self.rows]
        self.state = loop.State(ids, None, None, np.int32(self.length), [], [])
        return self


class SearchSession(DecodingSession):
    """Rows of a search of KerasHub, generated to the end at once: contrastive, its own beams."""

    @classmethod
    def check(cls, sampler: Any, options: DecodingOptions) -> None:
        if options.samples > 1:
            raise ValueError(
                f"Expected num_samples=None with {type(sampler).__name__}, which gives one "
                f"output. Received: {options.samples}. For several, "
                "keras_encdec.generation.BeamSearch or a sampler that draws."
            )
        _refuse_temperature(sampler, options)
        super().check(sampler, options)

    @staticmethod
    def room(length: int) -> int:
        return length

    def _begin(self, ids: Tensor, given: Tensor, done: Tensor, shortest: int) -> loop.State:
        return loop.State(ids, given, done, np.int32(shortest), [], self._seeds())

    def advance(self, until: int | None = None) -> DecodingSession:
        """Generates to the end."""
        if self.finished:
            return self
        ids, given, done, _, _, seeds = self.state
        stops = {"stop_token_ids": self.stops or None}
        ids, seeds = self.engine.search(ids, given, self.context, seeds, **stops)
        self.state = loop.State(ids, given, done, np.int32(self.length), [], seeds)
        return self


def session_type(sampler: Any) -> type[DecodingSession]:
    """The kind of session that a sampler needs."""
    if isinstance(sampler, BeamSearch):
        return BeamSession
    chooses_tokens = type(sampler).__call__ is Sampler.__call__
    return DecodingSession if chooses_tokens else SearchSession


def until_stop(ids: np.ndarray, given: np.ndarray, stops: Sequence[int], index: int) -> np.ndarray:
    """(R, T) bool: the prompt, and what follows before `index`, up to and with a stop token."""
    stop = np.isin(ids, stops) & ~given
    before = np.cumsum(stop, axis=1) - stop
    return ((before == 0) & (np.arange(ids.shape[1]) < index)) | given


def check_finite(is_finite: np.ndarray, what: str) -> None:
    """Raises FloatingPointError unless all of (R, T) are True; `what` could not be found."""
    if not is_finite.all():
        row, place = np.argwhere(~is_finite)[0]
        raise FloatingPointError(
            f"Expected finite logits for {what}. Received: NaN or Inf in row {row}, token {place}. "
            "Weights that are not finite say so when they are saved; where all are, activations "
            'are too large for the dtype: load the model with dtype="bfloat16".'
        )


def pad(x: np.ndarray, length: int, rows: int, first_row: bool = False) -> np.ndarray:
    """(rows, length): zeros to the right, and below zeros or copies of the first row."""
    x = np.pad(x, [(0, 0), (0, length - x.shape[1])])
    below = np.repeat(x[:1] if first_row else np.zeros_like(x[:1]), rows - len(x), axis=0)
    return np.concatenate([x, below])


def distributed(x: Tensor) -> Tensor:
    """`x` on the devices that `keras.distribution` says."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return ops.convert_to_tensor(x)
    return layout.spread(x, distribution.get_data_layout(x.shape))


def _refuse_temperature(sampler: Any, options: DecodingOptions) -> None:
    if options.temperature is not None:
        raise ValueError(
            f"Expected temperature=None with {type(sampler).__name__}, which ranks whole texts. "
            f"Received: {options.temperature}."
        )
