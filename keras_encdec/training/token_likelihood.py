"""How likely each token of some answers is, without logits, and the gradient of any function of it.

Knows that a first pass gives values and the backward pass goes over the chunks again, as what a
token counts is known only then. Leaves chunks and devices to `keras_encdec.training.loss`.
"""

from typing import Any

from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.chunk import Chunk
from keras_encdec.training.loss import CHUNK_TOKENS, Loop, counted, output_matrix


def token_log_likelihoods(
    states: Tensor,
    embedding: Any,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    temperature: float = 1.0,
    training: bool = True,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """(R, T) float32 log-probabilities of labels, in nats, each times its weight.

    Args:
        states: (R, T, D) of the decoder.
        embedding: the `keras.layers.ReversibleEmbedding` that reads them out.
        labels: (R, T) int; what is none of the vocabulary, such as -100, counts nothing.
        weights: (R, T), or None: every label counts 1.
        temperature: that logits are divided by.
        training: whether the gradient will be asked for.
        chunk_tokens: as of `FusedCrossEntropy`.
    """
    tokens = counted(labels, weights, embedding.input_dim)
    chunk = Chunk(embedding.logit_soft_cap, temperature=temperature)
    loop, matrix = Loop.over(states, embedding, chunk, chunk_tokens), output_matrix(embedding)
    if not training:
        return -loop.each(states, matrix, tokens)
    if embedding.trainable_variables:
        return _differentiable(loop, tokens)(states, matrix)
    return _differentiable(loop, tokens, matrix)(states)


def _differentiable(loop: Loop, tokens: list[Tensor], matrix: Tensor | None = None) -> Any:
    """A function of states, and of the matrix unless it is given here, to (R, T)."""
    labels, weights = tokens

    @ops.custom_gradient
    def function(states: Tensor, *trained: Tensor) -> tuple[Tensor, Any]:
        read = trained[0] if trained else matrix

        def grad(*args: Tensor, upstream: Any = None, variables: Any = ()) -> Any:
            by_token = args[0] if upstream is None else upstream
            counts = [labels, -weights * by_token]  # the loop's sum is of their negatives
            _, *gradients = loop.gradients(states, read, counts, bool(trained))
            cast = tuple(
                ops.cast(g, x.dtype) for g, x in zip(gradients, (states, *trained), strict=True)
            )
            result = cast if trained else cast[0]
            return (result, [None] * len(variables)) if variables else result

        return -loop.each(states, read, tokens), grad

    return function
