"""What a pair learns from where a loss rewards answers: prompts alone.

Knows which batches such a loss reads, and what stays the same while it trains. Leaves drawing to
`keras_encdec.models.rollouts`, formulas to `keras_encdec.training.policy`.
"""

from typing import Any

from keras_encdec import check, progress
from keras_encdec.data.batching import Batching, BatchSource
from keras_encdec.data.kinds import INPUTS
from keras_encdec.data.prompted import Prompted, as_prompted
from keras_encdec.data.recognize import names_of_columns
from keras_encdec.models.anchor import Anchor, Other
from keras_encdec.models.learner import listed
from keras_encdec.models.on_policy import OnPolicy
from keras_encdec.models.preferred_learner import PreferredLearner
from keras_encdec.models.rollouts import Rollouts
from keras_encdec.training.policy import EMA, INITIAL

_EVALUATE = "batch_size", "verbose", "sample_weight", "steps", "callbacks", "return_dict"


class PolicyLearner(PreferredLearner):
    """Gives a task batches of its own answers, where it is compiled with such a loss."""

    _held_out: Rollouts | None = None

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        names = names_of_columns(x) or ()
        if self._policy is None or INPUTS[0] in names:
            return super()._source(x, y, sample_weight)
        return as_prompted(x, y, sample_weight)

    def _in_memory(self, source: Any) -> Any:
        return source if isinstance(source, Prompted) else super()._in_memory(source)

    def _batch_source(self, source: Any, batching: Batching) -> BatchSource:
        is_prompts = isinstance(source, Prompted)
        if self._policy is None or (batching.inputs_only and not is_prompts):
            return super()._batch_source(source, batching)
        if not is_prompts or batching.inputs_only:
            raise ValueError(
                f"Expected prompts to train and evaluate on, with {type(self._policy).__name__}, "
                "and model inputs to predict. Received: the other one. For answers, generate."
            )
        self._reads_one_a_row("prompts")
        path = None if batching.last_stage else self._policy.path
        return Rollouts(self, source, batching, self._of_policy(), path)

    def _of_policy(self) -> Any:
        """The reference: weights as the first call after `compile` finds them, or a task."""
        asked = self._policy.reference
        if self._reference is None and asked in (INITIAL, EMA):
            self._reference = Anchor(self, follows=asked == EMA)
        elif self._reference is None and asked is not None:
            self._reference = Other(self, asked)
        return self._reference

    @property
    def anchor_variables(self) -> list:
        """What a checkpoint keeps beside weights and optimizer."""
        of_policy = isinstance(self._reference, (Anchor, Other))
        return self._reference.variables if of_policy else []

    def _run(
        self, batches: BatchSource, validation: Any, callbacks: Any, *args: Any, **options: Any
    ) -> Any:
        if isinstance(batches, OnPolicy):
            callbacks = [*batches.callbacks(), *listed(callbacks)]
        return super()._run(batches, validation, callbacks, *args, **options)

    def _evaluated(self, source: Any, batch_size: int | None, steps: int | None) -> BatchSource:
        batches = super()._evaluated(source, batch_size, steps)
        if not isinstance(batches, Rollouts):
            return batches
        self._held_out = batches
        return batches.order  # answers are drawn when it is their turn

    def _evaluate_within_fit(self, x: Any, callbacks: Any) -> dict[str, float]:
        if self._policy is None:
            return super()._evaluate_within_fit(x, callbacks)
        assert self._held_out is not None
        return self._held_out.means()

    def _evaluate_batches(
        self, batches: BatchSource, return_dict: bool, verbose: Any = "auto", **options: Any
    ) -> Any:
        if self._policy is None:
            return super()._evaluate_batches(batches, return_dict, verbose=verbose, **options)
        if found := listed(options.pop("callbacks", None)):
            raise ValueError(
                "Expected no callbacks where drawn answers are evaluated, of which Keras sees no "
                f"batch. Received: {type(found[0]).__name__}. Give it to fit."
            )
        check.keywords("an argument of evaluate()", options, _EVALUATE)
        assert self._held_out is not None
        means = self._held_out.means()
        if verbose:
            progress.say(", ".join(f"{name} {value:.4g}" for name, value in means.items()))
        return means if return_dict else list(means.values())
