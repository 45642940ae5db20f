"""Several tokens a step: drafts copied from what was read and written, and verified at once.

An output often repeats what stands in the input: a corrected text, a quotation, a name. What
followed the last tokens where they stood before is a draft of what follows now. The decoder
reads a draft in one step, and as many tokens as it would have chosen itself are taken
(arXiv 2304.04487, where the reference is the input here). As each
draw follows from its row and place alone, outputs are those of one token a step.

Knows where drafts are found and when they pay. Leaves the step to `keras_encdec.generation.loop`.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_encdec.generation.choosing import choose
from keras_encdec.generation.loop import Numbers, State, is_going, resting, take
from keras_encdec.generation.results import Source
from keras_encdec.layers import cache as caches
from keras_encdec.spec import StackSpec, Tensor

TOKENS = 7  # of a draft at most
_LONGEST, _SHORTEST = 8, 2  # tokens that agree before a draft, as far as they are compared
NOTHING, _BEFORE = -1, -2  # no token of the text; no token before its first
LEAST = 0.5  # tokens that a row's draft must give for a step of eight to pay
_MOST_ROWS = 32
# What a row's drafts were worth: of the last one, and for each that was not tried.
_NEWS, _HOPE = 0.3, 0.02


def fit(spec: StackSpec, length: int, rows: int) -> bool:
    """Whether a decoder can verify drafts, and a step has so few rows that they may pay.

    Args:
        spec: of the decoder.
        length: tokens that its caches have room for.
        rows: of a step.
    """
    fewest = min(caches.room(length, window) for window in spec.windows)
    return fewest > TOKENS and rows <= _MOST_ROWS


def find(source: Tensor, token_ids: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What followed the last tokens of each row, where most of them stood before.

    Of places as good as each other the last one counts, the input's before the output's.

    Args:
        source: (B, S) int32 that the encoder read, below 0 where nothing stood.
        token_ids: (R, T) int32; R / B rows one after another are of one source.
        index: (R,) int32, tokens of each row so far.

    Returns:
        `(drafts (R, 7) int32, lengths (R,) int32)`: 0 where nothing was found.
    """
    rows, length = token_ids.shape
    source = ops.repeat(source, rows // source.shape[0], axis=0)
    place = ops.arange(length, dtype="int32")
    written = ops.where(place < index[:, None], token_ids, NOTHING)
    border = ops.full((rows, 1), NOTHING, "int32")
    room = ops.full((rows, TOKENS), NOTHING, "int32")
    text = ops.concatenate([written, border, source, room], axis=1)
    size = text.shape[1] - TOKENS
    agrees = ops.ones((rows, size), "bool")
    run = ops.zeros((rows, size), "int32")
    for back in range(_LONGEST):
        before = ops.pad(text[:, : size - back], [(0, 0), (back, 0)], constant_values=NOTHING)
        at = index[:, None] - 1 - back
        last = ops.take_along_axis(token_ids, ops.maximum(at, 0), axis=1)
        agrees = ops.logical_and(agrees, before == ops.where(at < 0, _BEFORE, last))
        run = run + ops.cast(agrees, "int32")
    counts = ops.logical_and(run >= _SHORTEST, text[:, 1 : size + 1] >= 0)
    best = ops.where(counts, run * size + ops.arange(size, dtype="int32"), -1)
    start = ops.cast(ops.argmax(best, axis=1), "int32")[:, None] + 1
    drafts = ops.take_along_axis(text, start + ops.arange(TOKENS, dtype="int32"), axis=1)
    follows = ops.cumprod(ops.cast(drafts >= 0, "int32"), axis=1)
    lengths = ops.where(ops.any(counts, axis=1), ops.sum(follows, axis=1), 0)
    return ops.maximum(drafts, 0), ops.cast(lengths, "int32")


def pause(source: Tensor, until: Tensor, least: Tensor) -> Callable[[State], tuple]:
    """For `loop.advance`: stops it where drafts are worth trying.

    Args:
        source: as of `find`.
        until: of `Numbers`.
        least: as of `pay`.
    """

    def pause(state: State) -> tuple[Tensor, State]:
        _, lengths = find(source, state.token_ids, state.index)
        hope = ops.where(lengths > 0, _HOPE, 0.0)  # what is not tried may have got better
        return pay(lengths, until, least, state), state._replace(rate=state.rate + hope)

    return pause


def pay(lengths: Tensor, until: Tensor, least: Tensor, state: State) -> Tensor:
    """Whether drafts of these lengths give `least` tokens to each row that goes on; bool."""
    goes_on = ops.cast(ops.logical_not(resting(state, until)), "float32")
    worth = ops.where(lengths > 0, state.rate, 0.0) * goes_on
    return ops.sum(worth) >= least * ops.maximum(ops.sum(goes_on), 1.0)


def verify(
    decoder: Any, sampler: Any, source: Source, least: Tensor, numbers: Numbers, state: State
) -> State:
    """Generates by drafts as long as they pay.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        sampler: `keras_hub.samplers.Sampler` that chooses each token by its probability.
        source: `Source`.
        least: float32, tokens that a draft must give beside the one that a step gives anyway.
        numbers: `Numbers`.
        state: `State`.
    """
    vocabulary = decoder.spec.vocabulary_size

    def found(state: State) -> tuple[Tensor, Tensor]:
        return find(source.token_ids, state.token_ids, state.index)

    def goes_on(drafts: Tensor, lengths: Tensor, *state: Any) -> Tensor:
        now = State(*state)
        return ops.logical_and(is_going(now, numbers), pay(lengths, numbers.until, least, now))

    def body(drafts: Tensor, lengths: Tensor, *state: Any) -> tuple:
        now = State(*state)
        drafts = ops.minimum(drafts, vocabulary - 1)  # the encoder's may have more words
        last = ops.take_along_axis(now.token_ids, now.index[:, None] - 1, axis=1)
        read = ops.concatenate([last, drafts], axis=1)
        states, new = decoder.step(read, now.index - 1, now.cache, source.context)
        ids = choose(decoder, sampler, states, now.index, numbers.temperature, now.seeds)
        right = ops.logical_and(ids[:, :-1] == drafts, ops.arange(TOKENS) < lengths[:, None])
        count = ops.sum(ops.cumprod(ops.cast(right, "int32"), axis=1), axis=1)
        count = ops.cast(count, "int32")
        rate = (1 - _NEWS) * now.rate + _NEWS * ops.cast(count, "float32")
        now = now._replace(rate=ops.where(lengths > 0, rate, now.rate))
        now = take(decoder, numbers, now, new, ids, count + 1)
        return *found(now), *now

    start = *found(state), *state
    return State(*ops.while_loop(goes_on, body, start)[2:])
