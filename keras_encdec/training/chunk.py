"""The mathematics of the output loss on a few tokens, value and gradient by hand.

Knows softmax, soft cap, z-loss, label smoothing and how a teacher is mixed in. Leaves
loops and memory to `keras_encdec.training.loss`, and which words are here to
`keras_encdec.training.words`.
"""

import dataclasses

import keras
from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.distillation import TeacherTargets
from keras_encdec.training.words import ALL, Words


def dot(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """`einsum` whose sums are float32, whatever the dtype of `a` and `b`."""
    if keras.backend.backend() == "jax":
        import jax.numpy as jnp

        return jnp.einsum(equation, a, b, preferred_element_type="float32")
    return ops.cast(ops.einsum(equation, a, b), "float32")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Loss of t tokens in each of B rows.

    Args:
        soft_cap: cap of the logits, or None.
        z_loss: times the squared log of the softmax's denominator.
        label_smoothing: share of a label's probability that all tokens of the vocabulary divide.
        teacher: `TeacherTargets`, or None.
        words: those that logits are of; v is how many are here.
        temperature: that logits, behind their cap, are divided by.
    """

    soft_cap: float | None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    teacher: TeacherTargets | None = None
    words: Words = ALL
    temperature: float = 1.0

    def nll(self, states: Tensor, matrix: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """(B, t) float32 negative log-likelihoods of labels, each times its weight."""
        logits = self._logits(states, matrix)
        return weights * (self._log_norm(logits) - self.words.take(logits, labels))

    def __call__(
        self,
        states: Tensor,
        matrix: Tensor,
        labels: Tensor,
        weights: Tensor,
        *targets: Tensor,
        gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Sums and, with `gradient`, that of the loss by each logit.

        Args:
            states: (B, t, D).
            matrix: (v, D).
            labels: (B, t) int32.
            weights: (B, t) float32.
            *targets: of the teacher, as `TeacherTargets.chunk` gives them.
            gradient: whether the second result is wanted.

        Returns:
            (4,) float32 sums of loss, nll, correct and weight; and the gradient of the first of
            them by the logits before their cap, (B, t, v) float32, or None.
        """
        logits, words = self._logits(states, matrix), self.words
        peak = words.max(logits)
        log_norm = self._log_norm(logits, peak)
        gold = words.take(logits, labels)
        loss = log_norm - gold
        if self.label_smoothing:
            loss = loss + self.label_smoothing * (gold - words.sum(logits) / words.count(logits))
        share, divergence = 0.0, None
        if self.teacher is not None:
            share = self.teacher.weight
            divergence, d_divergence = self.teacher.divergence(words, logits, *targets)
            loss = (1 - share) * loss + share * divergence
        loss = loss + self.z_loss * ops.square(log_norm)
        correct = ops.cast(gold >= peak, "float32")
        tokens = ops.stack([loss, log_norm - gold, correct, ops.ones_like(loss)])
        sums = ops.sum(tokens * weights, axis=(1, 2))
        if not gradient:
            return sums, None
        hard = (1 - share) * weights  # (B, t) factors from here on
        of_softmax = hard + 2 * self.z_loss * log_norm * weights
        d_logits = of_softmax[..., None] * ops.exp(logits - log_norm[..., None])
        d_logits = d_logits - hard[..., None] * self._target(labels, logits)
        if divergence is not None:
            d_logits = d_logits + share * weights[..., None] * d_divergence()
        if self.temperature != 1.0:
            d_logits = d_logits / self.temperature
        if self.soft_cap is not None:
            d_logits = d_logits * (1 - ops.square(logits * (self.temperature / self.soft_cap)))
        return sums, d_logits

    def _logits(self, states: Tensor, matrix: Tensor) -> Tensor:
        """(B, t, v) float32."""
        logits = dot("btd,vd->btv", states, matrix)
        if self.soft_cap is not None:
            logits = self.soft_cap * ops.tanh(logits / self.soft_cap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def _log_norm(self, logits: Tensor, peak: Tensor | None = None) -> Tensor:
        """(B, t): the log of the softmax's denominator."""
        peak = self.words.max(logits) if peak is None else peak
        return peak + ops.log(self.words.sum(ops.exp(logits - peak[..., None])))

    def _target(self, labels: Tensor, logits: Tensor) -> Tensor:
        """(B, t, v): the distribution that the labels ask for."""
        target = self.words.one_hot(labels, logits.shape[-1])
        if not self.label_smoothing:
            return target
        even = self.label_smoothing / self.words.count(logits)
        return (1 - self.label_smoothing) * target + even
