"""A decoding session: rows that are being written, whichever way their sampler goes.

Knows what is padded, what belongs to which row, and the random state that the rows draw
from. Leaves programs to `keras_encdec.generation.engine`, text to
`keras_encdec.generation.generator`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encdec.generation import buckets, loop
from keras_encdec.spec import Tensor


class DecodingSession:
    """Rows to which a sampler adds one token after another.

    Args:
        engine: `Engine`.
        context: from `Engine.encode`, for the B rows and those that fill the batch.
        token_ids: (B, T) int array, of prompts and room for what is written.
        given: (B, T) bool array, the first tokens of each row.
        samples: n, rows to write for each; they stand one after another.
        stop_token_ids: ids that end a row, or None.
        temperature: in place of the sampler's, or None.
        seed: of these rows alone; None for one that is drawn from the sampler's own state,
            which moves on at once: sessions in several threads draw apart.
    """

    scores: np.ndarray

    def __init__(
        self,
        engine: Any,
        context: Any,
        token_ids: np.ndarray,
        given: np.ndarray,
        samples: int = 1,
        stop_token_ids: Iterable[int] | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ):
        self._check(engine.sampler, samples, temperature)
        self.engine, self.context, self.seed, self.samples = engine, context, seed, samples
        self.ids, self.given = (np.repeat(x, samples, axis=0) for x in (token_ids, given))
        self.rows, self.length = len(token_ids) * samples, token_ids.shape[1]
        self.temperature = engine.sampler.temperature if temperature is None else temperature
        self.stops = tuple(stop_token_ids or ())
        rows, room = ops.shape(context.visible.end)[0], self._room()
        ids, given = (pad(np.asarray(x), room, rows, first_row=True) for x in (token_ids, given))
        done = np.arange(rows) >= len(token_ids)
        shortest = int(np.sum(given, axis=1).min())
        ids, given, done = map(distributed, (ids.astype("int32"), given.astype(bool), done))
        self.state = self._begin(ids, given, done, shortest)

    def _check(self, sampler: Any, samples: int, temperature: float | None) -> None:
        """Raises ValueError where the sampler cannot do this."""

    def _room(self) -> int:
        """Tokens that arrays have room for."""
        return buckets.length(self.length)

    def _rows_each(self) -> int:
        """Rows of the state for each input."""
        return self.samples

    def _begin(self, ids: Tensor, given: Tensor, done: Tensor, shortest: int) -> loop.State:
        prompt = min(buckets.length(shortest - 1), self._room()) if shortest > 1 else 0
        sizes = {"prompt": prompt, "samples": self._rows_each()}
        return self.engine.begin(ids, given, done, self.context, self._seeds(), **sizes)

    def _seeds(self) -> list[np.ndarray]:
        """The random state to begin with."""
        if self.seed is None:
            return self.engine.draw_seeds()
        drawn = ops.convert_to_numpy(keras.random.SeedGenerator(self.seed).state)
        return [drawn.astype(state.dtype) for state in self.engine.sampler.variables]

    def advance(self, until: int | None = None) -> "DecodingSession":
        """Goes on up to `until` tokens in each row, by default to the end; `self`."""
        until = self.length if until is None else min(until, self.length)
        numbers = np.int32(until), np.float32(self.temperature), self._stop_ids()
        self.state = self.engine.advance(self.context, *numbers, self.state)
        return self

    def _stop_ids(self) -> np.ndarray:
        return np.array(self.stops or (-1,), "int32")

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(B * n, T) ids, and what of them is prompt or written, as NumPy arrays."""
        state = self.state
        ids, given, index = map(ops.convert_to_numpy, (state.token_ids, state.given, state.index))
        ids, given = (x[: self.rows, : self.length] for x in (ids, given))
        return ids, written(ids, given, self.stops, index)

    @property
    def index(self) -> int:
        """Tokens of each row so far, prompts and written."""
        return int(self.state.index)

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to write."""
        return self.index >= self.length or bool(ops.convert_to_numpy(ops.all(self.state.done)))

    def end(self, rows: Sequence[bool]) -> None:
        """Ends those of the B * n rows that are True in `rows`."""
        if any(rows) and not self.finished:
            ended = np.pad(rows, (0, self.state.done.shape[0] - self.rows))
            self.state = self.state._replace(done=ops.logical_or(self.state.done, ended))


class BeamSession(DecodingSession):
    """Rows that `BeamSearch` writes, to the end at once; the n best of each.

    Attributes:
        scores: (B * n,) log-likelihoods of the rows, once they are written.
    """

    def _check(self, sampler: Any, samples: int, temperature: float | None) -> None:
        if samples > sampler.num_beams:
            raise ValueError(
                f"Expected num_samples of at most num_beams = {sampler.num_beams}. "
                f"Received: {samples}."
            )
        _refuse_temperature(sampler, temperature)

    def _rows_each(self) -> int:
        return 1

    def advance(self, until: int | None = None) -> DecodingSession:
        """Goes to the end."""
        if self.finished:
            return self
        numbers = np.int32(self.length), self._stop_ids()
        found = self.engine.beams(self.context, *numbers, self.state)
        ids = ops.reshape(found.token_ids[:, : self.samples], (-1, found.token_ids.shape[2]))
        scores = ops.convert_to_numpy(found.scores)[:, : self.samples]
        self.scores = scores.reshape(-1)[: self.rows]
        given = ops.repeat(self.state.given, self.samples, axis=0)
        self.state = loop.State(ids, given, None, np.int32(self.length), [], [])
        return self


class SearchSession(DecodingSession):
    """Rows that a search of KerasHub writes, to the end at once: contrastive, its own beams."""

    def _check(self, sampler: Any, samples: int, temperature: float | None) -> None:
        if samples > 1:
            raise ValueError(
                f"Expected num_samples=None with {type(sampler).__name__}, which writes one "
                f"output. Received: {samples}. For several, keras_encdec.generation.BeamSearch "
                "or a sampler that draws."
            )
        _refuse_temperature(sampler, temperature)

    def _room(self) -> int:
        return self.length

    def _begin(self, ids: Tensor, given: Tensor, done: Tensor, shortest: int) -> loop.State:
        return loop.State(ids, given, done, np.int32(shortest), [], self._seeds())

    def advance(self, until: int | None = None) -> DecodingSession:
        """Goes to the end."""
        if self.finished:
            return self
        ids, given, done, _, _, seeds = self.state
        stops = {"stop_token_ids": self.stops or None}
        ids, seeds = self.engine.search(ids, given, self.context, seeds, **stops)
        self.state = loop.State(ids, given, done, np.int32(self.length), [], seeds)
        return self


def written(
    ids: np.ndarray, given: np.ndarray, stops: Sequence[int], index: np.ndarray
) -> np.ndarray:
    """(B, T) bool: up to and with the first stop token after the prompt, before `index`."""
    stop = np.isin(ids, stops) & ~given
    before = np.cumsum(stop, axis=1) - stop
    return ((before == 0) & (np.arange(ids.shape[1]) < index)) | given


def pad(x: np.ndarray, length: int, rows: int, first_row: bool = False) -> np.ndarray:
    """(rows, length): zeros to the right, and below zeros or copies of the first row."""
    x = np.pad(x, [(0, 0), (0, length - x.shape[1])])
    below = np.repeat(x[:1] if first_row else np.zeros_like(x[:1]), rows - len(x), axis=0)
    return np.concatenate([x, below])


def distributed(x: Tensor) -> Tensor:
    """`x` on the devices that `keras.distribution` says."""
    distribution, x = keras.distribution.distribution(), ops.convert_to_tensor(x)
    if distribution is None:
        return x
    return keras.distribution.distribute_tensor(x, distribution.get_data_layout(x.shape))


def _refuse_temperature(sampler: Any, temperature: float | None) -> None:
    if temperature is not None:
        raise ValueError(
            f"Expected temperature=None with {type(sampler).__name__}, which ranks whole texts. "
            f"Received: {temperature}."
        )
