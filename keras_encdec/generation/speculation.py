"""A small pair that drafts for a large one.

The draft model writes a few tokens, one after another; the decoder reads them in one step and
takes those that it would have chosen itself (speculative decoding, arXiv 2211.17192). Both
choose with the same noise, so that they agree wherever their probabilities are alike, and
outputs are those of the large pair alone.

Knows the draft model's cache: what it wrote of a draft goes, what was taken is read once more.
Leaves what is taken to `keras_encdec.generation.loop`.
"""

from typing import Any

from keras import ops

from keras_encdec.generation.choosing import choose
from keras_encdec.generation.loop import Numbers, State, is_going, take
from keras_encdec.spec import Tensor

TOKENS = 4  # of a draft


def advance(
    decoders: tuple[Any, Any],
    sampler: Any,
    contexts: tuple[Any, Any],
    numbers: Numbers,
    states: tuple[State, State],
) -> tuple[State, State]:
    """Generates until enough rows have ended or are full.

    Args:
        decoders: the one that decides, and the one that drafts.
        sampler: `keras_hub.samplers.Sampler` that chooses each token by its probability.
        contexts: of each decoder.
        numbers: `Numbers`.
        states: `State` of each decoder; of the second, the cache alone counts.
    """
    fields = len(State._fields)

    def goes_on(*parts: Any) -> Tensor:
        return is_going(State(*parts[:fields]), numbers)

    def body(*parts: Any) -> tuple:
        now, small = State(*parts[:fields]), State(*parts[fields:])
        last = ops.take_along_axis(now.token_ids, now.index[:, None] - 1, axis=1)
        read = _draft(decoders[1], sampler, contexts[1], numbers, now, small.cache, last)
        states, new = decoders[0].step(read, now.index - 1, now.cache, contexts[0])
        ids = choose(decoders[0], sampler, states, now.index, numbers.temperature, now.seeds)
        right = ops.cumprod(ops.cast(ids[:, :-1] == read[:, 1:], "int32"), axis=1)
        after = take(decoders[0], numbers, now, new, ids, 1 + ops.sum(right, axis=1))
        _, new = decoders[1].step(read, now.index - 1, small.cache, contexts[1])
        count = after.index - now.index
        cache = decoders[1].keep(small.cache, new, now.index - 1, count)
        return *after, *small._replace(cache=cache)

    found = ops.while_loop(goes_on, body, (*states[0], *states[1]))
    return State(*found[:fields]), State(*found[fields:])


def _draft(
    decoder: Any,
    sampler: Any,
    context: Any,
    numbers: Numbers,
    state: State,
    cache: list,
    last: Tensor,
) -> Tensor:
    """(R, 1 + 4) int32: the last token of each row, and what the draft model says follows."""
    read, every = last, ops.ones_like(state.index)
    for i in range(TOKENS):
        index = state.index + i
        states, new = decoder.step(read[:, -1:], index - 1, cache, context)
        cache = decoder.keep(cache, new, index - 1, every)
        ids = choose(decoder, sampler, states, index, numbers.temperature, state.seeds)
        read = ops.concatenate([read, ops.maximum(ids, 0)], axis=1)
    return read
