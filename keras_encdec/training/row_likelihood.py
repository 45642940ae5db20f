"""How likely each row of a batch is, without its logits, and the gradient of any function of that.

Knows that a first pass gives values and the backward pass goes over the chunks again, as what a
row counts is known only then. Leaves chunks and devices to `keras_encdec.training.loss`.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.chunk import Chunk
from keras_encdec.training.loss import CHUNK_TOKENS, Loop, counted, output_matrix


class RowSums(NamedTuple):
    """Sums over the tokens of each row, each times the token's weight; (R,) float32.

    Args:
        log_probs: log-probabilities of the labels, in nats; they alone have a gradient.
        correct: tokens whose label has the largest logit.
        weight: the weights themselves.
    """

    log_probs: Tensor
    correct: Tensor
    weight: Tensor


def row_log_likelihoods(
    states: Tensor,
    embedding: Any,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    training: bool = True,
    chunk_tokens: int = CHUNK_TOKENS,
) -> RowSums:
    """Sums of each row.

    Args:
        states: (R, T, D) of the decoder.
        embedding: the `keras.layers.ReversibleEmbedding` that reads them out.
        labels: (R, T) int; what is none of the vocabulary, such as -100, counts nothing.
        weights: (R, T), or None: every label counts 1.
        training: whether the gradient will be asked for.
        chunk_tokens: as of `FusedCrossEntropy`.
    """
    tokens = counted(labels, weights, embedding.input_dim)
    chunk = Chunk(embedding.logit_soft_cap, 0.0, 0.0, by_row=True)
    loop, matrix = Loop.over(states, embedding, chunk, chunk_tokens), output_matrix(embedding)
    if not training:
        sums = loop.values(states, matrix, tokens)
    elif embedding.trainable_variables:
        sums = _differentiable(loop, tokens)(states, matrix)
    else:
        sums = _differentiable(loop, tokens, matrix)(states)
    _, nll, correct, weight = ops.unstack(sums, 4)
    return RowSums(-nll, correct, weight)


def _differentiable(loop: Loop, tokens: list[Tensor], matrix: Tensor | None = None) -> Any:
    """A function of states, and of the matrix unless it is given here, to (4, R) sums."""
    labels, weights = tokens

    @ops.custom_gradient
    def function(states: Tensor, *trained: Tensor) -> tuple[Tensor, Any]:
        read = trained[0] if trained else matrix
        sums = loop.values(states, read, tokens)

        def grad(*args: Tensor, upstream: Any = None, variables: Any = ()) -> Any:
            by_nll = (args[0] if upstream is None else upstream)[1]
            counts = [labels, weights * by_nll[:, None]]
            _, *gradients = loop.gradients(states, read, counts, bool(trained))
            cast = tuple(
                ops.cast(g, x.dtype) for g, x in zip(gradients, (states, *trained), strict=True)
            )
            result = cast if trained else cast[0]
            return (result, [None] * len(variables)) if variables else result

        return sums, grad

    return function
