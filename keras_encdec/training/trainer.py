"""How a task trains: what a batch's loss is, and the numbers that are kept of it.

Knows Keras' hooks (`train_step`, `test_step`, `metrics`) and nothing of text. Leaves a step
of the optimizer to `keras_encdec.training.step`. A task that inherits from `Trainer` has
`backbone.decoder`, whose `embedding` reads states out.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor
from keras_encdec.training import step
from keras_encdec.training.distillation import Distillation
from keras_encdec.training.loss import FusedCrossEntropy, Sums

LOGS = ("tokens", "tokens_per_second", "learning_rate", "gradient_norm")

_Mixin: Any = object  # beside a keras.Model, whose methods it calls


class Perplexity(keras.metrics.Mean):
    """exp of the mean of negative log-likelihoods."""

    def result(self) -> Tensor:
        return ops.exp(super().result())


class TokenCount(keras.metrics.Metric):
    """Tokens that were read and written in training, padding left out; it goes on over epochs.

    Two int32 for each side, as float32 stops counting ones at 2**24 and JAX has no int64.
    """

    def __init__(self) -> None:
        super().__init__(name="tokens")
        self.low, self.high = (
            self.add_variable((2,), "zeros", "int32", name=name) for name in ("low", "high")
        )

    def update_state(self, encoder_mask: Tensor, decoder_mask: Tensor) -> None:
        masks = encoder_mask, decoder_mask
        low = self.low + ops.stack([ops.sum(ops.cast(mask != 0, "int32")) for mask in masks])
        self.high.assign(self.high + low // 2**24)
        self.low.assign(low % 2**24)

    def result(self) -> Tensor:
        high, low = (ops.cast(ops.sum(v), "float32") for v in (self.high, self.low))
        return high * 2.0**24 + low

    def reset_state(self) -> None:
        """Leaves the count: a validation between two steps resets the others."""

    def begin(self) -> None:
        """Counts from 0 on."""
        super().reset_state()

    def counts(self) -> dict[str, int]:
        """The counts of both sides, exactly."""
        high, low = (ops.convert_to_numpy(v.value).tolist() for v in (self.high, self.low))
        sides = zip(("encoder", "decoder"), high, low, strict=True)
        return {side: many * 2**24 + few for side, many, few in sides}

    def count(self) -> int:
        """Those of both sides together, exactly."""
        return sum(self.counts().values())


class _Metrics:
    """What training reports; an object, as Keras would keep those of each `compile`."""

    def __init__(self) -> None:
        self.fused = [
            keras.metrics.Mean("loss"),
            keras.metrics.Mean("accuracy"),
            Perplexity("perplexity"),
        ]
        self.tokens = TokenCount()

    def update(self, loss: Tensor, sums: Sums, weight: Tensor) -> None:
        """Means over tokens by weight, whatever a batch is."""
        values = loss, sums.correct / weight, sums.nll / weight
        for metric, value in zip(self.fused, values, strict=True):
            metric.update_state(value, sample_weight=sums.weight)


class Trainer(_Mixin):
    """Trains and evaluates with an output loss that never holds (B, T, V)."""

    _fused: FusedCrossEntropy | None = None
    _distillation: Distillation | None = None
    _gradient_accumulation_steps = 1
    _reported: _Metrics | None = None
    _logs: tuple[str, ...] = LOGS
    recording: Any = None  # of the run that goes on: `keras_encdec.training.recording`

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
        fused = isinstance(loss, FusedCrossEntropy)
        check_accumulation(gradient_accumulation_steps, optimizer, fused)
        options = {
            "distillation": distillation,
            "gradient_accumulation_steps": gradient_accumulation_steps - 1,
        }
        if not fused and any(options.values()):
            given = [name for name, value in options.items() if value]
            raise ValueError(
                f"Expected loss='auto' or a FusedCrossEntropy with {given}. Received: {loss!r}."
            )
        for name in logs:
            check.one_of("logs", name, LOGS)
        if distillation is not None:
            distillation.begin(self, self.backbone.decoder.embedding.input_dim)
        self._fused = loss if fused else None
        self._distillation = distillation
        self._gradient_accumulation_steps = gradient_accumulation_steps
        self._reported, self._logs = _Metrics(), tuple(logs)
        # Keras keeps those of the last `compile` where there are none now.
        self.loss = self._compile_loss = self._compile_metrics = None

    def check_optimizer(self) -> None:
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
        weight, more = ops.maximum(sums.weight, 1e-20), self.losses
        if self._reported is not None:
            self._reported.update(sum(more, sums.loss / weight), sums, weight)
        return sum(more, sums.loss / (weight if total_weight is None else total_weight))

    def _loss_on_logits(self, x: Any, y: Any, sample_weight: Any, training: bool) -> Tensor:
        """As Keras has it, for a loss of the user's."""
        y = y["labels"] if isinstance(y, dict) else y
        logits = self(x, training=training)
        loss = super().compute_loss(x, y, logits, sample_weight, training)
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
        if self._fused is None:
            y = y["labels"] if isinstance(y, dict) else y
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        return self.batch_loss(x, y, sample_weight, training)

    @property
    def metrics(self) -> list:
        theirs = super().metrics
        if self._reported is None:
            return theirs
        if self._fused is None:
            return [*theirs, self.token_counter]
        # Keras' own loss is a mean of batches by rows.
        theirs = [metric for metric in theirs if metric is not self._loss_tracker]
        return [*self._reported.fused, *theirs, self.token_counter]

    @property
    def token_counter(self) -> TokenCount:
        """The tokens of the run so far."""
        assert self._reported is not None
        return self._reported.tokens

    def get_metrics_result(self) -> dict[str, Tensor]:
        """As in Keras; the tokens seen so far are for the logs of training alone."""
        return {k: v for k, v in super().get_metrics_result().items() if k != "tokens"}

    def step_logs(self, learning_rate: Any, gradient_norm: Any) -> dict[str, Tensor]:
        """The logs of a step: all metrics, and what `compile` was asked to log."""
        more = {"learning_rate": learning_rate, "gradient_norm": gradient_norm}
        logs = {**self.get_metrics_result(), **{k: more[k] for k in more if k in self._logs}}
        if {"tokens", "tokens_per_second"} & set(self._logs):
            logs["tokens"] = self.token_counter.result()
        return logs

    @property
    def non_trainable_variables(self) -> list:
        """Also those of a teacher that is asked: a step takes them as arguments."""
        teacher = self._distillation and self._distillation.teacher
        return [*super().non_trainable_variables, *(teacher.variables if teacher else [])]

    def make_train_function(self, force: bool = False) -> None:
        """As in Keras; XLA on CPU is told to order its work by memory."""
        with step.compiling():
            super().make_train_function(force)

    def train_step(self, *args: Any) -> Any:
        return step.train_step(self, *args)

    def test_step(self, *args: Any) -> Any:
        return step.test_step(self, *args)


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
