"""How a pair learns from preferred answers: two answers to an input, which is read once.

Knows log-probabilities of answers, without logits, and what is reported. Leaves formulas to
`keras_encdec.training.preferences`.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.preferences import Answers, Preference
from keras_encdec.training.token_likelihood import token_log_likelihoods
from keras_encdec.training.trainer import Trainer


def preference_means(loss: Preference) -> tuple[keras.metrics.Mean, ...]:
    """What `PreferenceTrainer` keeps, for `Trainer.report`."""
    return tuple(keras.metrics.Mean(name) for name in ("loss", *loss.reports))


class PreferenceTrainer(Trainer):
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
        assert self._reported is not None
        if training:
            sides = x["encoder_padding_mask"], x["decoder_padding_mask"]
            self.token_counter.update_state(*sides)
        answers = self._answers(x, y, sample_weight, training)
        mean, loss = self._mean(self._preference(answers), answers.weight, total_weight)
        of_loss, *others = self._reported.metrics
        of_loss.update_state(mean, sample_weight=ops.sum(answers.weight))
        logs = self._preference.logs(answers)
        for metric in others:
            values, counts = logs[metric.name]
            metric.update_state(values, sample_weight=counts)
        return loss

    def _answers(
        self,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        sample_weight: Tensor | None,
        training: bool,
    ) -> Answers:
        """Each input is read once, and both answers look at it."""
        model: Any = self
        encoder, decoder = model.backbone.encoder, model.backbone.decoder
        read = x["encoder_token_ids"], x["encoder_padding_mask"]
        ids, mask, labels = (
            ops.reshape(a, (-1, ops.shape(a)[-1]))
            for a in (x["decoder_token_ids"], x["decoder_padding_mask"], y["labels"])
        )
        states = encoder(*read, training=training)
        states = decoder(ids, mask, states, read[1], training=training)
        counts = ops.cast(mask != 0, "float32")
        tokens = token_log_likelihoods(states, decoder.embedding, labels, counts, training=training)
        rows = ops.shape(read[0])[0]
        sums = (ops.sum(a, axis=1) for a in (tokens, counts))
        log_probs, lengths = (ops.reshape(a, (rows, -1)) for a in sums)
        weight = ops.ones((rows,)) if sample_weight is None else sample_weight
        more = (y.get(name) for name in ("reference", "is_good"))
        return Answers(log_probs, lengths, ops.cast(weight, "float32"), *more)
