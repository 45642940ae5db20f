"""Memory of log-probabilities of answers and their gradient, with logits and without.

    KERAS_BACKEND=jax python bench/likelihood_memory.py

32 answers of 64 tokens, 512 wide, a vocabulary of 256,000, float32: the sums of each answer and the
gradient of any function of them for states and embedding, by `row_log_likelihoods` and by
log_softmax of whole logits. XLA's own account of a compiled program: temporary memory and what it
returns, which is mostly the gradient of the embedding. Nothing is computed. Prints one line.
"""

import argparse

import jax
import jax.numpy as jnp
import keras
from keras import ops
from keras_encdec.training.row_likelihood import row_log_likelihoods

from keras_encdec.training.jax_step import compiler_options

WIDTH, WORDS = 512, 256_000


def fused(embedding, states, labels):
    return row_log_likelihoods(states, embedding, labels).log_probs


def plain(embedding, states, labels):
    logits = embedding(states, reverse=True)
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return jnp.sum(found[..., 0], axis=1)


def needed(log_probs, rows, length):
    """Bytes that a compiled loss and gradient take beside their arguments."""
    embedding = keras.layers.ReversibleEmbedding(WORDS, WIDTH)
    embedding.build()
    variable = embedding.embeddings

    def loss(states, matrix, labels):
        with keras.StatelessScope([(variable, matrix)]):
            return ops.sum(ops.tanh(log_probs(embedding, states, labels) / 1000))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), compiler_options=compiler_options())
    shapes = (rows, length, WIDTH), (WORDS, WIDTH)
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    labels = jax.ShapeDtypeStruct((rows, length), "int32")
    found = step.lower(*arguments, labels).compile().memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    sizes = [needed(by, options.rows, options.length) for by in (fused, plain)]
    print(
        f"likelihood_memory {options.rows} x {options.length}: fused {sizes[0] / 1e9:.2f} GB, "
        f"plain {sizes[1] / 1e9:.2f} GB, {sizes[0] / sizes[1]:.3f}x"
    )


if __name__ == "__main__":
    main()
