"""`fit`, `evaluate`, `predict` and their like: Keras' signatures, and data of any kind.

Knows which batches each of them reads. What data is, `keras_encdec.data.as_source` decides;
batches are `keras_encdec.data.batching`'s, epochs `keras_encdec.training.run`'s and steps
`keras_encdec.training.step`'s.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_encdec import check, hosts, layout
from keras_encdec.accelerators import check_seen
from keras_encdec.data.batching import Batching, BatchSource, batch_source, split, tokens_of
from keras_encdec.data.facts import described, made_of
from keras_encdec.data.kinds import Documents, Source, Stream, Tokens
from keras_encdec.data.ready import Labels
from keras_encdec.data.recognize import as_source, unpacked
from keras_encdec.data.teacher import check_one_vocabulary
from keras_encdec.data.tokens import vocabulary_digest
from keras_encdec.models.compiling import Compiled
from keras_encdec.objectives import PrefixLM
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.training import run
from keras_encdec.training.checkpoint_about import run_facts
from keras_encdec.training.recording import Recording


class Learner(Compiled):
    """Gives a task with a `preprocessor` what trains and evaluates it."""

    preprocessor: Any

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
    ) -> Any:
        """Trains; arguments as in `keras.Model.fit`, and the class says what `x` may be.

        Rows in memory are shuffled by the preprocessor's seed and the epoch, and what an
        objective leaves to chance is drawn anew in each epoch. With a
        `keras_encdec.training.Checkpoint` the same call goes on where a killed one was.
        After an error the model has the weights of the last whole step.

        Args:
            x: data.
            y: targets of texts, or labels of model inputs; -100 counts nothing.
            batch_size: B, 32 if None, or fewer where there are fewer rows.
            callbacks: one or a list.
            validation_split: share of the last rows, kept for validation.
            validation_data: what `x` may be, or `(x, y)`, or `(x, y, sample_weight)`.
            class_weight: what each token counts as a label, by id.
            sample_weight: what each row, or each of its targets, counts.
            steps_per_epoch: batches of an epoch, over as many passes as they need.

        Returns:
            `keras.callbacks.History`. Losses and metrics are means over tokens by weight.

        Raises:
            FloatingPointError: at the first loss that is NaN or Inf.
            ValueError: if data, teacher or optimizer cannot do what they are asked to.
        """
        self._assert_compile_called("fit")
        _check(batch_size, epochs, initial_epoch, validation_batch_size, validation_split, shuffle)
        source, held_out = as_source(x, y, sample_weight), None
        if validation_data is not None:
            held_out = as_source(*unpacked(validation_data))
        elif validation_split:
            source, held_out = split(self._in_memory(source), validation_split)
        batching = self._batching(batch_size, shuffle, steps_per_epoch, class_weight, epochs)
        batches = self._batches(source, batching)
        size = validation_batch_size or batch_size
        held: BatchSource | None = None
        if held_out is not None:
            held = self._evaluated(held_out, size, validation_steps)
        made = source, self._converter, batching
        options = {"epochs": epochs, "verbose": verbose, "initial_epoch": initial_epoch}
        options |= {"validation_freq": validation_freq, "made_of": partial(made_of, *made)}
        return self._run(batches, held, callbacks, described(*made), **options)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Evaluates; takes what `fit` takes, and means are over tokens, as there."""
        if kwargs.pop("_use_cached_eval_dataset", False):  # Keras' own call, within `fit`
            return keras.Model.evaluate(
                self, x, callbacks=callbacks, return_dict=True, _use_cached_eval_dataset=True
            )
        self._assert_compile_called("evaluate")
        batches = self._evaluated(as_source(x, y, sample_weight), batch_size, steps)
        with run.one_pass(self, batches) as adapter:
            return keras.Model.evaluate(
                self,
                adapter,
                verbose=verbose,
                callbacks=callbacks,
                return_dict=return_dict,
                **kwargs,
            )

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """Logits (N, T, V) of each row that `fit` would train on.

        Raises:
            ValueError: in one of several processes, each of which would hold a part of them.
        """
        if hosts.count() > 1:
            raise ValueError(
                f"Expected one process for logits. Received: {hosts.count()}. score and generate "
                "work on several."
            )
        batching = Batching(
            batch_size,
            shuffle=False,
            steps=steps,
            fill=False,
            multiple=_replicas(),
            last_stage=True,
            inputs_only=True,
            vocabularies=self.backbone.spec.vocabulary_sizes,
        )
        inputs = run.InputsAlone(self._made(as_source(x), batching))
        with run.one_pass(self, inputs) as adapter:
            return inputs.data(
                keras.Model.predict(self, adapter, verbose=verbose, callbacks=callbacks)
            )

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """As in Keras, on one batch of what `fit` takes."""
        source = as_source(x, y, sample_weight)
        batch = self._one_batch(source, self._labels(class_weight))
        with run.protected(self):
            found = keras.Model.train_on_batch(self, *batch, return_dict=return_dict)
        self.backbone.record.count("train_on_batch")
        return found

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """As in Keras, on one batch of what `fit` takes."""
        batch = self._one_batch(as_source(x, y, sample_weight), self._labels())
        with run.protected(self):
            return keras.Model.test_on_batch(self, *batch, return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """As in Keras, on one batch of what `fit` takes."""
        inputs, *_ = self._one_batch(as_source(x), None)
        with run.protected(self):
            return keras.Model.predict_on_batch(self, inputs)

    # What `fit` and the others have in common.

    @property
    def _converter(self) -> FeatureConverter | None:
        return None if self.preprocessor is None else self.preprocessor.converter

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

    def _batching(
        self,
        batch_size: int | None,
        shuffle: bool,
        steps: int | None,
        class_weight: Mapping[int, float] | None,
        epochs: int,
    ) -> Batching:
        """How data is batched to train on."""
        parts = self._gradient_accumulation_steps
        if batch_size is not None and batch_size % parts:
            raise ValueError(
                f"Expected a batch that {parts} gradient_accumulation_steps divide. "
                f"Received: {batch_size} rows."
            )
        return Batching(
            batch_size,
            shuffle,
            steps,
            fill=self._fused is not None,
            multiple=parts * _replicas(),
            labels=self._labels(class_weight),
            epochs=epochs,
            vocabularies=self.backbone.spec.vocabulary_sizes,
        )

    def _batches(self, source: Source, batching: Batching) -> BatchSource:
        """Batches to train on."""
        self.check_optimizer()
        self._check_teacher(source)
        batches = self._made(source, batching)
        if not batches.again and batching.epochs > 1 and batching.steps is None:
            raise ValueError(
                f"Expected data that can be gone through again for epochs={batching.epochs}. "
                f"Received: a {batches.name}, which is spent after one. Give steps_per_epoch, or "
                "a list or dataset."
            )
        return batches

    def _evaluated(self, source: Source, batch_size: int | None, steps: int | None) -> BatchSource:
        """Batches to evaluate on, in their order."""
        batching = Batching(
            batch_size,
            False,
            steps,
            fill=self._fused is not None,
            multiple=_replicas(),
            labels=self._labels(),
            last_stage=True,
            vocabularies=self.backbone.spec.vocabulary_sizes,
        )
        return self._made(source, batching)

    def _made(self, source: Source, batching: Batching) -> BatchSource:
        """Batches of data, which every process has given alike, for a model where it belongs."""
        optimizer = [] if self.optimizer is None else self.optimizer.variables
        layout.check_placed({"model": self.variables, "optimizer": optimizer})
        hosts.check_same(
            "data and options",
            lambda: [made_of(source, self._converter, batching), batching.epochs],
        )
        return batch_source(source, self._converter, batching)

    def _facts(self, data: dict[str, Any]) -> dict[str, Any]:
        """What a record says of a run."""
        facts = run_facts(self, data)
        trained = sum(math.prod(v.shape) for v in self.trainable_variables)
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        facts |= {"optimizer": type(optimizer).__name__, "trained_parameters": trained}
        return {"data": facts.pop("batches"), **facts}

    def _run(
        self,
        batches: BatchSource,
        validation: BatchSource | None,
        callbacks: Any,
        data: dict[str, Any],
        **options: Any,
    ) -> Any:
        """Trains, from where a Checkpoint among the callbacks stands."""
        check_seen()
        given = _listed(callbacks)
        checkpoint = run.find(given)
        if checkpoint is not None and not batches.again:
            raise ValueError(
                "Expected data whose batches can be found again, with a Checkpoint: texts, pairs, "
                f"arrays, a tf.data or a Grain dataset. Received: {batches.name}."
            )
        own = Recording(self._facts(data)), run.TokensPerSecond(self._logs)
        every = [*own, *given, run.StopAtNaN(checkpoint)]
        with run.guarded(every):
            return run.run(self, batches, callbacks=every, validation=validation, **options)

    def _one_batch(self, source: Source, labels: Labels | None) -> tuple:
        """All rows as one batch."""
        batching = Batching(
            10**9,
            shuffle=False,
            fill=False,
            labels=labels,
            last_stage=True,
            inputs_only=labels is None and self._fused is not None,
            vocabularies=self.backbone.spec.vocabulary_sizes,
        )
        return next(iter(batch_source(source, self._converter, batching).read(0)))

    def _in_memory(self, source: Source) -> Source:
        """Data that can be split."""
        if isinstance(source, Stream):
            source = source.collected()
        if isinstance(source, Documents) and self._converter is not None:
            return tokens_of(source, self._converter)
        return source

    def _check_teacher(self, source: Source) -> None:
        """Raises ValueError where a teacher that is asked would not see what it must."""
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


def _replicas() -> int:
    """Groups of rows that lie on devices of their own."""
    return getattr(keras.distribution.distribution(), "num_model_replicas", 1)


def _check(
    batch_size: Any,
    epochs: Any,
    initial_epoch: Any,
    validation_batch_size: Any,
    split: Any,
    shuffle: Any,
) -> None:
    """What Keras would fail at later."""
    check.flag("shuffle", shuffle)
    check.whole("epochs", epochs, least=0)
    check.whole("initial_epoch", initial_epoch, least=0)
    check.real("validation_split", split, least=0, below=1)
    for name, size in (
        ("batch_size", batch_size),
        ("validation_batch_size", validation_batch_size),
    ):
        if size is not None:
            check.whole(name, size)


def _listed(callbacks: Any) -> list:
    """One callback, several or none, as a list.

    Raises:
        ValueError: if there is something else among them.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    several = isinstance(callbacks, (list, tuple)) or callbacks is None
    found = list(callbacks or []) if several else [callbacks]
    for callback in found:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(f"Expected callbacks of Keras. Received: {callback!r}.")
    return found
