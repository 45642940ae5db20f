"""How a pair trains: what a batch's loss is, with an output loss that never holds (B, T, V).

Leaves a step and what is kept of it to `keras_encdec.training.trainer`. A task that inherits has
`backbone.decoder`, whose `embedding` reads states out.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor
from keras_encdec.training.distillation import Distillation
from keras_encdec.training.loss import FusedCrossEntropy
from keras_encdec.training.policy import Policy
from keras_encdec.training.policy_trainer import PolicyTrainer, policy_means
from keras_encdec.training.preference_trainer import PreferenceTrainer, preference_means
from keras_encdec.training.preferences import Preference
from keras_encdec.training.token_trainer import TokenTrainer, token_means


class PairTrainer(TokenTrainer, PreferenceTrainer, PolicyTrainer):
    """Trains and evaluates an encoder-decoder."""

    _distillation: Distillation | None = None

    def compile_training(
        self,
        loss: Any,
        distillation: Distillation | None,
        gradient_accumulation_steps: int,
        optimizer: Any,
        logs: Sequence[str],
    ) -> None:
        """Takes what `compile` got that Keras does not know.

        Raises:
            ValueError: if the options contradict each other.
        """
        fused = loss if isinstance(loss, FusedCrossEntropy) else None
        preference = loss if isinstance(loss, Preference) else None
        policy = loss if isinstance(loss, Policy) else None
        of_answers = preference is not None or policy is not None
        check_accumulation(gradient_accumulation_steps, optimizer, fused is not None or of_answers)
        options: dict[str, Any] = {"distillation": distillation}
        if preference is not None and loss.reads_batch and gradient_accumulation_steps > 1:
            raise ValueError(
                f"Expected gradient_accumulation_steps=1 with {type(loss).__name__}, whose rows "
                f"read their whole batch. Received: {gradient_accumulation_steps}. Use a smaller "
                "batch_size, or remat=True for less memory."
            )
        if not of_answers:
            options["gradient_accumulation_steps"] = gradient_accumulation_steps - 1
        if fused is None and any(options.values()):
            given = [name for name, value in options.items() if value]
            raise ValueError(
                f"Expected loss='auto' or a FusedCrossEntropy with {given}. Received: {loss!r}."
            )
        if distillation is not None:
            distillation.begin(self, self.backbone.decoder.embedding.input_dim)
        self._fused, self._preference, self._policy = fused, preference, policy
        self._distillation, self._reference = distillation, None
        self._gradient_accumulation_steps = gradient_accumulation_steps
        self.report(logs, *self._means())

    def _means(self) -> tuple[keras.metrics.Metric, ...]:
        """What is reported of a loss of ours."""
        if self._preference is not None:
            return preference_means(self._preference)
        if self._policy is not None:
            return policy_means(self._policy)
        return token_means() if self._fused else ()

    def batch_loss(
        self,
        x: dict[str, Tensor],
        y: Any,
        sample_weight: Tensor | None,
        training: bool,
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar; metrics are updated.

        Args:
            x: model inputs.
            y: labels (B, T), or a dict with `labels` and a teacher's rows.
            sample_weight: (B, T), or None: every label counts 1.
            training: whether dropout is on and the teacher is asked.
            total_weight: of the whole batch, where this is a part of it.
        """
        if self._preference is not None:
            return self.preference_loss(x, y, sample_weight, training, total_weight)
        if self._policy is not None:
            return self.policy_loss(x, y, sample_weight, training, total_weight)
        if training:
            self.token_counter.update_state(x["encoder_padding_mask"], x["decoder_padding_mask"])
        if self._fused is None:
            return self._loss_on_logits(x, y, sample_weight, training)
        asked = self._distillation if training else None
        sums = self._fused(
            self.backbone(x, training=training)["decoder_sequence_output"],
            self.backbone.decoder.embedding,
            y["labels"] if isinstance(y, dict) else y,
            sample_weight,
            teacher=asked and asked.teacher_targets(x, y),
            training=training,
        )
        return self.mean_of(sums, total_weight)

    def _loss_on_logits(self, x: Any, y: Any, sample_weight: Any, training: bool) -> Tensor:
        """As Keras has it, for a loss of the user's."""
        y = y["labels"] if isinstance(y, dict) else y
        logits = self(x, training=training)
        loss = keras.Model.compute_loss(self, x, y, logits, sample_weight, training)
        self._loss_tracker.update_state(loss, sample_weight=ops.shape(logits)[0])
        self.compute_metrics(x, y, logits, sample_weight)
        return loss

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Tensor:
        """Model inputs to logits (B, T, V)."""
        states = self.backbone(inputs, training=training)["decoder_sequence_output"]
        return self.backbone.decoder.logits(states)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """As in Keras; the fused loss starts from `x` and needs no `y_pred`."""
        if self._fused is self._preference is self._policy is None:
            y = y["labels"] if isinstance(y, dict) else y
            return keras.Model.compute_loss(self, x, y, y_pred, sample_weight, training)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    @property
    def non_trainable_variables(self) -> list:
        """Also those of a teacher that is asked: a step takes them as arguments."""
        teacher = self._distillation and self._distillation.teacher
        return [*super().non_trainable_variables, *(teacher.variables if teacher else [])]


def check_accumulation(steps: Any, optimizer: Any, fused: bool) -> None:
    """Raises ValueError where micro-batches would be weighted wrongly or not at all."""
    steps = check.whole("gradient_accumulation_steps", steps)
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
