"""How a task trains: the fused loss in `compile`, and one optimizer step.

Knows Keras' hooks (`call`, `compute_loss`, `train_step`) and nothing of text. A task
that inherits from `Trainer` has `backbone.decoder`, whose `embedding` reads states out.
"""

import contextlib
from typing import Any

import keras
from keras import ops

from keras_encdec.training.distillation import Distillation
from keras_encdec.training.loss import FusedCrossEntropy

_Mixin: Any = object  # beside a keras.Model, whose methods it calls


class Perplexity(keras.metrics.Mean):
    """exp of the mean of negative log-likelihoods."""

    def result(self):
        return ops.exp(super().result())


class _TokenMetrics:
    """Accuracy and perplexity; an object, as Keras would keep those of each `compile`."""

    def __init__(self):
        self.all = [keras.metrics.Mean("accuracy"), Perplexity("perplexity")]

    def update(self, sums, weight):
        for metric, total in zip(self.all, (sums.correct, sums.nll), strict=True):
            metric.update_state(total / weight, sample_weight=sums.weight)


class Trainer(_Mixin):
    """Trains and evaluates with an output loss that never holds (B, T, V).

    While a loss is computed the model gives the decoder's states in place of logits;
    at any other time, and with a loss of the user's, it gives logits.
    """

    _fused: FusedCrossEntropy | None = None
    _distillation: Distillation | None = None
    _gradient_accumulation_steps = 1
    _gives_states = False
    _total_weight = None  # of the batch, while it is gone through in parts
    _token_metrics: _TokenMetrics | None = None

    def compile_output(self, loss, distillation, gradient_accumulation_steps, optimizer):
        """Takes what `compile` got that Keras does not know.

        Raises:
            ValueError: if the options contradict each other.
        """
        fused = isinstance(loss, FusedCrossEntropy)
        options = {
            "distillation": distillation,
            "gradient_accumulation_steps": gradient_accumulation_steps - 1,
        }
        if not fused and any(options.values()):
            given = [name for name, value in options.items() if value]
            raise ValueError(
                f"Expected loss='auto' or a FusedCrossEntropy with {given}. Received: {loss!r}."
            )
        if distillation is not None:
            distillation.check(self.backbone.decoder.embedding.input_dim)
        check_accumulation(gradient_accumulation_steps, optimizer, fused)
        self._fused = loss if fused else None
        self._distillation = distillation
        self._gradient_accumulation_steps = gradient_accumulation_steps
        self._token_metrics = _TokenMetrics() if fused else None

    def check_optimizer(self):
        """Raises ValueError if the optimizer cannot move what it is to train."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        beta = getattr(optimizer, "beta_2", None)
        for variable in self.trainable_variables:
            if beta is not None and float(ops.cast(beta, variable.dtype)) == 1.0:
                raise ValueError(
                    f"Expected a beta_2 below 1 in {variable.dtype}, the dtype of {variable.path}. "
                    f"Received: {beta}, which is 1 there: {type(optimizer).__name__} would not "
                    "move. Load with dtype='mixed_bfloat16' for float32 weights, train LoRA, or "
                    "use Adafactor."
                )

    def call(self, inputs, training=None, mask=None):
        states = self.backbone(inputs, training=training)["decoder_sequence_output"]
        return states if self._gives_states else self.backbone.decoder.logits(states)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean over tokens by weight; accuracy and perplexity come from the same pass."""
        if self._fused is None:
            y = y["labels"] if isinstance(y, dict) else y
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        asked = self._distillation if training else None
        sums = self._fused(
            y_pred,
            self.backbone.decoder.embedding,
            y["labels"] if isinstance(y, dict) else y,
            sample_weight,
            teacher=asked and asked.advice(x, y),
            training=training,
        )
        weight = ops.maximum(sums.weight, 1e-20)
        if self._token_metrics is not None:
            self._token_metrics.update(sums, weight)
        loss = sums.loss / (weight if self._total_weight is None else self._total_weight)
        return sum(self.losses, loss)

    @property
    def metrics(self):
        return [*super().metrics, *(self._token_metrics.all if self._token_metrics else [])]

    @property
    def non_trainable_variables(self):
        """Also those of a teacher that is asked: a step takes them as arguments."""
        teacher = self._distillation and self._distillation.teacher
        return [*super().non_trainable_variables, *(teacher.variables if teacher else [])]

    def train_step(self, *args):
        with self._giving_states():
            if keras.backend.backend() != "jax":
                return super().train_step(*args)
            from keras_encdec.training.jax_step import train_step

            return train_step(self, *args)

    def test_step(self, *args):
        with self._giving_states():
            return super().test_step(*args)

    @contextlib.contextmanager
    def _giving_states(self):
        self._gives_states = self._fused is not None
        try:
            yield
        finally:
            self._gives_states = False


def check_accumulation(steps, optimizer, fused) -> None:
    """Raises ValueError where micro-batches would be weighted wrongly or not at all."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"Expected gradient_accumulation_steps of 1 or more. Received: {steps!r}.")
    if keras.backend.backend() != "jax":
        if steps > 1:
            raise ValueError(
                "Expected the JAX backend with gradient_accumulation_steps. Received: "
                f"{keras.backend.backend()}. There use the optimizer's, which weights each "
                "micro-batch alike."
            )
    elif fused and getattr(optimizer, "gradient_accumulation_steps", None):
        raise ValueError(
            "Expected gradient_accumulation_steps in lm.compile, where each token counts alike. "
            "Received: an optimizer with its own, which counts each micro-batch alike."
        )
