"""The task: text in, text out; `fit`, `generate`, `save_to_preset`.

Knows the output layer and Keras' signatures. What data is, `keras_encdec.data.as_source`
decides; batches are `keras_encdec.data.batching`'s, steps `keras_encdec.training`'s, decoding
`keras_encdec.generation`'s and folders `keras_encdec.sharing`'s.
"""

from collections.abc import Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_encdec.data.batching import Batching, BatchSource, batch_source, split, tokens_of
from keras_encdec.data.kinds import Documents, Source, Stream, Tokens
from keras_encdec.data.ready import Labels
from keras_encdec.data.recognize import as_source, unpacked
from keras_encdec.data.teacher import check_one_vocabulary
from keras_encdec.data.tokens import vocabulary_digest
from keras_encdec.files import atomic_folder
from keras_encdec.generation.generator import Generator
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.compiling import Compiled
from keras_encdec.models.preprocessor import EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import PrefixLM
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.training import run


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecSeq2SeqLM(Generator, Compiled, keras_hub.models.Seq2SeqLM):
    """An encoder-decoder language model with its preprocessor.

    Called on model inputs it returns logits (B, T, V). `fit` takes pairs of texts
    (`fit(inputs, targets)`, or a dict, rows or a dataset with `encoder_text` and
    `decoder_text`), plain texts (a list, files by `keras_encdec.data.read`, a dataset),
    which the preprocessor's objective makes into examples, `keras_encdec.data.Tokens`, or
    ready model inputs.

    Args:
        backbone: `EncDecBackbone`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`, or None to work on tokens.
        **kwargs: of `keras_hub.models.Seq2SeqLM`.

    Example:
        >>> lm = keras_encdec.from_preset("gemma2_tiny_tiny")
        >>> lm.fit(["Some text.", "More text."])
        >>> lm.generate("Some", max_length=32)

    Reference:
        [Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225)
    """

    backbone_cls = EncDecBackbone
    preprocessor_cls = EncDecSeq2SeqLMPreprocessor

    def __init__(self, backbone: EncDecBackbone, preprocessor: Any = None, **kwargs: Any):
        self.backbone = backbone
        self.preprocessor = preprocessor
        states = backbone(backbone.input)["decoder_sequence_output"]
        logits = backbone.decoder.embedding(states, reverse=True)
        super().__init__(inputs=backbone.input, outputs=logits, **kwargs)

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

        The order of rows in memory follows from the preprocessor's seed and the epoch, and
        what an objective leaves to chance is drawn anew in each epoch. With a
        `keras_encdec.training.Checkpoint` among the callbacks, the same call goes on
        where a killed one was. After an error the model has the weights of the last whole
        step.

        Args:
            x: data.
            y: targets of texts, or labels of model inputs; -100 counts nothing.
            batch_size: B, 32 if None, or fewer where there are fewer rows.
            epochs: number of the last epoch.
            verbose: as in Keras.
            callbacks: one or a list.
            validation_split: share of the last rows, kept for validation.
            validation_data: anything that `x` may be, or `(x, y)`, `(x, y, sample_weight)`.
            shuffle: whether rows in memory are shuffled, anew in each epoch.
            class_weight: what each token counts as a label, by id.
            sample_weight: what each row, or each of its targets, counts.
            initial_epoch: number of the first epoch.
            steps_per_epoch: batches of an epoch, over as many passes as they need.
            validation_steps: batches of a validation.
            validation_batch_size: of validation, `batch_size` if None.
            validation_freq: as in Keras.

        Returns:
            `keras.callbacks.History`. Losses and metrics are means over tokens by weight.

        Raises:
            FloatingPointError: at the first loss that is NaN or Inf.
            ValueError: if data, teacher or optimizer cannot do what they are asked to.
        """
        self._assert_compile_called("fit")
        self.check_optimizer()
        source = as_source(x, y, sample_weight)
        self._check_teacher(source)
        held_out = None
        if validation_data is not None:
            held_out = as_source(*unpacked(validation_data))
        elif validation_split:
            source, held_out = split(self._in_memory(source), validation_split)
        callbacks = _listed(callbacks)
        checkpoint = run.find(callbacks)
        batching = self._batching(batch_size, shuffle, steps_per_epoch, class_weight, epochs=epochs)
        batches = batch_source(source, self._converter, batching)
        _check_passes(batches, x, checkpoint, epochs, steps_per_epoch)
        validation = None
        if held_out is not None:
            size = validation_batch_size or batch_size
            validation = self._evaluated(held_out, size, validation_steps)
            _check_passes(validation, validation_data, None, epochs, validation_steps)
        callbacks = [run.TokensPerSecond(self._logs), *callbacks, run.StopAtNaN(checkpoint)]
        with run.guarded(callbacks):
            return run.run(
                self,
                batches,
                epochs=epochs,
                initial_epoch=initial_epoch,
                callbacks=callbacks,
                verbose=verbose,
                validation=validation,
                validation_freq=validation_freq,
            )

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
        count = batches.steps(0)
        with run.protected(self), run.quiet_ends(count is None):
            return keras.Model.evaluate(
                self,
                run.required(batches),
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
        """Logits (N, T, V) of each row that `fit` would train on."""
        batching = Batching(
            batch_size,
            shuffle=False,
            steps=steps,
            fill=False,
            multiple=self._rows_of_devices,
            last_stage=True,
            inputs_only=True,
        )
        inputs = run.InputsAlone(batch_source(as_source(x), self._converter, batching))
        with run.protected(self), run.quiet_ends(inputs.steps(0) is None):
            adapter = run.required(inputs)
            return inputs.data(
                keras.Model.predict(self, adapter, verbose=verbose, callbacks=callbacks)
            )

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any
    ) -> Any:
        """As in Keras, on one batch of what `fit` takes."""
        labels = Labels(self._vocabulary_size, kwargs.pop("class_weight", None))
        batch = self._one_batch(as_source(x, y, sample_weight), labels)
        with run.protected(self):
            return keras.Model.train_on_batch(self, *batch, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """As in Keras, on one batch of what `fit` takes."""
        batch = self._one_batch(as_source(x, y, sample_weight), Labels(self._vocabulary_size))
        with run.protected(self):
            return keras.Model.test_on_batch(self, *batch, **kwargs)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """As in Keras, on one batch of what `fit` takes."""
        inputs, *_ = self._one_batch(as_source(x), None)
        with run.protected(self):
            return keras.Model.predict_on_batch(self, inputs)

    def _one_batch(self, source: Source, labels: Labels | None) -> tuple:
        """All rows as one batch."""
        batching = Batching(
            10**9,
            shuffle=False,
            fill=False,
            labels=self._labels(labels),
            last_stage=True,
            inputs_only=labels is None,
        )
        return next(iter(batch_source(source, self._converter, batching).read(0)))

    # What `fit` and the others have in common.

    @property
    def _converter(self) -> FeatureConverter | None:
        return None if self.preprocessor is None else self.preprocessor.converter

    @property
    def _vocabulary_size(self) -> int:
        return self.backbone.spec.decoder.vocabulary_size

    @property
    def _rows_of_devices(self) -> int:
        """What the rows of a batch are to be a multiple of."""
        distribution = keras.distribution.distribution()
        return getattr(distribution, "num_model_replicas", 1)

    def _labels(self, labels: Labels | None) -> Labels | None:
        """A loss of the user's gets the user's labels."""
        return labels if self._fused is not None else None

    def _batching(
        self,
        batch_size: int | None,
        shuffle: bool,
        steps: int | None,
        class_weight: Mapping[int, float] | None = None,
        **kwargs: Any,
    ) -> Batching:
        parts = self._gradient_accumulation_steps
        if class_weight is not None and self._fused is None:
            raise ValueError(
                "Expected the fused loss with class_weight, which counts tokens by their id. "
                "Received: a loss on logits. Weigh its tokens by sample_weight."
            )
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
            multiple=parts * self._rows_of_devices,
            labels=self._labels(Labels(self._vocabulary_size, class_weight)),
            **kwargs,
        )

    def _evaluated(self, source: Source, batch_size: int | None, steps: int | None) -> BatchSource:
        """Batches to evaluate on, in their order."""
        batching = Batching(
            batch_size,
            False,
            steps,
            fill=self._fused is not None,
            multiple=self._rows_of_devices,
            labels=self._labels(Labels(self._vocabulary_size)),
            last_stage=True,
        )
        return batch_source(source, self._converter, batching)

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

    # Files.

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """As `keras.Model.quantize`, of the backbone: a tokenizer has nothing to quantise."""
        self.backbone.quantize(mode, **kwargs)
        self.train_function = self.test_function = self.predict_function = None
        self.generate_function = None

    def save_to_preset(self, preset_dir: Any, max_shard_size: float | None = 10) -> None:
        """Writes a KerasHub preset folder, whole or not at all.

        Args:
            preset_dir: the folder; new, empty, or a preset to replace.
            max_shard_size: of one weights file, in GB; None for a single file.

        Raises:
            ValueError: if the folder holds something else.
        """
        with atomic_folder(preset_dir) as folder:
            super().save_to_preset(str(folder), max_shard_size)

    def export_to_transformers(self, path: Any, max_shard_size: float = 5.0) -> None:
        """See `keras_encdec.sharing.export.export_to_transformers`."""
        from keras_encdec.sharing.export import export_to_transformers

        export_to_transformers(self, path, max_shard_size)


def _listed(callbacks: Any) -> list:
    """One callback, several or none, as a list."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    if isinstance(callbacks, keras.callbacks.Callback):
        return [callbacks]
    return list(callbacks or [])


def _check_passes(
    batches: BatchSource, x: Any, checkpoint: Any, epochs: int, steps: int | None
) -> None:
    """Raises ValueError where data that comes once would be needed again."""
    if batches.again:
        return
    name = type(x).__name__
    if checkpoint is not None:
        raise ValueError(
            "Expected data whose batches can be found again, with a Checkpoint: texts, pairs, "
            f"arrays, a tf.data or a Grain dataset. Received: {name}."
        )
    if epochs > 1 and steps is None:
        raise ValueError(
            f"Expected data that can be gone through again for epochs={epochs}. Received: a "
            f"{name}, which is spent after one. Give steps_per_epoch, or a list or dataset."
        )
