"""The programs of a model that generates, on arrays.

Knows how often programs were compiled, which inputs are padded to which size before one
sees them, and that threads may share all of it. Leaves the loop to
`keras_encdec.generation.loop`, the rows of a call to `keras_encdec.generation.session`.
"""

import functools
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops, tree
from keras_hub.samplers import SpeculativeSampler

from keras_encdec import hosts, layout
from keras_encdec.generation import buckets, choosing, drafts, loop, speculation
from keras_encdec.generation.beams import search
from keras_encdec.generation.compiled import Compiled
from keras_encdec.generation.likelihood import log_likelihoods
from keras_encdec.generation.memory import require_room
from keras_encdec.generation.options import DecodingOptions
from keras_encdec.generation.results import Source
from keras_encdec.generation.screening import Screening
from keras_encdec.generation.session import (
    DecodingSession,
    check_finite,
    distributed,
    pad,
    session_type,
)
from keras_encdec.spec import Tensor

_SMALLEST_SCORED = 8  # decoder tokens: answers of benchmarks are short

# Held while a sampler's own random state moves. One for all: tasks may share a sampler.
_SAMPLERS = threading.Lock()


class Engine:
    """Generation of a backbone with a sampler, from any number of threads.

    Args:
        backbone: `keras_encdec.models.EncDecBackbone`.
        sampler: `keras_hub.samplers.Sampler`.
        eager: compile nothing.

    Raises:
        ValueError: if the sampler asks more than one model, or wants more beams than
            there are words.
    """

    def __init__(self, backbone: Any, sampler: Any, eager: bool = False):
        _check_sampler(sampler, backbone.spec.decoder.vocabulary_size)
        self.backbone, self.sampler = backbone, sampler
        self.variables = backbone.variables
        self._screening = Screening(backbone.decoder)
        xla = not backbone.has_experts

        def compiled(function: Callable, *others: Any, **kwargs: Any) -> Compiled:
            return Compiled(function, [*self.variables, *others], eager=eager, xla=xla, **kwargs)

        self._encode = compiled(self._run_encoder)
        self._states = compiled(self._run_states)
        self._score = compiled(self._run_score)
        self._begin = compiled(self._run_begin)
        self._advance = compiled(self._run_advance, donate=True)
        self._verify = compiled(self._run_verify, donate=True)
        self._insert = compiled(self._run_insert, donate=True)
        self._beams = compiled(self._run_beams)
        self._search = compiled(self._run_sampler)
        self._compiled = compiled
        self._speculate: tuple[Engine, Compiled] | None = None

    @property
    def is_current(self) -> bool:
        """Whether the backbone still has the variables that programs were made for."""
        now = self.backbone.variables
        return len(now) == len(self.variables) and all(map(operator.is_, now, self.variables))

    @property
    def compile_counts(self) -> dict[str, int]:
        """Programs compiled so far, of each kind."""
        kinds = {"encode": self._encode, "begin": self._begin, "advance": self._advance}
        kinds |= {
            "verify": self._verify,
            "beams": self._beams,
            "search": self._search,
            "score": self._score,
            "states": self._states,
        }
        return {kind: compiled.count for kind, compiled in kinds.items()}

    def check(self, options: DecodingOptions) -> None:
        """Raises ValueError where the sampler cannot do what is asked."""
        session_type(self.sampler, options.draft).check(self.sampler, options)

    def require_room(self, rows: int, samples: int, length: int) -> None:
        """Raises MemoryError where `samples` outputs of each of `rows` inputs cannot be kept.

        Args:
            rows: inputs of one batch.
            samples: n, outputs for each.
            length: tokens of each.

        Raises:
            ValueError: if the decoder writes no texts of this length.
        """
        copies = getattr(self.sampler, "num_beams", samples)
        spec, dtype = self.backbone.spec.decoder, self.backbone.compute_dtype
        if spec.longest_written is not None and length > spec.longest_written:
            raise ValueError(
                f"Expected max_length of at most {spec.longest_written}: in a longer text this "
                "decoder's rotary positions (LongRoPE) change for the tokens already written. "
                f"Received: {length}."
            )
        room = session_type(self.sampler).room(length)
        require_room(spec, _rows(rows) * copies, room, dtype)

    def draw_seed(self) -> tuple[int, ...]:
        """A seed for one call, derived from the sampler's own state, which is advanced.

        Calls that begin at the same time get different ones; those that begin one after
        another in one thread get the same ones in each run of a seeded program.
        """
        words: list[int] = []
        with _SAMPLERS:
            for variable in self.sampler.variables:
                own = np.array(ops.convert_to_numpy(variable.value))
                words += [int(x) % 2**64 for x in own]  # seeds may be below 0
                variable.assign(own + np.eye(1, own.size, own.size - 1, dtype=own.dtype)[0])
        return tuple(words)

    def begin(self, *tensors: Any, **static: Any) -> loop.State:
        """The state after the prompts; see `keras_encdec.generation.loop.begin`."""
        return self._begin(*tensors, **static)

    def beams(self, *tensors: Any) -> Any:
        """The best hypotheses; see `keras_encdec.generation.beams.search`."""
        return self._beams(*tensors)

    def advance(
        self, source: Source, numbers: loop.Numbers, state: loop.State, **static: Any
    ) -> loop.State:
        """The state some tokens later; see `keras_encdec.generation.loop.advance`."""
        table = self._table(state, 1)
        return self._advance(source, numbers, table, state, **static)

    @property
    def refills(self) -> bool:
        """Whether rows of a session can be replaced one by one."""
        return session_type(self.sampler) is DecodingSession

    def insert(self, *tensors: Any) -> tuple[Source, loop.State]:
        """A session's source and state with rows of another; see `DecodingSession.replace`."""
        return self._insert(*tensors)

    def verify(self, source: Source, numbers: loop.Numbers, state: loop.State) -> loop.State:
        """The state some drafts later; see `keras_encdec.generation.drafts.verify`."""
        table = self._table(state, 1 + drafts.TOKENS)
        return self._verify(source, numbers, table, state)

    def _table(self, state: loop.State, tokens: int) -> Any:
        """What screens the output projection of a step of so many tokens of each row, or ()."""
        if self._advance.eager:
            return ()
        rows, length = state.token_ids.shape
        return self._screening.table(self.sampler, rows * tokens, length)

    def _chooser(self, table: Any) -> Any:
        return choosing.Screened(self.sampler, table) if table else self.sampler

    def read(self, source: Source) -> Source:
        """What this model's decoder reads of the inputs of another's."""
        there = source.token_ids != drafts.NOTHING
        return self._encode(ops.where(there, source.token_ids, 0), ops.cast(there, "int32"))

    def speculate(self, draft: "Engine", *tensors: Any) -> tuple[loop.State, loop.State]:
        """The states some drafts later; see `keras_encdec.generation.speculation.advance`."""
        if self._speculate is None or self._speculate[0] is not draft:
            decoders = self.backbone.decoder, draft.backbone.decoder
            run = functools.partial(speculation.advance, decoders, self.sampler)
            self._speculate = draft, self._compiled(run, *draft.variables, donate=True)
        return self._speculate[1](*tensors)

    def search(self, *tensors: Any, **static: Any) -> Any:
        """What a search of KerasHub generates.

        One that draws has nothing but the sampler's own state to draw from: such searches
        run one at a time, and the state is put back.
        """
        if not self.sampler.variables:
            return self._search(*tensors, **static)
        with _SAMPLERS:
            own = choosing.seeds_of(self.sampler)
            try:
                return self._search(*tensors, **static)
            finally:
                choosing.set_seeds(self.sampler, own)

    def encode(
        self,
        token_ids: Any,
        mask: Any,
        largest: int | None = None,
        smallest: int = buckets.SMALLEST_SOURCE,
        rows: int | None = None,
        images: np.ndarray | None = None,
    ) -> Source:
        """What a decoder reads of inputs, computed once.

        Args:
            token_ids: (B, S) int array.
            mask: (B, S), 0 for padding.
            largest: the longest S there will be.
            smallest: the shortest S that there is a program for.
            rows: B at least.
            images: (B, N, H, W, 3), or None.
        """
        sizes = {"largest": largest, "smallest": smallest}
        return self._encode(*_sides(token_ids, mask, images, rows or 0, **sizes))

    def decode(
        self, source: Source, token_ids: np.ndarray, given: np.ndarray, **options: Any
    ) -> DecodingSession:
        """Begins a session; see `DecodingSession` for the arguments."""
        return session_type(self.sampler, options.get("draft"))(
            self, source, token_ids, given, **options
        )

    def states(
        self, token_ids: Any, mask: Any, *, rows: int = 0, images: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the encoder makes of inputs, for `score`, and its mask.

        Args:
            token_ids: (B, S) int array.
            mask: (B, S), 0 for padding.
            rows: B at least.
            images: (B, N, H, W, 3), or None.
        """
        sides = _sides(token_ids, mask, images, rows, to=buckets.closer)
        return self._states(*sides), sides[1]

    def score(
        self,
        source: tuple[Tensor, Tensor],
        places: Sequence[int],
        token_ids: Any,
        mask: Any,
        labels: Any,
        weights: Any,
        *,
        inputs: int = 0,
        temperature: float = 1.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B * n, T) log-probabilities of labels, 0 where they do not count; see `log_likelihoods`.

        Args:
            source: from `states`.
            places: B, rows of the source.
            token_ids: (B * n, T) int array that the decoder reads, n targets of each of them.
            mask: (B * n, T), 0 for padding.
            labels: (B * n, T) int array.
            weights: (B * n, T), 0 where there is no label.
            inputs: B at least.
            temperature: that logits are divided by.
        """
        count, length = np.shape(labels)
        given, padded = len(places), _rows(max(len(places), inputs))
        rows = padded * count // given
        sizes: dict[str, Any] = {"to": buckets.closer, "smallest": _SMALLEST_SCORED}
        decoder = _cut(token_ids, mask, labels, weights, rows=rows, **sizes)
        place = np.pad(np.asarray(places, "int32"), (0, padded - given))
        tensors = *source, *map(distributed, (place, *decoder)), np.float32(temperature)
        found = self._score(*tensors)
        log_probs, likeliest = (hosts.whole(part)[:count, :length] for part in found)
        check_finite(np.isfinite(log_probs), "a log-probability")
        more = [(0, 0), (0, length - log_probs.shape[1])]
        return np.pad(log_probs, more), np.pad(likeliest, more)

    def _run_encoder(self, token_ids: Tensor, mask: Tensor, *images: Tensor) -> Source:
        states = self._run_states(token_ids, mask, *images)
        ids = ops.where(mask > 0, token_ids, drafts.NOTHING)
        return Source(self.backbone.decoder.context(states, mask), ids)

    def _run_begin(self, *tensors: Any, **static: Any) -> loop.State:
        return loop.begin(self.backbone.decoder, *tensors, **static)

    def _run_advance(
        self,
        source: Source,
        numbers: loop.Numbers,
        table: Any,
        state: loop.State,
        *,
        copies: bool,
    ) -> loop.State:
        least = self._least(state)
        pause = drafts.pause(source.token_ids, numbers.until, least) if copies else None
        chooser = self._chooser(table)
        return loop.advance(self.backbone.decoder, chooser, source.context, numbers, state, pause)

    def _run_insert(
        self, new: tuple, origin: Tensor, place: Tensor, old: tuple
    ) -> tuple[Source, loop.State]:
        samples = old[1].done.shape[0] // old[0].token_ids.shape[0]

        def put(old: Any, new: Any, each: int) -> Any:
            at, of = (
                ops.reshape(rows[:, None] * each + ops.arange(each, dtype="int32"), (-1,))
                for rows in (place, origin)
            )

            def one(old: Tensor, new: Tensor) -> Tensor:
                return ops.scatter_update(old, at[:, None], ops.take(new, of, axis=0))

            return tree.map_structure(one, old, new)

        return put(old[0], new[0], 1), put(old[1], new[1], samples)

    def _run_verify(
        self, source: Source, numbers: loop.Numbers, table: Any, state: loop.State
    ) -> loop.State:
        chooser = self._chooser(table)
        given = source, numbers, state, self._least(state)
        return drafts.verify(self.backbone.decoder, chooser, *given)

    def _least(self, state: loop.State) -> float:
        return drafts.least(state.index.shape[0], bool(self.sampler.variables))

    def _run_beams(self, *tensors: Any) -> Any:
        return search(self.backbone.decoder, self.sampler, *tensors)

    def _run_states(self, token_ids: Tensor, mask: Tensor, *images: Tensor) -> Tensor:
        seen = {"images": images[0]} if images else {}
        return self.backbone.encoder(token_ids, mask, **seen)

    def _run_score(
        self,
        source: Tensor,
        source_mask: Tensor,
        places: Tensor,
        target: Tensor,
        target_mask: Tensor,
        labels: Tensor,
        weights: Tensor,
        temperature: Tensor,
    ) -> tuple[Tensor, Tensor]:
        decoder = self.backbone.decoder
        source, source_mask = (ops.take(x, places, axis=0) for x in (source, source_mask))
        states = decoder(target, target_mask, source, source_mask)
        log_probs, likeliest = log_likelihoods(decoder, states, labels, temperature)
        return ops.where(weights > 0, log_probs, 0.0), likeliest

    def _run_sampler(
        self, token_ids: Tensor, given: Tensor, context: Any, seeds: Any, *, stop_token_ids: Any
    ) -> Tensor:
        """As `keras_hub.samplers.Sampler.__call__` wants it: beams, contrastive search."""
        decoder, rows = self.backbone.decoder, token_ids.shape[0]
        choosing.set_seeds(self.sampler, seeds)
        index = ops.min(ops.sum(ops.cast(given, "int32"), axis=-1))
        states, cache = decoder.prefill(token_ids, index - 1, context, token_ids.shape[1])

        def next_token(prompt: Tensor, cache: Any, index: Tensor) -> tuple:
            last = ops.slice(prompt, [0, index - 1], [ops.shape(prompt)[0], 1])
            states, new = decoder.step(last, index - 1, cache, context)
            cache = decoder.keep(cache, new, index - 1, ops.ones(last.shape[0], "int32"))
            logits = ops.squeeze(decoder.logits(states), axis=1)
            return logits, ops.squeeze(states, axis=1), cache

        token_ids = self.sampler(
            next=next_token,
            prompt=token_ids,
            cache=cache,
            index=index,
            mask=given,
            stop_token_ids=stop_token_ids,
            hidden_states=states,
            model=self.backbone,
        )
        token_ids = ops.reshape(token_ids, (rows, -1))
        # A search does not say what it saw on its way: its output is read once more.
        states, _ = decoder.prefill(token_ids[:, :-1], 0, context, 1)
        finite = choosing.is_finite(ops.cast(states, "float32"))[:, None]
        return ops.where(finite, token_ids, choosing.NO_TOKEN)


def _check_sampler(sampler: Any, vocabulary_size: int) -> None:
    if isinstance(sampler, SpeculativeSampler):
        raise ValueError(
            "Expected a sampler that asks this model alone. Received: SpeculativeSampler, "
            "which needs a draft model beside it."
        )
    if getattr(sampler, "num_beams", 1) > vocabulary_size:
        raise ValueError(
            f"Expected num_beams of at most the vocabulary, {vocabulary_size}. "
            f"Received: {sampler.num_beams}."
        )


def _cut(
    token_ids: Any,
    mask: Any,
    *more: Any,
    rows: int,
    to: Callable[..., int] = buckets.length,
    **sizes: Any,
) -> list[np.ndarray]:
    """Arrays (B, L) cut where the mask ends, and padded to a size that is seldom a new one."""
    used = np.flatnonzero(np.asarray(mask).any(axis=0))
    size = int(used[-1]) + 1 if len(used) else 1
    length = to(size, **sizes)
    arrays = token_ids, mask, *more
    return [pad(np.asarray(x, "int32")[:, :size], length, rows) for x in arrays]


def _sides(token_ids: Any, mask: Any, images: Any, rows: int, **sizes: Any) -> list[Any]:
    """What the encoder reads, padded to a size that is seldom a new one."""
    count = _rows(max(len(mask), rows))
    sides = _cut(token_ids, mask, rows=count, **sizes)
    if images is not None:
        sides.append(np.pad(images, [(0, count - len(images)), *[(0, 0)] * 4]))
    return list(map(distributed, sides))


def _rows(count: int) -> int:
    return buckets.rows(count, layout.replicas())
