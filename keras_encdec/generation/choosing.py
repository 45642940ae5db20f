"""From decoder states to tokens: what a sampler is asked, and what it draws with.

Knows that a draw follows from a seed of the row and from the token's place alone: neither from
the other rows, nor from how many tokens a step has. Leaves probabilities to the sampler.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from keras_hub.samplers import GreedySampler

from keras_encdec.generation.screen import Table, argmax
from keras_encdec.spec import Tensor

NO_TOKEN = -1  # in place of one, where logits are NaN or Inf; the row ends there


class Screened(NamedTuple):
    """A greedy sampler that mostly reads an int8 table in place of the output matrix.

    Args:
        sampler: `keras_hub.samplers.GreedySampler`.
        table: of `keras_encdec.generation.screen`.
    """

    sampler: GreedySampler
    table: Table


def choose(
    decoder: Any,
    sampler: Any,
    states: Tensor,
    index: Tensor,
    temperature: Tensor,
    seeds: list[Tensor],
) -> Tensor:
    """(R, T) int32, the token that follows each of T.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        sampler: `keras_hub.samplers.Sampler` that chooses each token by its probability, or
            `Screened`, which gives the same tokens as the sampler in it.
        states: (R, T, D) of the decoder.
        index: (R,) int32, the place of the first token that is chosen.
        temperature: float32, in place of the sampler's own.
        seeds: (R, 2) for each of the sampler's variables, from `row_seeds`.
    """
    if isinstance(sampler, Screened):
        more = states, index, temperature, seeds
        return _screened(decoder, sampler, states, lambda: choose(decoder, sampler.sampler, *more))
    rows, count = states.shape[:2]
    logits = ops.cast(decoder.logits(states), "float32")
    logits = ops.reshape(logits, (rows * count, -1))
    places = index[:, None] + ops.arange(count, dtype="int32")
    found = ops.cast(_draw(sampler, logits, temperature, _at(seeds, places)), "int32")
    found = ops.where(is_finite(logits), found, NO_TOKEN)
    return ops.reshape(found, (rows, count))


def _screened(
    decoder: Any, sampler: Screened, states: Tensor, whole: Callable[[], Tensor]
) -> Tensor:
    """As `whole`, which is asked where the table does not say it all."""
    embedding, shape = decoder.embedding, states.shape
    ids = argmax(
        ops.reshape(states, (-1, shape[-1])),
        sampler.table,
        ops.convert_to_tensor(embedding.embeddings),
        embedding.logit_soft_cap,
        lambda: ops.reshape(whole(), (-1,)),
    )
    return ops.reshape(ids, shape[:2])


def is_finite(x: Tensor) -> Tensor:
    """(R,) bool for (R, ..., V), whether a row of numbers holds neither NaN nor Inf."""
    return ops.isfinite(ops.sum(x, axis=tuple(range(1, len(x.shape)))))


def _draw(sampler: Any, logits: Tensor, temperature: Tensor, seeds: list[Tensor]) -> Tensor:
    """(N,) ids for (N, V) logits, each drawn with its own of the (N, 2) seeds.

    The sampler's own random state, which all threads share, is neither read nor moved.
    """
    if type(sampler) is GreedySampler:  # whose softmax would read V once more, and round
        return ops.argmax(logits, axis=-1)
    logits = logits * (sampler.temperature / temperature)
    if not seeds:
        return _next(sampler, logits, seeds)

    def one(row: tuple[Tensor, list[Tensor]]) -> Tensor:
        return _next(sampler, row[0][None], row[1])[0]

    each = ops.vectorized_map if keras.backend.backend() == "jax" else ops.map
    return each(one, (logits, seeds))


def _next(sampler: Any, logits: Tensor, seeds: list[Tensor]) -> Tensor:
    mapping = list(zip(sampler.variables, seeds, strict=True))
    with keras.StatelessScope(mapping, initialize_variables=False):
        return sampler.get_next_token(sampler.compute_probabilities(logits))


def _at(seeds: list[Tensor], places: Tensor) -> list[Tensor]:
    """(R * T, 2) seeds of tokens at places (R, T): the row's, the second word moved on."""

    def moved(seed: Tensor) -> Tensor:
        first = ops.broadcast_to(seed[:, :1], places.shape)
        second = seed[:, 1:] + ops.cast(places, seed.dtype)
        return ops.reshape(ops.stack([first, second], axis=-1), (-1, 2))

    return [moved(seed) for seed in seeds]


def row_seeds(sampler: Any, seed: Sequence[int], rows: Sequence[int], samples: int) -> list:
    """(R, 2) for each of a sampler's variables: what R rows draw with.

    Args:
        sampler: `keras_hub.samplers.Sampler`.
        seed: of a call, one number or several.
        rows: numbers of the inputs in that call.
        samples: n, rows of each, one after another.
    """
    words = [
        np.random.SeedSequence([*seed, row, sample]).generate_state(2)
        for row in (rows if sampler.variables else ())
        for sample in range(samples)
    ]
    # PyTorch's words have 31 bits; the second has room for a place to be added.
    return [(np.array(words) >> 2).astype(variable.dtype) for variable in sampler.variables]


def set_seeds(sampler: Any, seeds: list) -> None:
    """Makes `seeds` a sampler's own random state."""
    for variable, value in zip(sampler.variables, seeds, strict=True):
        variable.assign(value)


def seeds_of(sampler: Any) -> list[Tensor]:
    """A sampler's own random state, as tensors that stay when it draws."""
    return [ops.copy(variable.value) for variable in sampler.variables]
