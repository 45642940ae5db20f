"""Several tokens a step: drafts copied from what was read and written, and verified at once.

An output often repeats what stands in the input: a corrected text, a quotation, a name. What
followed the last tokens where they stood before is a draft of what follows now. The decoder
reads a draft in one step, and as many tokens as it would have chosen itself are taken
(arXiv 2304.04487, where the reference is the input here). As each
draw follows from its row and place alone, outputs are those of one token a step.

Knows where drafts are found and when they pay. Leaves the step to `keras_encdec.generation.loop`.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.generation.choosing import choose
from keras_encdec.generation.loop import Numbers, State, is_going, resting, take
from keras_encdec.generation.results import Source
from keras_encdec.layers import cache as caches
from keras_encdec.spec import StackSpec, Tensor

TOKENS = 7  # of a draft at most
_LONGEST, _SHORTEST = 8, 2  # tokens that agree before a draft, as far as they are compared
NOTHING, _BEFORE = -1, -2  # no token of the text; no token before its first
_MOST_ROWS = 32
_LEAST_LENGTH = 64  # tokens of an output at which a program more may pay
_COPIES = 0.6  # the rate of a row that copies, at least
_NEWS = 0.2  # how much of a row's rate the last token of a draft is


def fit(spec: StackSpec, length: int, rows: int) -> bool:
    """Whether a decoder can verify drafts, and a step has so few rows that they may pay.

    Args:
        spec: of the decoder.
        length: tokens that its caches have room for.
        rows: of a step.
    """
    fewest = min(caches.room(length, window) for window in spec.windows)
    return length >= _LEAST_LENGTH and fewest > TOKENS and rows <= _MOST_ROWS


def least(rows: int, draws: bool) -> float:
    """Tokens that drafts must give each row beside the one of any step, for steps of eight to pay.

    Where a step of so few rows takes as long as its weights take to be read, as on a GPU, that
    is one, for what else a draft costs. A CPU is soon at its products: on JAX a step of eight
    took 1.6, 2.7 and 4.1 steps of one there with 1, 4 and 32 rows, and up to two more where
    tokens are drawn (LOG.md).

    Args:
        rows: of a step.
        draws: whether tokens are drawn.
    """
    if keras.backend.backend() != "jax" or layout.platform() != "cpu":
        return 1.0
    return 1.0 + math.log2(rows) / 2 + draws


def find(source: Tensor, token_ids: Tensor, index: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """What followed the last tokens of each row, where most of them stood before.

    A row that copies may change a word: its last token then stands nowhere, and what followed
    the token in its place is a draft, too. It counts half as much for each token that agrees.
    Of places as good as each other those count that have the most to follow, and of these the
    last one, the input's before the output's.

    Args:
        source: (B, S) int32 that the encoder read, below 0 where nothing stood.
        token_ids: (R, T) int32; R / B rows one after another are of one source.
        index: (R,) int32, tokens of each row so far.
        rate: (R,) float32, of `State`; of a row that copies, one token that agrees is enough,
            such as the first one behind a word that was changed.

    Returns:
        `(drafts (R, 7) int32, lengths (R,) int32)`: 0 where nothing was found.
    """
    rows, length = token_ids.shape
    source = ops.repeat(source, rows // source.shape[0], axis=0)
    written = ops.where(ops.arange(length) < index[:, None], token_ids, NOTHING)
    border = ops.full((rows, 1), NOTHING, "int32")
    room = ops.full((rows, TOKENS), NOTHING, "int32")
    text = ops.concatenate([written, border, source, room], axis=1)
    size = text.shape[1] - TOKENS
    agrees = _agreement(text[:, :size], token_ids, index)
    run, changed = _run(agrees[:-1]), _run(agrees[1:])  # up to a token, or to the one before it
    follows = ops.ones(run.shape, "bool")
    after = ops.zeros(run.shape, "int32")
    for ahead in range(1, TOKENS + 1):
        follows = ops.logical_and(follows, text[:, ahead : ahead + size] >= 0)
        after = after + ops.cast(follows, "int32")
    copies = (rate >= _COPIES)[:, None]
    score = ops.where(run >= ops.where(copies, 1, _SHORTEST), 2 * run, 0)
    changed = ops.where(ops.logical_and(copies, changed >= _SHORTEST), changed, 0)
    score = ops.maximum(score, changed)
    counts = ops.logical_and(score > 0, after > 0)
    place = ops.arange(size, dtype="int32")
    rank = ops.where(counts, (score * (TOKENS + 1) + after) * size + place, -1)
    best = ops.cast(ops.argmax(rank, axis=1), "int32")[:, None]
    lengths = ops.squeeze(ops.take_along_axis(ops.where(counts, after, 0), best, axis=1), 1)
    drafts = ops.take_along_axis(text, best + 1 + ops.arange(TOKENS, dtype="int32"), axis=1)
    return ops.maximum(drafts, 0), lengths


def _agreement(text: Tensor, token_ids: Tensor, index: Tensor) -> list[Tensor]:
    """(R, L) bool for each of the last tokens of a row: whether it stands so far before each."""
    size, found = text.shape[1], []
    for back in range(_LONGEST + 1):
        before = ops.pad(text[:, : size - back], [(0, 0), (back, 0)], constant_values=NOTHING)
        at = index[:, None] - 1 - back
        last = ops.take_along_axis(token_ids, ops.maximum(at, 0), axis=1)
        found.append(before == ops.where(at < 0, _BEFORE, last))
    return found


def _run(agrees: list[Tensor]) -> Tensor:
    """(R, L) int32: how many agree in a row, from the first on."""
    all_so_far, run = agrees[0], ops.cast(agrees[0], "int32")
    for one in agrees[1:]:
        all_so_far = ops.logical_and(all_so_far, one)
        run = run + ops.cast(all_so_far, "int32")
    return run


def pause(source: Tensor, until: Tensor, worth: float) -> Callable:
    """For `loop.advance`: stops it where drafts are worth reading.

    Until then what would have been drafted is compared with what is chosen, for nothing.

    Args:
        source: as of `find`.
        until: of `Numbers`.
        worth: from `least`.
    """

    def pause(state: State, expected: Tensor | None) -> tuple[Tensor, Tensor, State]:
        if expected is not None:
            last = ops.take_along_axis(state.token_ids, state.index[:, None] - 1, axis=1)
            rate = _seen(state.rate, ops.squeeze(last, 1) == expected)
            state = state._replace(rate=ops.where(expected >= 0, rate, state.rate))
        drafts, lengths = find(source, state.token_ids, state.index, state.rate)
        expected = ops.where(lengths > 0, drafts[:, 0], NOTHING)
        return pay(lengths, until, state, worth), expected, state

    return pause


def _seen(rate: Tensor, right: Tensor) -> Tensor:
    """How often a draft's token is right, when one more was seen."""
    return rate + _NEWS * (ops.cast(right, "float32") - rate)


def pay(lengths: Tensor, until: Tensor, state: State, worth: float | Tensor) -> Tensor:
    """Whether drafts of these lengths give `worth` tokens to each row that goes on; bool."""
    goes_on = ops.cast(ops.logical_not(resting(state, until)), "float32")
    each = ops.minimum(state.rate, 0.99)
    given = each * (1 - ops.power(each, ops.cast(lengths, "float32"))) / (1 - each)
    return ops.sum(given * goes_on) >= worth * ops.maximum(ops.sum(goes_on), 1.0)


def verify(
    decoder: Any, sampler: Any, source: Source, numbers: Numbers, state: State, worth: float
) -> State:
    """Generates by drafts as long as they pay.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        sampler: `keras_hub.samplers.Sampler` that chooses each token by its probability.
        source: `Source`.
        numbers: `Numbers`.
        state: `State`.
        worth: from `least`.
    """
    vocabulary = decoder.spec.vocabulary_size

    def found(state: State) -> tuple[Tensor, Tensor]:
        return find(source.token_ids, state.token_ids, state.index, state.rate)

    def goes_on(drafts: Tensor, lengths: Tensor, *state: Any) -> Tensor:
        now = State(*state)
        return ops.logical_and(is_going(now, numbers), pay(lengths, numbers.until, now, worth))

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
        rate = now.rate
        for i in range(TOKENS):  # up to and with the first that was wrong
            was_seen = ops.logical_and(i <= count, i < lengths)
            rate = ops.where(was_seen, _seen(rate, i < count), rate)
        now = now._replace(rate=rate)
        now = take(decoder, numbers, now, new, ids, count + 1)
        return *found(now), *now

    start = *found(state), *state
    return State(*ops.while_loop(goes_on, body, start)[2:])
