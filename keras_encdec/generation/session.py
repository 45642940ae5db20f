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
from keras_encdec.generation import buckets, drafts, loop
from keras_encdec.generation.beams import BeamSearch
from keras_encdec.generation.choosing import NO_TOKEN, row_seeds
from keras_encdec.generation.options import DecodingOptions
from keras_encdec.generation.results import Source
from keras_encdec.spec import Tensor


class DecodingSession:
    """Rows to which a sampler adds one token after another.

    Args:
        engine: `Engine`.
        source: `Source`, from `Engine.encode`, for the B rows and those that fill the batch.
        token_ids: (B, T) int array, of prompts and room for generated tokens.
        given: (B, T) bool array, the first tokens of each row.
        samples: n, rows to generate for each; they stand one after another.
        stop_token_ids: ids that end a row.
        temperature: in place of the sampler's, or None.
        seed: what the call draws with, one number or several.
        numbers: of the B inputs in that call.
        draft: "auto" for drafts copied from the input where they pay, None for none; of
            `DraftedSession` another `Engine`.
    """

    scores: np.ndarray | None = None

    def __init__(
        self,
        engine: Any,
        source: Source,
        token_ids: np.ndarray,
        given: np.ndarray,
        samples: int = 1,
        stop_token_ids: tuple[int, ...] = (),
        temperature: float | None = None,
        seed: Sequence[int] = (0,),
        numbers: Sequence[int] | None = None,
        draft: Any = "auto",
    ):
        self.engine, self.source, self.seed, self.samples = engine, source, seed, samples
        self.numbers = range(len(token_ids)) if numbers is None else numbers
        self.ids, self.given = (np.repeat(x, samples, axis=0) for x in (token_ids, given))
        self.rows, self.length = len(token_ids) * samples, token_ids.shape[1]
        self.temperature = engine.sampler.temperature if temperature is None else temperature
        self.stops = stop_token_ids
        self.draft, self.copies = draft, draft == "auto" and self._can_copy()
        rows, room = source.token_ids.shape[0], self.room(self.length)
        ids, given = (pad(np.asarray(x), room, rows, first_row=True) for x in (token_ids, given))
        done = np.arange(rows) >= len(token_ids)
        longest = int(np.sum(given, axis=1).max())
        ids, given, done = map(distributed, (ids.astype("int32"), given.astype(bool), done))
        self.state = self._begin(ids, given, done, longest)

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

    def _can_copy(self) -> bool:
        """Whether a step has so few rows, and each cache so many places, that drafts may pay."""
        spec, rows = self.engine.backbone.spec.decoder, self.source.token_ids.shape[0]
        return drafts.fit(spec, self.room(self.length), rows * self.samples)

    def _begin(self, ids: Tensor, given: Tensor, done: Tensor, longest: int) -> loop.State:
        seeds = row_seeds(self.engine.sampler, self.seed, self.numbers, self.samples)
        rows = ids.shape[0] * self.samples
        seeds = [distributed(pad(seed, 2, rows)) for seed in seeds]
        sizes = {"prompt": self._prompt(longest), "samples": self.samples}
        return self.engine.begin(ids, given, done, self.source.context, seeds, **sizes)

    def _prompt(self, longest: int) -> int:
        """Tokens that the decoder reads at once."""
        return min(buckets.length(longest - 1), self.room(self.length)) if longest > 1 else 0

    def advance(self, tokens: int | None = None, spare: int | None = None) -> "DecodingSession":
        """Generates; `self`.

        Args:
            tokens: for each row that has not ended, at most; by default to the end.
            spare: rows of the session that have ended or got their tokens when it returns, at
                least; all by default.
        """
        numbers = self._numbers(tokens, self.rows if spare is None else spare)
        while True:
            call = self.source, numbers, self.state
            self.state = self.engine.advance(*call, copies=self.copies)
            if not self.copies or not self._goes_on(numbers):
                return self
            self.state = self.engine.verify(self.source, numbers, self.state)

    def _numbers(self, tokens: int | None, spare: int) -> loop.Numbers:
        index, filling = self.state.index, self.state.index.shape[0] - self.rows
        until = ops.minimum(index + (self.length if tokens is None else tokens), self.length)
        stops = np.array(self.stops or (-1,), "int32")
        return loop.Numbers(until, np.float32(self.temperature), stops, np.int32(spare + filling))

    def _goes_on(self, numbers: loop.Numbers) -> bool:
        return bool(hosts.whole(loop.is_going(self.state, numbers)))

    def replace(self, places: Sequence[int], other: "DecodingSession") -> None:
        """Puts the inputs of another session, in their order, where those of this one stood.

        Args:
            places: numbers of inputs here.
            other: a session of so many inputs, alike but for its number of rows; it ends.
        """
        rows = np.add.outer(np.multiply(places, self.samples), np.arange(self.samples)).ravel()
        self.ids[rows], self.given[rows] = other.ids, other.given
        filling = other.source.token_ids.shape[0] - len(places)  # the first once more
        place = np.array([*places, *[places[0]] * filling], "int32")
        origin = np.array([*range(len(places)), *[0] * filling], "int32")
        self._insert(origin, place, other)

    def _insert(self, origin: np.ndarray, place: np.ndarray, other: Any) -> None:
        new, old = (other.source, other.state), (self.source, self.state)
        self.source, self.state = self.engine.insert(new, origin, place, old)

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(B * n, T) ids, and (B * n, T) bool of those in the prompt or generated, on the host.

        Raises:
            FloatingPointError: if logits were NaN or Inf.
        """
        ids = hosts.whole(self.state.token_ids)[: self.rows, : self.length]
        check_finite(ids != NO_TOKEN, "a token")
        return ids, until_stop(ids, self.given, self.stops, self.index)

    @property
    def index(self) -> np.ndarray:
        """(B * n,) int, tokens of each row so far, prompts and generated."""
        return hosts.whole(self.state.index)[: self.rows]

    @property
    def ended(self) -> np.ndarray:
        """(B * n,) bool, the rows that are full or have ended."""
        return (self.index >= self.length) | hosts.whole(self.state.done)[: self.rows]

    @property
    def finished(self) -> bool:
        """Whether all rows are full or have ended."""
        return bool(self.ended.all())

    def end(self, rows: Sequence[bool]) -> None:
        """Ends those of the B * n rows that are True in `rows`."""
        if any(rows):
            ended = np.pad(rows, (0, self.state.done.shape[0] - self.rows))
            self.state = self.state._replace(done=ops.logical_or(self.state.done, ended))


class DraftedSession(DecodingSession):
    """Rows for which a smaller model drafts; `draft` is its `Engine`."""

    def _begin(self, ids: Tensor, given: Tensor, done: Tensor, longest: int) -> loop.State:
        self._source = self.draft.read(self.source)
        sizes = {"prompt": self._prompt(longest), "samples": self.samples}
        self._state = self.draft.begin(ids, given, done, self._source.context, [], **sizes)
        return super()._begin(ids, given, done, longest)

    def advance(self, tokens: int | None = None, spare: int | None = None) -> DecodingSession:
        numbers = self._numbers(tokens, self.rows if spare is None else spare)
        contexts, states = (
            (self.source.context, self._source.context),
            (self.state, self._state),
        )
        self.state, self._state = self.engine.speculate(self.draft, contexts, numbers, states)
        return self

    def _insert(self, origin: np.ndarray, place: np.ndarray, other: Any) -> None:
        super()._insert(origin, place, other)
        new, old = (other._source, other._state), (self._source, self._state)
        self._source, self._state = self.draft.insert(new, origin, place, old)


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
        _refuse(sampler, options)

    def _begin(self, ids: Tensor, given: Tensor, done: Tensor, longest: int) -> loop.State:
        self._given = given
        prompt = self._prompt(longest)
        context = self.source.context
        return self.engine.begin(ids, given, done, context, [], prompt=prompt, together=True)

    @property
    def ended(self) -> np.ndarray:
        return np.full(self.rows, self.scores is not None)

    def advance(self, tokens: int | None = None, spare: int | None = None) -> DecodingSession:
        """Generates to the end."""
        if self.finished:
            return self
        numbers = self._numbers(None, self.rows)
        found = self.engine.beams(self.source.context, numbers, self._given, self.state)
        ids = ops.reshape(found.token_ids[:, : self.samples], (-1, found.token_ids.shape[2]))
        scores = hosts.whole(found.scores)[:, : self.samples]
        self.scores = scores.reshape(-1)[: self.rows]
        self.state = _full(ids, self.length)
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
        _refuse(sampler, options)
        super().check(sampler, options)

    @staticmethod
    def room(length: int) -> int:
        return length

    def _begin(self, ids: Tensor, given: Tensor, done: Tensor, longest: int) -> loop.State:
        self._given = given
        self._seeds = row_seeds(self.engine.sampler, self.seed, self.numbers[:1], 1)
        return _full(ids, int(self.given.sum(axis=1).min()))

    def advance(self, tokens: int | None = None, spare: int | None = None) -> DecodingSession:
        """Generates to the end."""
        if self.finished:
            return self
        seeds, stops = [seed[0] for seed in self._seeds], self.stops or None
        call = self.state.token_ids, self._given, self.source.context, seeds
        self.state = _full(self.engine.search(*call, stop_token_ids=stops), self.length)
        return self


def _full(token_ids: Tensor, length: int) -> loop.State:
    """The state of rows that are `length` tokens long, behind a search."""
    index = np.full(token_ids.shape[0], length, "int32")
    return loop.State(token_ids, index, np.zeros(len(index), bool), [], [], [])


def session_type(sampler: Any, draft: Any = None) -> type[DecodingSession]:
    """The kind of session that a sampler needs, and a draft model beside it."""
    if isinstance(sampler, BeamSearch):
        return BeamSession
    chooses_tokens = type(sampler).__call__ is Sampler.__call__
    if not chooses_tokens:
        return SearchSession
    return DecodingSession if draft in (None, "auto") else DraftedSession


def until_stop(
    ids: np.ndarray, given: np.ndarray, stops: Sequence[int], index: np.ndarray
) -> np.ndarray:
    """(R, T) bool: the prompt, and what follows before `index`, up to and with a stop token."""
    stop = np.isin(ids, stops) & ~given
    before = np.cumsum(stop, axis=1) - stop
    return ((before == 0) & (np.arange(ids.shape[1]) < index[:, None])) | given


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


def _refuse(sampler: Any, options: DecodingOptions) -> None:
    if options.draft not in (None, "auto"):
        raise ValueError(
            f"Expected a sampler that chooses token by token for a draft model. Received: "
            f"{type(sampler).__name__}, which ranks whole texts."
        )
    if options.temperature is not None:
        raise ValueError(
            f"Expected temperature=None with {type(sampler).__name__}, which ranks whole texts. "
            f"Received: {options.temperature}."
        )
