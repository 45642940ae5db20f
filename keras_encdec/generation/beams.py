"""Beam search: the likeliest texts for each input, for a whole batch at once.

Knows which hypotheses go on and which have ended. Leaves the model's numbers to the decoder
that it is given and prompts to `keras_encdec.generation.loop`.
"""

from typing import Any, NamedTuple

import keras
import keras_hub
from keras import ops

from keras_encdec import check
from keras_encdec.generation.choosing import NO_TOKEN, is_finite
from keras_encdec.generation.loop import Numbers, State
from keras_encdec.spec import Tensor

_NEVER = -1e9


@keras.saving.register_keras_serializable(package="keras_encdec")
class BeamSearch(keras_hub.samplers.Sampler):
    """Keeps the K likeliest beginnings of each row, for `lm.compile(sampler=...)`.

    A hypothesis to which an end token is added while it is among the K best has ended; a
    row has ended with its Kth. Those still going on at `max_length` count as well. Ended
    ones are ranked by their log-likelihood over ((5 + tokens) / 6) ** length_penalty
    (arXiv 1609.08144, equation 14; `brevity_penalty` in t5x/decoding.py), with tokens
    counted from the end of the prompt to the end token. All rows share one loop, and
    the beams of a row one set of cross-attention keys. One beam is greedy search.

    Args:
        num_beams: K; at most the vocabulary.
        length_penalty: 0 for none; 0.6 as in T5X. Larger ones prefer longer texts.

    Raises:
        ValueError: if `num_beams` is below 1, or `length_penalty` is NaN or Inf.

    Example:
        >>> lm.compile(sampler=keras_encdec.generation.BeamSearch(4))
        >>> texts, scores = lm.decode(lm.encode("A text."), num_samples=4, return_scores=True)
    """

    def __init__(self, num_beams: int = 4, length_penalty: float = 0.6):
        super().__init__()
        self.num_beams = check.whole("num_beams", num_beams)
        self.length_penalty = check.real("length_penalty", length_penalty)

    def get_config(self) -> dict[str, Any]:
        return {"num_beams": self.num_beams, "length_penalty": self.length_penalty}


class Beams(NamedTuple):
    """Hypotheses of each row, the best first.

    Args:
        token_ids: (B, K, T) int32, the prompt among them.
        scores: (B, K) float32, log-likelihood of what was generated, end token included;
            -1e9 where a row has fewer than K hypotheses.
        ranks: (B, K) float32, what they are ordered by.
    """

    token_ids: Any
    scores: Any
    ranks: Any


def search(
    decoder: Any, sampler: BeamSearch, context: Any, numbers: Numbers, given: Tensor, state: State
) -> Beams:
    """Generates the best hypotheses of each row, from its prompt to its end.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        sampler: `BeamSearch`.
        context: of the decoder, B rows.
        numbers: `Numbers`, of all rows alike.
        given: (B, T) bool, the tokens of the prompts.
        state: `State` of B rows, all of them at one place.
    """
    width, rows = sampler.num_beams, state.token_ids.shape[0]
    until, stop_ids = numbers.until[0], numbers.stop_ids
    prompts = ops.sum(ops.cast(given, "int32"), axis=-1, keepdims=True)

    def rank(scores: Tensor, length: Tensor) -> Tensor:
        written = ops.cast(length - prompts, "float32")
        return scores / ((5 + written) / 6) ** sampler.length_penalty

    def is_done(ended: Beams) -> Tensor:
        return ops.logical_or(state.done, ops.all(ended.ranks > _NEVER / 2, axis=-1))

    def goes_on(index: Tensor, cache: Any, live: Beams, ended: Beams) -> Tensor:
        return ops.logical_and(index < until, ops.logical_not(ops.all(is_done(ended))))

    def body(index: Tensor, cache: Any, live: Beams, ended: Beams) -> tuple:
        last = ops.reshape(ops.slice(live.token_ids, [0, 0, index - 1], [rows, width, 1]), (-1, 1))
        states, new = decoder.step(last, index - 1, cache, context)
        cache = decoder.keep(cache, new, index - 1, ops.ones(rows * width, "int32"))
        logits = ops.cast(ops.squeeze(decoder.logits(states), 1), "float32")
        is_given, given_ids = (
            ops.slice(x, [0, index], [rows, 1]) for x in (given, state.token_ids)
        )
        candidates = live.scores, logits, is_given, given_ids, stop_ids.shape[0]
        parents, tokens, scores = _candidates(*candidates)
        ids = ops.take_along_axis(live.token_ids, parents[..., None], axis=1)
        ids = ops.slice_update(ids, [0, 0, index], tokens[..., None])

        stops = ops.any(tokens[..., None] == stop_ids, axis=-1)
        stops = ops.logical_and(stops, ops.logical_not(is_given))
        counts = ops.logical_and(stops, ops.arange(stops.shape[1]) < width)
        counts = ops.logical_and(counts, ops.logical_not(is_done(ended))[:, None])
        counts = ops.logical_and(counts, scores > _NEVER / 2)
        ranks = ops.where(counts, rank(scores, index + 1), _NEVER)
        ended = _best(width, ended, Beams(ids, scores, ranks))[0]
        scores = ops.where(stops, _NEVER, scores)
        live, chosen = _best(width, Beams(ids, scores, scores))
        cache = _of_parents(cache, ops.take_along_axis(parents, chosen, axis=1))
        return index + 1, cache, live, ended

    ids = ops.repeat(state.token_ids[:, None], width, axis=1)
    nothing = ops.full((rows, width), _NEVER, "float32")
    first = ops.where(ops.arange(width) == 0, 0.0, nothing)
    cache = [tuple(ops.repeat(x, width, axis=0) for x in layer) for layer in state.cache]
    start = state.index[0], cache, Beams(ids, first, first), Beams(ids, nothing, nothing)
    _, _, live, ended = ops.while_loop(goes_on, body, start)
    ranks = ops.where(is_done(ended)[:, None], _NEVER, rank(live.scores, until))
    return _best(width, ended, live._replace(ranks=ranks))[0]


def _of_parents(cache: list, parents: Tensor) -> list:
    """The caches of B * K beams when each goes on from one of its row's, (B, K)."""
    rows, width = parents.shape
    parents = ops.reshape(parents + width * ops.arange(rows, dtype="int32")[:, None], (-1,))
    return [tuple(ops.take(x, parents, axis=0) for x in layer) for layer in cache]


def _candidates(
    scores: Tensor, logits: Tensor, given: Tensor, token_ids: Tensor, stops: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest continuations of each row, so many that K of them go on.

    Args:
        scores: (B, K) of the beams.
        logits: (B * K, V).
        given: (B, 1) bool, whether the next token is the prompt's.
        token_ids: (B, 1), that token.
        stops: m, ids that end a text.

    Returns:
        `(parents, tokens, scores)`, each (B, K * (1 + m)), the best first.
    """
    rows, width = scores.shape
    log_probs, tokens = ops.top_k(
        ops.log_softmax(logits), min(width * (1 + stops), logits.shape[1])
    )
    each = tokens.shape[1]
    log_probs, tokens = (ops.reshape(x, (rows, width, each)) for x in (log_probs, tokens))
    finite = ops.reshape(is_finite(logits), (rows, width, 1))
    tokens = ops.where(finite, ops.cast(tokens, "int32"), NO_TOKEN)
    log_probs = ops.where(finite, log_probs, 0.0)
    given, token_ids = given[..., None], token_ids[..., None]
    certain = ops.where(ops.arange(each) == 0, 0.0, _NEVER)
    log_probs = ops.where(given, certain, log_probs)
    tokens = ops.where(given, token_ids, tokens)
    total = ops.reshape(scores[..., None] + log_probs, (rows, -1))
    total, chosen = ops.top_k(total, min(width * (1 + stops), width * each))
    chosen = ops.cast(chosen, "int32")
    tokens = ops.take_along_axis(ops.reshape(tokens, (rows, -1)), chosen, axis=1)
    return chosen // each, tokens, total


def _best(count: int, *several: Beams) -> tuple[Beams, Tensor]:
    """The `count` of highest rank among `Beams`, and where in all of them they stood."""
    every = Beams(*(ops.concatenate(parts, axis=1) for parts in zip(*several, strict=True)))
    ranks, chosen = ops.top_k(every.ranks, count)
    ids = ops.take_along_axis(every.token_ids, chosen[..., None], axis=1)
    return Beams(ids, ops.take_along_axis(every.scores, chosen, axis=1), ranks), chosen
