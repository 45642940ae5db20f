"""How a task whose data is rows trains: the mean of what each row's loss is.

Leaves a step and what is kept of it to `keras_encdec.training.trainer`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.trainer import Trainer


class EncoderTrainer(Trainer):
    """Trains and evaluates a task whose output and labels are one thing for each row."""

    _row_loss: Any = None

    def compile_rows(
        self,
        optimizer: Any,
        loss: Any,
        metrics: Any,
        reported: Sequence[keras.metrics.Metric] = (),
        **kwargs: Any,
    ) -> None:
        """Takes what `compile` got.

        Args:
            optimizer: of `compile_reporting`.
            loss: a loss of Keras, or a function of labels and outputs, that gives one number for
                each row.
            metrics: of `compile_reporting`.
            reported: of `compile_reporting`.
            **kwargs: of `compile_reporting`.

        Raises:
            ValueError: if there is no such loss or log.
        """
        found = keras.losses.get(loss)
        if found is None:
            raise ValueError("Expected a loss. Received: none.")
        self.compile_reporting(optimizer, reported, metrics, **kwargs)
        self._row_loss = found

    def _each_loss(self, y: Any, output: Tensor) -> Tensor:
        """(B,) float32."""
        is_object = isinstance(self._row_loss, keras.losses.Loss)
        losses = (self._row_loss.call if is_object else self._row_loss)(y, output)
        return ops.cast(losses, "float32")

    def compiled_facts(self) -> dict[str, Any]:
        """What decides the loss, as JSON types."""
        return {"loss": keras.saving.serialize_keras_object(self._row_loss)}

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
            x: `token_ids` and `padding_mask`.
            y: labels, (B, ...).
            sample_weight: (B,), 0 for a row that fills the batch up; or None.
            training: whether dropout is on.
            total_weight: of the whole batch, where this is a part of it.
        """
        mask = x["padding_mask"]
        if training:
            self.token_counter.update_state(mask, ops.zeros_like(mask[..., :1]))
        output = self(x, training=training)
        losses = self._each_loss(y, output)
        count = ops.shape(losses)[0]
        weight = ops.ones((count,)) if sample_weight is None else sample_weight
        weight = ops.cast(weight, "float32")
        mean, loss = self._mean(losses, weight, total_weight)
        self._loss_tracker.update_state(mean, sample_weight=ops.sum(weight))
        self.compute_metrics(x, y, output, weight)
        return loss

    def _compared(
        self,
        losses: Tensor,
        right: Tensor,
        there: Tensor,
        sample_weight: Tensor | None,
        total_weight: Tensor | None,
    ) -> Tensor:
        """The loss of rows that compare documents; the means of loss and accuracy are updated.

        Args:
            losses: (B,).
            right: (B,) float32, 1 where the comparison comes out right.
            there: (B,) bool, False for rows that fill a batch up.
            sample_weight: (B,), or None.
            total_weight: as of `batch_loss`.
        """
        weight = ops.cast(there, "float32")
        if sample_weight is not None:
            weight *= ops.cast(sample_weight, "float32")
        mean, loss = self._mean(losses, weight, total_weight)
        assert self._reported is not None
        of_loss, accuracy = self._reported.metrics
        of_loss.update_state(mean, sample_weight=ops.sum(weight))
        accuracy.update_state(right, sample_weight=weight)
        return loss
