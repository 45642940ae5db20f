"""The decode loop: one token after another, until all rows ended.

Knows the loop's state and how a sampler is asked for a token. Leaves the model's numbers
to the decoder that it is given and compiling to `keras_encdec.generation.engine`.
"""

from typing import Any, NamedTuple

import keras
from keras import ops, tree

from keras_encdec.spec import Tensor

NO_TOKEN = -1  # in place of one, where logits are NaN or Inf; the row ends there


class State(NamedTuple):
    """What the decode loop carries from one token to the next.

    Args:
        token_ids: (R, T) int32, prompts and generated tokens; R = B * n rows.
        given: (R, T) bool, the tokens of the prompts.
        done: (R,) bool, the rows that ended.
        index: int32, the place of the next token.
        cache: the decoder's keys and values.
        seeds: the random state that the next token is drawn with.
    """

    token_ids: Any
    given: Any
    done: Any
    index: Any
    cache: list
    seeds: list


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
) -> State:
    """Fills the decoder's cache from the prompts, all rows up to one and the same place.

    That place is the last token of the shortest prompt. `advance` goes on from there: its
    first step feeds that token to the decoder and the sampler chooses the next; where a
    longer prompt already has a token, the loop keeps the prompt's.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        token_ids: (B, T) int32.
        given: (B, T) bool, the first ones of each row.
        done: (B,) bool, the rows that are there to fill the batch.
        context: of the decoder.
        seeds: the random state to begin with.
        prompt: P, tokens that the decoder reads at once: at least all but the last of the
            shortest prompt; 0 if that has one token.
        samples: n, rows to make of each.
    """
    length = token_ids.shape[1]
    index = ops.min(ops.sum(ops.cast(given, "int32"), axis=-1))
    if prompt:
        _, cache = decoder.prefill(token_ids[:, :prompt], index - 1, context, length)
    else:
        cache = decoder.empty_cache(*token_ids.shape)
    rows = token_ids, given, done, cache
    if samples > 1:
        rows = tree.map_structure(lambda x: ops.repeat(x, samples, axis=0), rows)
    token_ids, given, done, cache = rows
    return State(token_ids, given, done, index, cache, seeds)


def advance(
    decoder: Any,
    sampler: Any,
    context: Any,
    until: Tensor,
    temperature: Tensor,
    stop_ids: Tensor,
    state: State,
) -> State:
    """Generates tokens until rows are `until` tokens long, or all have ended.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        sampler: `keras_hub.samplers.Sampler` that chooses each token by its probability.
        context: of the decoder, for B of the B * n rows.
        until: int32.
        temperature: float32, in place of the sampler's own.
        stop_ids: (k,) int32; a row ends with the first of them that is generated.
        state: `State`.

    Returns:
        `State`. Behind its end, a row keeps the ids that `token_ids` came with.
    """
    given, rows = state.given, state.token_ids.shape[0]

    def goes_on(token_ids: Tensor, done: Tensor, index: Tensor, cache: Any, seeds: Any) -> Tensor:
        return ops.logical_and(index < until, ops.logical_not(ops.all(done)))

    def body(token_ids: Tensor, done: Tensor, index: Tensor, cache: Any, seeds: Any) -> tuple:
        last = ops.slice(token_ids, [0, index - 1], [rows, 1])
        states, cache = decoder.step(last, index - 1, cache, context)
        logits = ops.cast(ops.squeeze(decoder.logits(states), 1), "float32")
        new, seeds = sample(sampler, logits, temperature, seeds)
        old = ops.squeeze(ops.slice(token_ids, [0, index], [rows, 1]), 1)
        fixed = ops.squeeze(ops.slice(given, [0, index], [rows, 1]), 1)
        new = ops.where(is_finite(logits), ops.cast(new, old.dtype), NO_TOKEN)
        new = ops.where(ops.logical_or(fixed, done), old, new)
        stops = ops.any(new[:, None] == stop_ids[None], axis=-1)
        stops = ops.logical_or(stops, new == NO_TOKEN)
        done = ops.logical_or(done, ops.logical_and(stops, ops.logical_not(fixed)))
        token_ids = ops.slice_update(token_ids, [0, index], new[:, None])
        return token_ids, done, index + 1, cache, seeds

    start = (state.token_ids, state.done, state.index, state.cache, state.seeds)
    token_ids, done, index, cache, seeds = ops.while_loop(goes_on, body, start)
    return State(token_ids, given, done, index, cache, seeds)


def is_finite(x: Tensor) -> Tensor:
    """(R,) bool for (R, ..., V), whether a row of numbers holds neither NaN nor Inf."""
    return ops.isfinite(ops.sum(x, axis=tuple(range(1, len(x.shape)))))


def sample(sampler: Any, logits: Tensor, temperature: Tensor, seeds: list) -> tuple[Tensor, list]:
    """(R,) ids for (R, V) logits, and the next seeds.

    The sampler draws from `seeds`; its own random state, which all threads share, is
    neither read nor moved.
    """
    mapping = list(zip(sampler.variables, seeds, strict=True))
    with keras.StatelessScope(mapping, initialize_variables=False) as scope:
        probabilities = sampler.compute_probabilities(logits * (sampler.temperature / temperature))
        ids = sampler.get_next_token(probabilities)
    return ids, [scope.get_current_value(variable) for variable in sampler.variables]


def set_seeds(sampler: Any, seeds: list) -> None:
    """Makes `seeds` a sampler's own random state."""
    for variable, value in zip(sampler.variables, seeds, strict=True):
        variable.assign(value)


def seeds_of(sampler: Any) -> list[Tensor]:
    """A sampler's own random state, as tensors that stay when it draws."""
    return [ops.copy(variable.value) for variable in sampler.variables]
