"""What a pair learns from beside text: answers that people preferred.

Knows which batches a preference loss reads. Leaves columns to `keras_encdec.data.preferred`,
formulas to `keras_encdec.training.preferences`, the reference to `keras_encdec.models.reference`.
"""

from typing import Any

from keras_encdec.data.batching import BATCH_SIZE, Batching, BatchSource, of_rows
from keras_encdec.data.preferred import Preferred, as_preferred, preferred_inputs
from keras_encdec.data.ready import Rows
from keras_encdec.models.reference import Reference
from keras_encdec.models.text_learner import TextLearner
from keras_encdec.training.preference_trainer import PreferenceTrainer
from keras_encdec.training.preferences import Preference


class PreferredLearner(TextLearner, PreferenceTrainer):
    """Gives a task batches of preferences, where it is compiled with such a loss."""

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        return as_preferred(x, y, sample_weight)

    def _in_memory(self, source: Any) -> Any:
        return source if isinstance(source, Preferred) else super()._in_memory(source)

    def _batch_source(self, source: Any, batching: Batching) -> BatchSource:
        if isinstance(source, Preferred) and batching.inputs_only:
            raise ValueError(
                "Expected one answer for each input, to predict. Received: preferences. Give "
                "prompt and completion; lm.score says how likely answers are."
            )
        if not isinstance(source, Preferred) and (self._preference is None or batching.inputs_only):
            return super()._batch_source(source, batching)
        loss = self._checked(source)
        converter = self.preprocessor.converter
        x, labels, weights = preferred_inputs(source, converter)
        y = {"labels": labels}
        if source.labels is not None:
            y["is_good"] = source.labels
        if loss.reads_reference:
            y["reference"] = self._of_reference(loss, x, labels, batching)
        order = batching.order(converter, len(labels))
        return of_rows(Rows(x, y, weights), order, batching.steps)

    def _of_reference(self, loss: Any, x: Any, labels: Any, batching: Batching) -> Any:
        """(N, 2): of the model as the first call after `compile` found it, or of another task."""
        if self._reference is None:
            self._reference = Reference(self, loss)
        return self._reference.log_probs(
            x, labels, min(batching.batch_size or BATCH_SIZE, BATCH_SIZE)
        )

    def _checked(self, source: Any) -> Preference:
        """The loss; a ValueError where it does not go with the data."""
        loss = self._preference
        self._reads_one_a_row("preferences")
        wanted = "prompt, chosen and rejected"
        if loss is None:
            raise ValueError(
                "Expected a loss for preferences, such as lm.compile(loss=keras_encdec.training."
                "DPO()). Received: preferences, and a loss that reads one answer for each input."
            )
        if not loss.compares:
            wanted = "prompt, completion and label"
        if not isinstance(source, Preferred) or source.compares != loss.compares:
            raise ValueError(
                f"Expected columns {wanted} with {type(loss).__name__}. Received: other data."
            )
        if source.margins is not None:
            raise ValueError(
                f"Expected no margin with {type(loss).__name__}, which reads none. Received: the "
                "column margin. Train EncDecRewardModel with it, or leave it out."
            )
        return loss
