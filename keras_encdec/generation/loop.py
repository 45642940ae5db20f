"""The decode loop: one token after another, until all rows ended.

Knows the state between two tokens and how a sampler is asked. Leaves the model's numbers
to the decoder that it is given and compiling to `keras_encdec.generation.engine`.
"""

from typing import Any, NamedTuple

from keras import ops, tree

from keras_encdec.spec import Tensor


class State(NamedTuple):
    """What stands between two tokens.

    Args:
        token_ids: (R, T) int32, prompts and what was written; R = B * n rows.
        given: (R, T) bool, the tokens of the prompts.
        done: (R,) bool, the rows that ended.
        index: int32, where the next token goes.
        cache: of the decoder.
        seeds: the sampler's random state.
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
    """Runs the decoder over prompts, as far as the shortest of them goes.

    The last token of the shortest prompt is left to the first step of `advance`, which reads
    it and chooses the next. Tokens of longer prompts are read there, too, one by one.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        token_ids: (B, T) int32.
        given: (B, T) bool, the first ones of each row.
        done: (B,) bool, the rows that are there to fill the batch.
        context: of the decoder.
        seeds: of the sampler.
        prompt: P, tokens that the decoder is run over: at least those of the shortest
            prompt but its last; 0 where that is all it has.
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
    """Goes on up to `until` tokens a row, or until all rows ended.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        sampler: `keras_hub.samplers.Sampler` that chooses by probabilities alone.
        context: of the decoder, for B of the B * n rows.
        until: int32.
        temperature: float32, in place of the sampler's own.
        stop_ids: (k,) int32; a row ends with the first one that it writes.
        state: `State`.

    Returns:
        `State`. Rows that ended are left as the prompt was there.
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
        new = ops.where(ops.logical_or(fixed, done), old, ops.cast(new, old.dtype))
        stops = ops.any(new[:, None] == stop_ids[None], axis=-1)
        done = ops.logical_or(done, ops.logical_and(stops, ops.logical_not(fixed)))
        token_ids = ops.slice_update(token_ids, [0, index], new[:, None])
        return token_ids, done, index + 1, cache, seeds

    start = (state.token_ids, state.done, state.index, state.cache, state.seeds)
    token_ids, done, index, cache, seeds = ops.while_loop(goes_on, body, start)
    return State(token_ids, given, done, index, cache, seeds)


def sample(sampler: Any, logits: Tensor, temperature: Tensor, seeds: Any) -> tuple[Tensor, list]:
    """(R,) ids for (R, V) logits, and the next seeds."""
    set_seeds(sampler, seeds)
    probabilities = sampler.compute_probabilities(logits * (sampler.temperature / temperature))
    ids = sampler.get_next_token(probabilities)
    return ids, seeds_of(sampler)


def set_seeds(sampler: Any, seeds: Any) -> None:
    """Puts a random state into a sampler."""
    for variable, value in zip(sampler.variables, seeds, strict=True):
        variable.assign(value)


def seeds_of(sampler: Any) -> list[Tensor]:
    """The random state of a sampler, which its next draws leave as it is."""
    return [ops.copy(variable.value) for variable in sampler.variables]
