"""`compile`: what a task trains and samples with, and how that is kept in a .keras file.

Knows defaults and what Keras' `compile` does not know. Leaves what the options do to
`keras_encdec.training` and to the samplers.
"""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import keras_hub

from keras_encdec import check
from keras_encdec.layers import depth
from keras_encdec.models.reference import INITIAL
from keras_encdec.training.checkpoint_about import learning_rate
from keras_encdec.training.distillation import Distillation
from keras_encdec.training.loss import FusedCrossEntropy
from keras_encdec.training.pair_trainer import PairTrainer
from keras_encdec.training.policy import Policy
from keras_encdec.training.preferences import Preference
from keras_encdec.training.trainer import LOGS, resolved_optimizer
from keras_encdec.warn import warn


class Compiled(PairTrainer):
    """Gives a task `compile` with defaults for adaptation."""

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        distillation: Distillation | None = None,
        gradient_accumulation_steps: int = 1,
        attention: str | None = None,
        remat: bool | None = None,
        scan: bool | None = None,
        logs: Sequence[str] = LOGS,
        weighted_metrics: Any = "auto",
        sampler: Any = "top_k",
        **kwargs: Any,
    ) -> None:
        """As in `keras_hub.models.Seq2SeqLM`, with defaults for adaptation.

        Args:
            optimizer: by default AdamW at 1e-4 with gradients clipped at norm 1
                (arXiv 2512.14856, section 3.1, for the clipping; the rate is that of
                the official fine-tuning example); a number is another rate for it.
            loss: by default `keras_encdec.training.FusedCrossEntropy()`, which never
                holds logits and reports accuracy and perplexity. Any other loss of
                Keras gets logits (B, T, V), and `weighted_metrics` with it.
            distillation: `keras_encdec.training.Distillation`, or None.
            gradient_accumulation_steps: parts that a batch is gone through in, for
                less memory; the step is that of the whole batch. On JAX.
            attention, remat, scan: set those of `backbone`; None leaves them.
            logs: which of `"tokens"` (seen in the run, padding not counted),
                `"tokens_per_second"`, `"learning_rate"` and `"gradient_norm"` (before
                clipping) join the logs of `fit`; `()` for none.
            weighted_metrics: metrics of logits, where `loss` gets logits.
            sampler: of `generate`: a name or a sampler of KerasHub, or
                `keras_encdec.generation.BeamSearch`.
            **kwargs: of `keras.Model.compile`.

        Raises:
            ValueError: if options contradict each other.
        """
        given = dict(locals(), **kwargs)
        options = {k: v for k, v in given.items() if k not in _NO_OPTIONS}
        self._compiled_with = types.MappingProxyType(options)  # Keras would keep metrics of a dict
        self._check_settings(sampler, attention, remat, scan)
        optimizer = resolved_optimizer(optimizer, 1e-4)
        loss = FusedCrossEntropy() if loss == "auto" else loss
        if isinstance(loss, Policy) or (distillation and distillation.on_policy):
            _check_single_steps(kwargs.get("steps_per_execution", 1))
        self.compile_training(loss, distillation, gradient_accumulation_steps, optimizer, logs)
        if isinstance(loss, (FusedCrossEntropy, Preference, Policy)):
            _refuse_metrics(weighted_metrics, kwargs.get("metrics"))
            loss = weighted_metrics = None
        for name in _OF_A_MACHINE:
            if given[name] is not None:
                setattr(self.backbone, name, given[name])
        super().compile(
            optimizer, loss, weighted_metrics=weighted_metrics, sampler=sampler, **kwargs
        )
        self.compiled_rate = learning_rate(self.optimizer)

    def _check_settings(self, sampler: Any, attention: str | None, remat: Any, scan: Any) -> None:
        """Those that are set before Keras compiles, or looked at after it."""
        if isinstance(sampler, str):
            check.one_of("sampler", sampler, _SAMPLERS)
        elif not isinstance(sampler, (keras_hub.samplers.Sampler, dict)):
            raise ValueError(f"Expected a name or a Sampler of KerasHub. Received: {sampler!r}.")
        for stack in (self.backbone.encoder, self.backbone.decoder):
            stack.check_attention(stack.attention if attention is None else attention)
        if remat is not None:
            check.flag("remat", remat)
        if scan is not None:
            depth.check(scan)

    def compiled_facts(self) -> dict[str, Any]:
        """What decides the loss, as JSON types."""
        return {
            "loss": self._loss_facts(),
            "gradient_accumulation_steps": self._gradient_accumulation_steps,
            "distillation": self._distillation and self._distillation.facts(),
        }

    def _loss_facts(self) -> Any:
        if self._policy is not None:
            return [type(self._policy).__name__, self._policy.facts()]
        if self._preference is not None:
            return [type(self._preference).__name__, self._saved_preference().get_config()]
        return self._fused.get_config() if self._fused else str(self.loss)

    def get_compile_config(self) -> dict[str, Any]:
        """The options of `compile` as a .keras file keeps them.

        Those that set the backbone (`attention`, `remat`, `scan`) belong to a machine, not to a
        model, and are not saved with either.
        """
        if not self.compiled or not self._compiled_with:
            return {}
        options = {**self._compiled_with, "sampler": self.sampler}
        options = {k: v for k, v in options.items() if k not in _OF_A_MACHINE}
        distillation = options["distillation"]
        if distillation is not None and distillation.teacher is not None:
            warn("The teacher of Distillation is not saved with the model: compile with it again.")
            options["distillation"] = None
        if self._policy is not None:
            warn("Rewards are not saved with the model: compile with them again.")
            options["loss"] = "auto"
        if self._preference is not None:
            options["loss"] = self._saved_preference()
            if options["loss"] is not self._preference:
                warn("The reference of a loss is not saved with the model: compile with it again.")
        return self.saved_options(options)

    def _saved_preference(self) -> Any:
        """The loss without another model that it refers to."""
        loss: Any = self._preference
        refers = loss.reference not in (None, INITIAL)
        return dataclasses.replace(loss, reference=INITIAL) if refers else loss


_SAMPLERS = "greedy", "random", "top_k", "top_p", "beam", "contrastive", "speculative"
_NO_OPTIONS = ("self", "kwargs", "given", "__class__")
_OF_A_MACHINE = ("attention", "remat", "scan")


def _check_single_steps(count: Any) -> None:
    """Raises ValueError where several steps would be taken between two looks at the weights."""
    if count != 1:
        raise ValueError(
            "Expected steps_per_execution=1 where answers are drawn, which is done before each "
            f"step. Received: {count}."
        )


def _refuse_metrics(weighted_metrics: Any, metrics: Any) -> None:
    """Raises ValueError where metrics are to see logits that the fused loss never holds."""
    if weighted_metrics not in ("auto", None) or metrics:
        raise ValueError(
            "Expected a loss on logits for metrics on logits. Received: the fused loss, "
            "which reports accuracy and perplexity itself. Compile with "
            "loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )
