"""The output loss without logits: projection, soft cap and cross-entropy in chunks.

Knows how to go from the decoder's states to sums over tokens and to the gradients,
while no array of (B, T, V) ever exists. Leaves the mathematics of one chunk to
`keras_encdec.training.chunk`, on which devices it is done to
`keras_encdec.training.replicas`, and what a teacher says to
`keras_encdec.training.distillation`.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.layout import as_laid
from keras_encdec.spec import Tensor
from keras_encdec.training.chunk import Chunk
from keras_encdec.training.replicas import Rows, on_devices

# Logits held at once, per data replica: 512 x 256,000 in float32 are half a gigabyte. With
# fewer, XLA on CPU copies the gradient by the matrix in each round (LOG.md).
CHUNK_TOKENS = 512
_USUAL_ROWS = 8  # where a graph does not know its batch size


class Sums(NamedTuple):
    """Sums over the tokens of a batch, each times the token's weight; float32 scalars.

    Args:
        loss: what is minimised, z-loss and distillation included.
        nll: negative log-likelihood of the labels, in nats.
        correct: tokens whose label has the largest logit.
        weight: the weights themselves.
    """

    loss: Any
    nll: Any
    correct: Any
    weight: Any


@keras.saving.register_keras_serializable(package="keras_encdec")
class FusedCrossEntropy:
    """Cross-entropy of the labels, for `lm.compile(loss=...)`; the default there.

    The mean over tokens by sample weight; labels that are none of the vocabulary, such as
    -100, count nothing. Sums are float32 whatever the policy, as
    a vocabulary of 256,000 needs. The gradient is taken in the pass that computes the
    value, chunk by chunk along T, so nothing is projected twice.

    Args:
        z_loss: times the squared log of the softmax's denominator, per token; 1e-4 in
            PaLM (arXiv 2204.02311, section 5) and in T5X.
        label_smoothing: share of a label's probability that all words divide.
        chunk_tokens: tokens whose logits are held at once, per data replica; where the
            replicas divide the words among them, each has its share of the logits of all.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> lm.compile(loss=keras_encdec.training.FusedCrossEntropy(z_loss=1e-4))
    """

    def __init__(
        self,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
        chunk_tokens: int = CHUNK_TOKENS,
    ):
        self.z_loss = check.real("z_loss", z_loss, least=0)
        self.label_smoothing = check.real("label_smoothing", label_smoothing, least=0, below=1)
        self.chunk_tokens = check.whole("chunk_tokens", chunk_tokens)

    def get_config(self) -> dict[str, float]:
        names = "z_loss", "label_smoothing", "chunk_tokens"
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FusedCrossEntropy":
        return cls(**config)

    def __call__(
        self,
        states: Tensor,
        embedding: Any,
        labels: Tensor,
        weights: Tensor | None = None,
        *,
        teacher: Any = None,
        training: bool = True,
    ) -> Sums:
        """Sums over a batch.

        Args:
            states: (B, T, D) of the decoder.
            embedding: the `keras.layers.ReversibleEmbedding` that reads them out.
            labels: (B, T) int.
            weights: (B, T), or None: every label counts 1.
            teacher: `TeacherTargets`, or None.
            training: whether the gradient will be asked for.

        Returns:
            `Sums`; only `loss` has a gradient.
        """
        tokens = counted(labels, weights, embedding.input_dim)
        tokens += [] if teacher is None else teacher.inputs
        chunk = Chunk(embedding.logit_soft_cap, self.z_loss, self.label_smoothing, teacher)
        matrix = output_matrix(embedding)
        loop = Loop.over(states, embedding, chunk, self.chunk_tokens)
        if not training:
            return Sums(*ops.unstack(loop.values(states, matrix, tokens), 4))
        if embedding.trainable_variables:
            return Sums(*ops.unstack(loop.differentiable(tokens)(states, matrix), 4))
        only_states = loop.differentiable(tokens, matrix)
        return Sums(*ops.unstack(only_states(states), 4))


def counted(labels: Tensor, weights: Tensor | None, vocabulary_size: int) -> list[Tensor]:
    """Labels (B, T) int32 and weights (B, T) float32, 0 where a label is none of the words."""
    weights = ops.ones_like(labels) if weights is None else weights
    labels, weights = ops.cast(labels, "int32"), ops.cast(weights, "float32")
    known = ops.logical_and(labels >= 0, labels < vocabulary_size)
    return [ops.where(known, labels, 0), ops.where(known, weights, 0.0)]


def output_matrix(embedding: Any) -> Tensor:
    """(V, D) that states are multiplied by, with LoRA; dequantised where it is quantised."""
    quantized = embedding.quantization_mode is not None
    if not embedding.tie_weights:
        unit = ops.eye(embedding.output_dim, dtype=embedding.compute_dtype)
        return ops.transpose(
            embedding(unit, reverse=True) if quantized else as_laid(embedding.reverse_embeddings)
        )
    if quantized:
        return embedding(ops.arange(embedding.input_dim, dtype="int32"))
    # A reshape reads the variable: TensorFlow's custom gradients take tensors only.
    matrix = as_laid(embedding.embeddings)
    return ops.reshape(matrix, (embedding.input_dim, embedding.output_dim))


class Loop:
    """Goes over T in steps of t tokens per row."""

    @classmethod
    def over(cls, states: Tensor, embedding: Any, chunk: Chunk, chunk_tokens: int) -> "Loop":
        """Of states (B, T, D), on the devices that there are."""
        rows = states.shape[0] or _USUAL_ROWS
        devices = on_devices(chunk, embedding.compute_dtype, rows, embedding.input_dim)
        count = devices.tokens(chunk_tokens, (embedding.input_dim, embedding.output_dim))
        return cls(devices, max(1, count // rows), states.shape[1])

    def __init__(self, devices: Rows, step: int, length: int):
        self.devices, self.length = devices, length
        self.step = min(step, length)
        self.count = -(-length // self.step)

    def values(self, states: Tensor, matrix: Tensor, tokens: list[Tensor]) -> Tensor:
        """(4,) sums."""
        matrix = self.devices.matrix(matrix)
        states, *tokens = (self._pad(x) for x in (states, *tokens))

        def body(i: Tensor, sums: Tensor) -> Tensor:
            part, *parts = (self._part(x, i) for x in (states, *tokens))
            return sums + self.devices.values(part, matrix, *parts)

        return ops.fori_loop(0, self.count, body, ops.zeros((4,), "float32"))

    def each(self, states: Tensor, matrix: Tensor, tokens: list[Tensor]) -> Tensor:
        """(B, T) negative log-likelihoods of labels, each times its weight."""
        matrix = self.devices.matrix(matrix)
        states, *tokens = (self._pad(x) for x in (states, *tokens))

        def body(i: Tensor, found: Tensor) -> Tensor:
            part, *parts = (self._part(x, i) for x in (states, *tokens))
            nll = self.devices.nll(part, matrix, *parts)
            return ops.slice_update(found, (0, i * self.step), nll)

        none = ops.zeros_like(tokens[-1])
        return ops.fori_loop(0, self.count, body, none)[:, : self.length]

    def differentiable(self, tokens: list[Tensor], matrix: Tensor | None = None) -> Any:
        """A function of states, and of the matrix unless it is given here, to (4,) sums."""

        @ops.custom_gradient
        def function(states: Tensor, *trained: Tensor) -> tuple[Tensor, Any]:
            wanted = bool(trained)
            sums, *gradients = self.gradients(
                states, trained[0] if wanted else matrix, tokens, wanted
            )

            def grad(*args: Tensor, upstream: Any = None, variables: Any = ()) -> Any:
                scale = (args[0] if upstream is None else upstream)[0]
                scaled = [
                    ops.cast(ops.multiply(g, scale), x.dtype)
                    for g, x in zip(gradients, (states, *trained), strict=True)
                ]
                result = tuple(scaled) if wanted else scaled[0]
                # TensorFlow tells of a teacher's variables, which are frozen.
                return (result, [None] * len(variables)) if variables else result

            return sums, grad

        return function

    def gradients(
        self, states: Tensor, matrix: Tensor, tokens: list[Tensor], by_matrix: bool
    ) -> tuple[Tensor, ...]:
        """Sums, and their first one's gradients: (B, T, D), and (V, D) if wanted."""
        low = self.devices.matrix(matrix)
        padded, *tokens = (self._pad(x) for x in (states, *tokens))

        def body(i: Tensor, carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            sums, d_states, *d_matrix = carry
            part, *parts = (self._part(x, i) for x in (padded, *tokens))
            more, d_part, *by_part = self.devices.gradients(part, low, *parts, by_matrix=by_matrix)
            d_part = ops.cast(d_part, d_states.dtype)
            d_states = ops.slice_update(d_states, (0, i * self.step, 0), d_part)
            d_matrix = [d + more for d, more in zip(d_matrix, by_part, strict=True)]
            return (sums + more, d_states, *d_matrix)

        start = [ops.zeros((4,), "float32"), ops.zeros_like(padded)]
        start += [self.devices.zeros(matrix.shape)] * by_matrix
        sums, d_states, *d_matrix = ops.fori_loop(0, self.count, body, tuple(start))
        return (sums, d_states[:, : self.length], *map(self.devices.total, d_matrix))

    def _pad(self, x: Tensor) -> Tensor:
        missing = self.count * self.step - self.length
        if not missing:
            return x
        return ops.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (len(x.shape) - 2))

    def _part(self, x: Tensor, i: Tensor) -> Tensor:
        start = (0, i * self.step) + (0,) * (len(x.shape) - 2)
        return ops.slice(x, start, (ops.shape(x)[0], self.step, *x.shape[2:]))
