"""How an encoder learns from hidden tokens: the mean of their losses, without all the logits.

Leaves which tokens are hidden to `keras_encdec.objectives.mntp`.
"""

from typing import Any

from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.loss import FusedCrossEntropy
from keras_encdec.training.token_trainer import TokenTrainer, token_means


class MaskedTrainer(TokenTrainer):
    """Trains a task that has `states_before`, and `writes` to read them out."""

    def compile_tokens(self, optimizer: Any, loss: Any, **kwargs: Any) -> None:
        """Takes what `compile` got: a loss, and what `compile_reporting` takes.

        Raises:
            ValueError: if it is another loss than `FusedCrossEntropy`, or there is no such log.
        """
        if not isinstance(loss, FusedCrossEntropy):
            raise ValueError(
                "Expected loss='auto' or keras_encdec.training.FusedCrossEntropy. Received: "
                f"{loss!r}."
            )
        self.compile_reporting(optimizer, token_means(), **kwargs)
        self._fused = loss

    def compiled_facts(self) -> dict[str, Any]:
        """What decides the loss, as JSON types."""
        return {"loss": self._fused and self._fused.get_config()}

    def batch_loss(
        self,
        x: dict[str, Tensor],
        y: Tensor,
        sample_weight: Tensor | None,
        training: bool,
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar; metrics are updated.

        Args:
            x: `token_ids`, `padding_mask` (B, S) and `mask_positions` (B, T).
            y: (B, T), what was hidden there.
            sample_weight: (B, T), 0 where nothing was; or None.
            training: whether dropout is on.
            total_weight: of the whole batch, where this is a part of it.
        """
        model: Any = self
        assert self._fused is not None
        if training:
            mask = x["padding_mask"]
            self.token_counter.update_state(mask, ops.zeros_like(mask[..., :1]))
        states = model.states_before(x, training=training)
        sums = self._fused(states, model.writes, y, sample_weight, training=training)
        return self.mean_of(sums, total_weight)
