"""What tasks that predict tokens report: means over tokens by weight, whatever a batch is.

Leaves the sums themselves to `keras_encdec.training.loss`.
"""

import keras
from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.loss import FusedCrossEntropy, Sums
from keras_encdec.training.trainer import Trainer


class Perplexity(keras.metrics.Mean):
    """exp of the mean of negative log-likelihoods."""

    def result(self) -> Tensor:
        return ops.exp(super().result())


def token_means() -> tuple[keras.metrics.Mean, ...]:
    """What `TokenTrainer.mean_of` keeps, for `Trainer.report`."""
    means = keras.metrics.Mean("loss"), keras.metrics.Mean("accuracy")
    return *means, Perplexity("perplexity")


class TokenTrainer(Trainer):
    """Trains a task whose loss is a mean over tokens."""

    _fused: FusedCrossEntropy | None = None

    def mean_of(self, sums: Sums, total_weight: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar, with what layers add; metrics are updated.

        Args:
            sums: of the tokens that are here.
            total_weight: of the whole batch, where this is a part of it.
        """
        weight = ops.maximum(sums.weight, 1e-20)
        mean, more = sums.loss / weight, sum(self.losses)  # which count as the tokens here do
        if self._reported is not None:
            values = mean + more, sums.correct / weight, sums.nll / weight
            for metric, value in zip(self._reported.metrics, values, strict=True):
                metric.update_state(value, sample_weight=sums.weight)
        if total_weight is None:
            return mean + more
        return sums.loss / total_weight + more * (sums.weight / total_weight)
