"""What tasks that learn from plain text by an objective have in common.

Leaves `fit` and its like to `keras_encdec.models.learner`, and which other data there may be to
the tasks.
"""

from typing import Any

from keras_encdec.data.batching import Batching, BatchSource, batch_source, tokens_of
from keras_encdec.data.kinds import Documents, Source, Stream
from keras_encdec.data.recognize import as_source
from keras_encdec.models.learner import Learner
from keras_encdec.objectives.converter import FeatureConverter


class TextLearner(Learner):
    """Trains and evaluates a task whose `preprocessor` has a converter."""

    @property
    def _converter(self) -> FeatureConverter | None:
        return None if self.preprocessor is None else self.preprocessor.converter

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Source:
        return as_source(x, y, sample_weight)

    def _batch_source(self, source: Source, batching: Batching) -> BatchSource:
        return batch_source(source, self._converter, batching)

    def _reads_one_a_row(self, what: str) -> None:
        """A ValueError without a preprocessor, or with one that packs."""
        if self.preprocessor is None:
            raise ValueError(f"Expected a preprocessor, as {what} are text. Received: none.")
        if self.preprocessor.packing:
            raise ValueError(
                f"Expected preprocessor.packing = False with {what}, one a row. Received: packing."
            )

    def _in_memory(self, source: Source) -> Source:
        if isinstance(source, Stream):
            source = source.collected()
        if isinstance(source, Documents) and self._converter is not None:
            return tokens_of(source, self._converter)
        return source
