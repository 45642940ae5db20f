"""What every task trains with: Keras' hooks, and the numbers that are kept of a run.

Knows `train_step`, `test_step` and logs, and nothing of text. Leaves what a batch's loss is to
who inherits, and a step of the optimizer to `keras_encdec.training.step`.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor
from keras_encdec.training import step
from keras_encdec.training.checkpoint_about import learning_rate

LOGS = ("tokens", "tokens_per_second", "learning_rate", "gradient_norm")
_OPTIONS = ("run_eagerly", "jit_compile", "steps_per_execution", "auto_scale_loss")

_Mixin: Any = object  # beside a keras.Model, whose methods it calls


def resolved_optimizer(optimizer: Any, rate: float) -> Any:
    """An optimizer as `compile` is given it: "auto" or a learning rate stands for AdamW.

    Args:
        optimizer: as in Keras, `"auto"`, or a number above 0.
        rate: of `"auto"`.

    Raises:
        ValueError: if a number is no learning rate.
    """
    is_number = isinstance(optimizer, (int, float)) and not isinstance(optimizer, bool)
    if is_number:
        rate = check.real("optimizer as a learning rate", optimizer, above=0)
    elif not (isinstance(optimizer, str) and optimizer == "auto"):
        return optimizer
    return keras.optimizers.AdamW(rate, global_clipnorm=1.0)


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


class Reported:
    """What training reports; an object, as Keras would keep those of each `compile`.

    Args:
        metrics: means that stand in place of Keras' own loss.
        loads: of experts, by stack.
    """

    def __init__(
        self, *metrics: keras.metrics.Metric, loads: Sequence[keras.metrics.Mean] = ()
    ) -> None:
        self.metrics, self.tokens, self.loads = metrics, TokenCount(), tuple(loads)


class Trainer(_Mixin):
    """Trains and evaluates by `batch_loss`, the loss of a batch, which updates metrics."""

    _gradient_accumulation_steps = 1
    _reported: Reported | None = None
    _logs: tuple[str, ...] = LOGS
    recording: Any = None  # of the run that goes on: `keras_encdec.training.recording`
    averaging: Any = None  # of the last run: `keras_encdec.training.averaging`
    compiled_rate: Any = None
    _optimized: frozenset[str] = frozenset()  # paths that the optimizer is built of
    _compiled_with: Mapping[str, Any] = types.MappingProxyType({})

    def compile_reporting(
        self,
        optimizer: Any,
        reported: Sequence[keras.metrics.Metric],
        metrics: Any = None,
        logs: Sequence[str] = LOGS,
        **kwargs: Any,
    ) -> None:
        """What `compile` of a task with a loss of its own has in common.

        Args:
            optimizer: as in Keras; `"auto"` for AdamW at 5e-5 with gradients clipped at norm 1, a
                number for that at another rate.
            reported: means that stand in place of Keras' own loss.
            metrics: as in Keras; rows count by their weight, as in the loss.
            logs: as of `EncDecSeq2SeqLM.compile`.
            **kwargs: of `keras.Model.compile`.

        Raises:
            TypeError: if there is no such argument.
            ValueError: if there is no such log.
        """
        check.keywords("an argument of compile()", kwargs, _OPTIONS)
        optimizer = resolved_optimizer(optimizer, 5e-5)
        self.report(logs, *reported)
        keras.Model.compile(self, optimizer, None, weighted_metrics=metrics, **kwargs)
        self.compiled_rate = learning_rate(self.optimizer)

    def get_compile_config(self) -> dict[str, Any]:
        """The options of `compile` as a .keras file keeps them."""
        return self.saved_options(self._compiled_with) if self.compiled else {}

    def report(self, logs: Sequence[str], *metrics: keras.metrics.Metric) -> None:
        """Begins to count, in `compile`.

        Args:
            logs: which of `LOGS` join those of `fit`.
            *metrics: of `Reported`.

        Raises:
            ValueError: if there is no such log.
        """
        for name in logs:
            check.one_of("logs", name, LOGS)
        loads = [keras.metrics.Mean(f"{stack.name}_expert_load") for stack in self._with_experts()]
        self._reported = Reported(*metrics, loads=loads)
        self._logs, self.averaging, self._optimized = tuple(logs), None, frozenset()
        # Keras keeps those of the last `compile` where there are none now.
        self.loss = self._compile_loss = self._compile_metrics = None

    def saved_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `compile` as a .keras file keeps them, with the optimizer as it is now."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        built = {"optimizer": optimizer, "optimizer_is_built": self.optimizer.built}
        return {k: keras.saving.serialize_keras_object(v) for k, v in {**options, **built}.items()}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """As in Keras: compiles as the model that was saved, with variables of the optimizer."""
        options = {k: keras.saving.deserialize_keras_object(v) for k, v in config.items()}
        is_built = options.pop("optimizer_is_built")
        self.compile(**options)
        if is_built:
            self.optimizer.build(self.trainable_variables)

    def check_optimizer(self) -> None:
        """Raises ValueError if the optimizer does not know, or cannot move, what it is to train."""
        paths = frozenset(variable.path for variable in self.trainable_variables)
        if not self.optimizer.built:
            self._optimized = paths
        elif self._optimized and (new := sorted(paths - self._optimized)):
            raise ValueError(
                "Expected compile() again where more is to train than in the first fit, as after "
                f"enable_lora. Received: {len(new)} new weights, such as {new[0]}."
            )
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

    @property
    def metrics(self) -> list:
        theirs = super().metrics
        if self._reported is None:
            return theirs
        ours = self._reported.metrics
        # Keras' own loss is a mean of batches by rows.
        theirs = [m for m in theirs if not (ours and m is self._loss_tracker)]
        return [*ours, *theirs, *self._reported.loads, self.token_counter]

    def _with_experts(self) -> list[Any]:
        """Stacks that have experts."""
        model: Any = self
        return [stack for stack in model.backbone.stacks if stack.spec.experts is not None]

    def update_expert_loads(self) -> None:
        """Takes the loads of the forward pass in training that was just made."""
        loads = self._reported.loads if self._reported else ()
        for load, stack in zip(loads, self._with_experts(), strict=False):
            load.update_state(stack.busiest_expert())

    @property
    def token_counter(self) -> TokenCount:
        """The tokens of the run so far."""
        assert self._reported is not None
        return self._reported.tokens

    def get_metrics_result(self) -> dict[str, Tensor]:
        """As in Keras; the tokens seen so far and loads are for the logs of training alone."""
        results = super().get_metrics_result()
        return {k: v for k, v in results.items() if k not in self._of_training()}

    def _of_training(self) -> dict[str, keras.metrics.Metric]:
        """What is counted in training alone, by name."""
        reported = self._reported
        return {m.name: m for m in (*reported.loads, reported.tokens)} if reported else {}

    def step_logs(self, learning_rate: Any, gradient_norm: Any) -> dict[str, Tensor]:
        """The logs of a step: all metrics, and what `compile` was asked to log."""
        more = {"learning_rate": learning_rate, "gradient_norm": gradient_norm}
        logs = {**self.get_metrics_result(), **{k: more[k] for k in more if k in self._logs}}
        assert self._reported is not None
        logs |= {load.name: load.result() for load in self._reported.loads}
        if {"tokens", "tokens_per_second"} & set(self._logs):
            logs["tokens"] = self.token_counter.result()
        return logs

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """As in Keras, of what the model makes of `x`: it needs no `y_pred`."""
        model: Any = self
        return model.batch_loss(x, y, sample_weight, training)

    def _mean(
        self, losses: Tensor, weight: Tensor, total_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The mean over rows by weight, with what layers add: of these rows, and of the batch.

        Args:
            losses: (B,).
            weight: (B,).
            total_weight: of the whole batch, where this is a part of it.
        """
        total = ops.maximum(ops.sum(weight), 1e-20)
        more, summed = sum(self.losses), ops.sum(losses * weight)
        mean = summed / total + more
        if total_weight is None:
            return mean, mean
        return mean, summed / total_weight + more * (total / total_weight)

    def make_train_function(self, force: bool = False) -> None:
        """As in Keras; XLA on CPU is told to order its work by memory."""
        with step.compiling():
            super().make_train_function(force)

    def train_step(self, *args: Any) -> Any:
        return step.train_step(self, *args)

    def test_step(self, *args: Any) -> Any:
        return step.test_step(self, *args)
