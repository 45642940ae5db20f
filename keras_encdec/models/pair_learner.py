"""What a pair of encoder and decoder trains on: texts, pairs of texts, tokens, model inputs.

Leaves `fit` and its like to `keras_encdec.models.learner`, plain text to
`keras_encdec.models.text_learner`, and options of `compile` to `keras_encdec.models.compiling`.
"""

from collections.abc import Mapping
from typing import Any

from keras_encdec import layout
from keras_encdec.data.batching import Batching, BatchSource
from keras_encdec.data.kinds import Documents, Source, Tokens
from keras_encdec.data.ready import Labels
from keras_encdec.data.teacher import check_one_vocabulary
from keras_encdec.data.tokens import vocabulary_digest
from keras_encdec.models.compiling import Compiled
from keras_encdec.models.own_outputs import OwnOutputs
from keras_encdec.models.policy_learner import PolicyLearner
from keras_encdec.objectives import PrefixLM
from keras_encdec.objectives.images import ImageTokens


class PairLearner(PolicyLearner, Compiled):
    """Trains and evaluates a pair with its `preprocessor`."""

    def _batching(
        self,
        batch_size: int | None,
        class_weight: Mapping[int, float] | None = None,
        epochs: int | None = None,
        **options: Any,
    ) -> Batching:
        parts = 1 if epochs is None else self._gradient_accumulation_steps
        if batch_size is not None and batch_size % parts:
            raise ValueError(
                f"Expected a batch that {parts} gradient_accumulation_steps divide. "
                f"Received: {batch_size} rows."
            )
        own = {
            "shuffle": False,
            "epochs": epochs or 1,
            "fill": not (self._fused is self._preference is self._policy is None),
            "multiple": parts * layout.replicas(),
            "labels": None if options.get("inputs_only") else self._labels(class_weight),
            "vocabularies": self.backbone.spec.vocabulary_sizes,
            "images": ImageTokens.of(self.backbone.spec.vision),
        }
        return Batching(batch_size, **{**own, **options})

    def _labels(self, class_weight: Mapping[int, float] | None = None) -> Labels | None:
        """How labels are checked; a loss of the user's gets them as they are."""
        if self._fused is not None:
            return Labels(self.backbone.spec.decoder.vocabulary_size, class_weight)
        if class_weight is not None:
            raise ValueError(
                "Expected the fused loss with class_weight, which counts tokens by their id. "
                "Received: a loss on logits. Weigh its tokens by sample_weight."
            )
        return None

    def _batches(self, source: Source, batching: Batching) -> BatchSource:
        batches, asked = super()._batches(source, batching), self._distillation
        return OwnOutputs(self, batches, batching) if asked and asked.on_policy else batches

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `Learner.train_on_batch`.

        Raises:
            ValueError: with a share of batches on the model's own outputs, which `fit` draws.
        """
        if self._distillation and self._distillation.on_policy:
            raise ValueError(
                "Expected fit with on_policy, as a batch's place in the run says whether it is on "
                "the model's own outputs. Received: train_on_batch. Compile with on_policy=0, or "
                "call fit."
            )
        return super().train_on_batch(*args, **kwargs)

    def _check_data(self, source: Source) -> None:
        """An objective's ids must be those of embeddings; a teacher sees what the student sees."""
        rows = min(self.backbone.spec.vocabulary_sizes.values())
        objective = self.preprocessor and self.preprocessor.objective
        if beyond := [i for i in getattr(objective, "added_ids", ()) if i >= rows]:
            raise ValueError(
                f"Expected sentinels and mode tokens below {rows}, the rows of an embedding. "
                f"Received: {beyond[0]}."
            )
        teacher = self._distillation and self._distillation.teacher
        if self.preprocessor is None or not teacher:
            return
        converter = self.preprocessor.converter
        check_one_vocabulary(converter)
        theirs = getattr(teacher.preprocessor, "tokenizer", None)
        if theirs is not None and vocabulary_digest(theirs) != vocabulary_digest(
            converter.tokenizer
        ):
            raise ValueError(
                "Expected a teacher with the student's tokenizer. Received: one whose tokens "
                "differ. Distillation needs one vocabulary."
            )
        if converter.packing:
            raise ValueError(
                "Expected preprocessor.packing = False for a teacher that is asked in each step: "
                "it reads one example a row. Received: packing. Keep rows with "
                "keras_encdec.data.write_teacher."
            )
        plain = isinstance(source, (Documents, Tokens))
        if plain and not isinstance(converter.objective, PrefixLM):
            raise ValueError(
                "Expected PrefixLM for a teacher that is asked in each step: it reads input and "
                f"target as one text. Received: {type(converter.objective).__name__}. "
                "Keep rows with keras_encdec.data.write_teacher."
            )
