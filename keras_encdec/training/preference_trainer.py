"""How a pair learns from preferred answers: two answers to an input, which is read once.

Leaves log-probabilities to `keras_encdec.training.answer_trainer`, formulas to
`keras_encdec.training.preferences`.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.answer_trainer import AnswerTrainer
from keras_encdec.training.preferences import Answers, Preference


def preference_means(loss: Preference) -> tuple[keras.metrics.Mean, ...]:
    """What `PreferenceTrainer` keeps, for `Trainer.report`."""
    return tuple(keras.metrics.Mean(name) for name in ("loss", *loss.reports))


class PreferenceTrainer(AnswerTrainer):
    """Trains a pair whose loss is a mean over rows of two answers."""

    _preference: Preference | None = None
    _reference: Any = None  # `keras_encdec.models.reference`, from the first call after `compile`

    def preference_loss(
        self,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        sample_weight: Tensor | None,
        training: bool,
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar; metrics are updated.

        Args:
            x: model inputs, of encoder (B, S) and decoder (B, 2, T).
            y: `labels` (B, 2, T) and, where the loss reads them, `reference` (B, 2) and
                `is_good` (B,).
            sample_weight: (B,), 0 for a row that fills the batch up; or None.
            training: whether dropout is on.
            total_weight: of the whole batch, where this is a part of it.
        """
        assert self._preference is not None
        if training:
            self.count_tokens(x)
        answers = self._answers(x, y, sample_weight, training)
        mean, loss = self._mean(self._preference(answers), answers.weight, total_weight)
        self.report_means(mean, answers.weight, self._preference.logs(answers))
        return loss

    def _answers(
        self,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        sample_weight: Tensor | None,
        training: bool,
    ) -> Answers:
        found, there = self.answer_log_probs(x, y["labels"], training)
        log_probs, lengths = (ops.sum(a, axis=-1) for a in (found, there))
        weight = ops.ones_like(log_probs[:, 0]) if sample_weight is None else sample_weight
        more = (y.get(name) for name in ("reference", "is_good"))
        return Answers(log_probs, lengths, ops.cast(weight, "float32"), *more)
