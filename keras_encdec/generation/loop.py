"""The decode loop: one token after another, until all rows ended.

Knows the loop's state, in which each row is at a place of its own. Leaves the model's numbers
to the decoder that it is given, the choice of a token to `keras_encdec.generation.choosing`,
and compiling to `keras_encdec.generation.engine`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops, tree

from keras_encdec.generation.choosing import NO_TOKEN, choose
from keras_encdec.spec import Tensor


class Numbers(NamedTuple):
    """What a call asks of the loop; no program is compiled anew for other ones.

    Args:
        until: (R,) int32, tokens of each row at most.
        temperature: float32, in place of the sampler's own.
        stop_ids: (k,) int32; a row ends with the first of them that is generated.
        spare: int32; the loop ends when so many rows rest.
    """

    until: Any
    temperature: Any
    stop_ids: Any
    spare: Any


class State(NamedTuple):
    """What the decode loop carries from one token to the next.

    Args:
        token_ids: (R, T) int32, prompts and generated tokens; R = B * n rows.
        index: (R,) int32, the place of each row's next token.
        done: (R,) bool, the rows that ended.
        cache: the decoder's keys and values of all but each row's last token.
        seeds: what the rows draw with, from `choosing.row_seeds`.
        rate: (R,) float32, how often lately a draft's token was the right one.
    """

    token_ids: Any
    index: Any
    done: Any
    cache: list
    seeds: list
    rate: Any


def begin(
    decoder: Any,
    token_ids: Tensor,
    given: Tensor,
    done: Tensor,
    context: Any,
    seeds: list,
    *,
    prompt: int,
    samples: int = 1,
    together: bool = False,
) -> State:
    """Fills the decoder's cache from the prompts, each row up to its last token but one.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        token_ids: (B, T) int32.
        given: (B, T) bool, the first ones of each row.
        done: (B,) bool, the rows that are there to fill the batch.
        context: of the decoder.
        seeds: of the B * n rows.
        prompt: P, tokens that the decoder reads at once: at least all but the last of the
            longest prompt; 0 if that has one token.
        samples: n, rows to make of each.
        together: leave all rows at the place of the shortest prompt's end, for a search that
            keeps them in step.
    """
    length = token_ids.shape[1]
    index = ops.sum(ops.cast(given, "int32"), axis=-1)
    index = ops.broadcast_to(ops.min(index), index.shape) if together else index
    if prompt:
        _, cache = decoder.prefill(token_ids[:, :prompt], index - 1, context, length)
    else:
        cache = decoder.empty_cache(*token_ids.shape)
    rows = token_ids, index, done, cache
    if samples > 1:
        rows = tree.map_structure(lambda x: ops.repeat(x, samples, axis=0), rows)
    return State(*rows, seeds, ops.full(rows[1].shape, 0.5, "float32"))


def resting(state: State, until: Tensor) -> Tensor:
    """(R,) bool, the rows that ended or are `until` (R,) tokens long."""
    return ops.logical_or(state.done, state.index >= until)


def is_going(state: State, numbers: Numbers) -> Tensor:
    """Whether the rows that rest are too few for the loop to end; bool."""
    return ops.sum(ops.cast(resting(state, numbers.until), "int32")) < numbers.spare


def advance(
    decoder: Any,
    sampler: Any,
    context: Any,
    numbers: Numbers,
    state: State,
    pause: Callable[[State, Tensor | None], tuple[Tensor, Tensor, State]] | None = None,
) -> State:
    """Generates tokens until enough rows have ended or are full.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        sampler: `keras_hub.samplers.Sampler` that chooses each token by its probability.
        context: of the decoder, for B of the B * n rows.
        numbers: `Numbers`.
        state: `State`.
        pause: called before the first token and after each, with the state and what it
            returned in the middle; returns whether to stop there, anything, and the state.

    Returns:
        `State`. Behind its end, a row keeps the ids that `token_ids` came with.
    """

    def goes_on(paused: Tensor, kept: Tensor, *state: Any) -> Tensor:
        return ops.logical_and(is_going(State(*state), numbers), ops.logical_not(paused))

    def body(paused: Tensor, kept: Tensor, *state: Any) -> tuple:
        now = State(*state)
        last = ops.take_along_axis(now.token_ids, now.index[:, None] - 1, axis=1)
        states, new = decoder.step(last, now.index - 1, now.cache, context)
        ids = choose(decoder, sampler, states, now.index, numbers.temperature, now.seeds)
        now = take(decoder, numbers, now, new, ids, ops.ones_like(now.index))
        if pause is not None:
            paused, kept, now = pause(now, kept)
        return paused, kept, *now

    never = ops.zeros((), "bool")
    paused, kept, state = (never, never, state) if pause is None else pause(state, None)
    return State(*ops.while_loop(goes_on, body, (paused, kept, *state))[2:])


def take(
    decoder: Any, numbers: Numbers, state: State, new: list, ids: Tensor, count: Tensor
) -> State:
    """The state with the tokens of a step.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        numbers: `Numbers`.
        state: `State` before the step.
        new: keys and values of the T tokens that the decoder read, from each row's last on.
        ids: (R, T) int32, what follows each of them.
        count: (R,) int32, how many of `ids` are right.
    """
    step = ops.arange(ids.shape[1], dtype="int32")
    count = ops.minimum(count, numbers.until - state.index)
    count = ops.where(resting(state, numbers.until), 0, count)
    stops = ops.any(ids[..., None] == numbers.stop_ids, axis=-1)
    stops = ops.logical_and(ops.logical_or(stops, ids == NO_TOKEN), step < count[:, None])
    stopped = ops.any(stops, axis=-1)
    count = ops.where(stopped, ops.cast(ops.argmax(stops, axis=-1), "int32") + 1, count)
    cache = decoder.keep(state.cache, new, state.index - 1, count)
    at = ops.arange(state.token_ids.shape[1], dtype="int32") - state.index[:, None]
    written = ops.take_along_axis(ids, ops.clip(at, 0, ids.shape[1] - 1), axis=1)
    is_new = ops.logical_and(at >= 0, at < count[:, None])
    token_ids = ops.where(is_new, written, state.token_ids)
    done = ops.logical_or(state.done, stopped)
    index = state.index + count
    return state._replace(token_ids=token_ids, index=index, done=done, cache=cache)
