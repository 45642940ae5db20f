"""How a reward model trains: of two answers to an input, the better one is to get more.

Knows the formula and what is reported. Leaves rewards to the model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor
from keras_encdec.training.contrastive import ByFields
from keras_encdec.training.encoder_trainer import EncoderTrainer


class Rewarded(NamedTuple):
    """A batch; each row has two answers to one input, all float32.

    Args:
        rewards: (B, 2) of the better and of the worse answer.
        margin: (B,) by how much the better one is better; or None.
    """

    rewards: Tensor
    margin: Tensor | None = None


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class BradleyTerry(ByFields):
    """-log sigmoid(r_w - r_l - margin) + center (r_w + r_l)^2, of the rewards of two answers.

    The margin, where there is one, as in Llama 2 (arXiv 2307.09288, section 3.2.2); the second
    part keeps rewards near 0, which comparisons alone leave open (arXiv 2312.09244, section 2).

    Args:
        center: of the second part.

    Raises:
        ValueError: if it is no number of 0 or more.

    Example:
        >>> reward_model.compile(loss=keras_encdec.training.BradleyTerry(center=0.01))
    """

    center: float = 0.01

    def __post_init__(self) -> None:
        check.real("center", self.center, least=0)

    def __call__(self, rewarded: Rewarded) -> Tensor:
        """(B,) float32."""
        better, worse = ops.unstack(rewarded.rewards, 2, axis=1)
        margin = 0.0 if rewarded.margin is None else rewarded.margin
        return ops.softplus(margin - (better - worse)) + self.center * ops.square(better + worse)


class RewardTrainer(EncoderTrainer):
    """Trains and evaluates a task whose output is a reward for each input and answer."""

    def compile_rewards(self, optimizer: Any, loss: Any, **kwargs: Any) -> None:
        """Takes what `compile` got.

        Args:
            optimizer: of `compile_rows`.
            loss: a `BradleyTerry`; `"auto"` for the usual one.
            **kwargs: of `compile_rows`.

        Raises:
            ValueError: if the loss is something else, or there are metrics.
        """
        found = BradleyTerry() if isinstance(loss, str) and loss == "auto" else loss
        if not isinstance(found, BradleyTerry):
            raise ValueError(
                f"Expected a keras_encdec.training.BradleyTerry as loss. Received: {loss!r}."
            )
        if kwargs.get("metrics"):
            raise ValueError(
                "Expected no metrics: accuracy and margin are reported. Received: "
                f"{kwargs['metrics']!r}."
            )
        means = [keras.metrics.Mean(name) for name in ("loss", "accuracy", "margin")]
        self.compile_rows(optimizer, found, reported=means, **kwargs)

    def batch_loss(
        self,
        x: dict[str, Tensor],
        y: Any,
        sample_weight: Tensor | None,
        training: bool,
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """The mean over rows by weight, a scalar; metrics are updated.

        Args:
            x: model inputs, of encoder (B, S) and decoder (B, 2, T); or of the encoder alone,
                (B, 2, S).
            y: a dict, with `margin` (B,) where there is one.
            sample_weight: as of `EncoderTrainer`.
            training: whether dropout is on.
            total_weight: as of `EncoderTrainer`.
        """
        if training:
            mask = x["encoder_padding_mask"]
            written = x.get("decoder_padding_mask", ops.zeros_like(mask[..., :1]))
            self.token_counter.update_state(mask, written)
        rewards = self._rewards(x, training)
        losses = self._row_loss(Rewarded(rewards, y.get("margin")))
        count = ops.shape(losses)[0]
        weight = ops.ones((count,)) if sample_weight is None else sample_weight
        weight = ops.cast(weight, "float32")
        mean, loss = self._mean(losses, weight, total_weight)
        ahead = rewards[:, 0] - rewards[:, 1]
        assert self._reported is not None
        of_loss, accuracy, margin = self._reported.metrics
        of_loss.update_state(mean, sample_weight=ops.sum(weight))
        accuracy.update_state(ops.cast(ahead > 0, "float32"), sample_weight=weight)
        margin.update_state(ahead, sample_weight=weight)
        return loss

    def _rewards(self, x: Mapping[str, Tensor], training: bool) -> Tensor:
        """(B, 2): each input is read once for both of its answers."""
        model: Any = self
        rows = ops.shape(x["encoder_token_ids"])[0]
        flat = {name: ops.reshape(ids, (-1, ops.shape(ids)[-1])) for name, ids in x.items()}
        return ops.reshape(model.rewards(flat, training), (rows, -1))
