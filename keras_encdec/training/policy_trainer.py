"""How a pair learns from answers that it drew itself, and that were rewarded.

Knows which arrays a batch holds, and several steps on one batch. Leaves formulas to
`keras_encdec.training.policy`, drawing to `keras_encdec.models.rollouts`.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training import step
from keras_encdec.training.answer_trainer import AnswerTrainer
from keras_encdec.training.policy import Drawn, Policy


def policy_means(loss: Policy) -> tuple[keras.metrics.Mean, ...]:
    """What `PolicyTrainer` keeps, for `Trainer.report`."""
    return tuple(keras.metrics.Mean(name) for name in ("loss", *loss.reports))


class PolicyTrainer(AnswerTrainer):
    """Trains a pair whose loss is a mean over prompts with drawn answers."""

    _policy: Policy | None = None

    def policy_loss(
        self,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        sample_weight: Tensor,
        training: bool,
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar; metrics are updated.

        Args:
            x: model inputs, of encoder (B, S) and decoder (B, G, T).
            y: `labels` (B, G, T), `rewards` (B, G, n), `truncated` (B, G), `rows` (B,); and
                `reference` (B, G) and `old` (B, G, T), where there are such.
            sample_weight: (B,), `Policy.row_weights`.
            training: whether dropout is on.
            total_weight: of the whole batch, where this is a part of it.
        """
        loss = self._policy
        assert loss is not None
        if training:
            self.count_tokens(x)
        found, there = self.answer_log_probs(x, y["labels"], training, loss.temperature)
        old = y["old"] if "old" in y else ops.stop_gradient(found)
        weights = ops.convert_to_tensor(loss.weights, "float32")
        told = y["rewards"], weights, y["truncated"], y["rows"], y.get("reference")
        drawn = Drawn(found, old, there, *told)
        weight = ops.cast(sample_weight, "float32")
        mean, batch = self._mean(loss(drawn), weight, total_weight)
        self.report_means(mean, weight, loss.logs(drawn))
        return batch

    def with_old(self, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`y` with the log-probabilities of labels as they are before a step."""
        assert self._policy is not None
        found, _ = self.answer_log_probs(x, y["labels"], False, self._policy.temperature)
        return {**y, "old": ops.stop_gradient(found)}

    def train_step(self, *args: Any) -> Any:
        if self._policy is None or self._policy.updates == 1:
            return super().train_step(*args)
        return step.repeated(self, self._policy.updates, self.with_old, *args)
