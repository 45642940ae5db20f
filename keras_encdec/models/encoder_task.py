"""What tasks on an encoder have in common: what they train on, and where they come from.

Leaves `fit` and its like to `keras_encdec.models.learner`, and what a task's output is to the
tasks.
"""

from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.data.batching import Batching, BatchSource, of_rows
from keras_encdec.data.labelled import Classes, Labelled, ReadyRows, as_labelled
from keras_encdec.data.ready import Rows
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.models.encoder_preprocessor import OPTIONS, inputs_of
from keras_encdec.models.exports import Exports
from keras_encdec.models.learner import Learner
from keras_encdec.models.task_files import HeadFiles
from keras_encdec.objectives.reader import Reader
from keras_encdec.training.encoder_trainer import EncoderTrainer


class OnEncoder(Exports, HeadFiles, Learner):
    """Gives a task on an encoder what loads and saves it."""

    reads_output = False  # whether it goes on with the output matrix of a decoder-only model
    backbone_cls = EncoderBackbone
    preprocessor_options: tuple[str, ...] = OPTIONS

    @classmethod
    def from_preset(cls, preset: Any, load_weights: bool = True, **kwargs: Any) -> Any:
        """The task that was saved, or a new one on an encoder.

        Args:
            preset: a preset of this task, which comes back whole, as does a classifier that
                `export_to_transformers` wrote where no classes are given; or whatever has an
                encoder, as for `EncoderBackbone.from_preset`, which gets a new head.
            load_weights: as in KerasHub.
            **kwargs: of the task; `dtype`; `encoder_attention` of a decoder-only model; and with
                a new head settings of the preprocessor, such as `sequence_length`.

        Raises:
            ValueError: if there is no such model, or it is a preset of another task.
        """
        from keras_encdec.sharing.encoders import find_encoder, is_task

        if is_task(preset, cls):
            return super().from_preset(str(preset), load_weights, **kwargs)
        settings = {n: kwargs.pop(n) for n in cls.preprocessor_options if n in kwargs}
        check.settings(settings, "preprocessor" in kwargs)
        found_by = {n: kwargs.pop(n) for n in ("dtype", "encoder_attention") if n in kwargs}
        found = find_encoder(preset, **found_by, with_output=cls.reads_output)
        if "preprocessor" not in kwargs:
            if "add_start_token" in cls.preprocessor_options:
                starts = found.backbone.spec.encoder_attention == "causal"
                starts &= getattr(found.tokenizer, "start_token_id", None) is not None
                settings = {"add_start_token": starts, **settings}
            kwargs["preprocessor"] = found.tokenizer and cls.preprocessor_cls(
                found.tokenizer, **settings
            )
        return cls._of_found(found, **kwargs)

    @classmethod
    def _of_found(cls, found: Any, **kwargs: Any) -> Any:
        """On an encoder that `find_encoder` found."""
        task = cls(found.backbone, **kwargs)
        task.take_output(found.output)
        return task

    def take_output(self, matrix: np.ndarray | None) -> None:
        """Takes the output matrix (D, V) that the encoder's source wrote by, if it wants one."""


class EncoderTask(OnEncoder, EncoderTrainer):
    """Gives a task on an encoder what trains, loads and saves it, from one label for each row."""

    @property
    def _converter(self) -> Reader | None:
        return None if self.preprocessor is None else self.preprocessor.reader

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        return as_labelled(x, y, sample_weight)

    def _batch_source(self, source: Labelled | ReadyRows, batching: Batching) -> BatchSource:
        size = self.backbone.spec.encoder.vocabulary_size
        x = inputs_of(source, self._converter, size)
        y, weights = None, None
        if not batching.inputs_only:
            y, weights = labels_of(source, batching.classes)
        order = batching.order(self._converter, len(source))
        return of_rows(Rows(x, y, weights), order, batching.steps)


def labels_of(source: Labelled | ReadyRows, classes: Classes | None) -> tuple[Any, Any]:
    """Labels and weights of rows.

    Raises:
        ValueError: if there are no labels, or one is none of the classes.
    """
    if source.labels is None:
        raise ValueError("Expected labels, one for each text: fit(texts, labels). Received: none.")
    weights = np.ones(len(source), "float32") if source.weights is None else source.weights
    if classes is None:
        return source.labels, weights
    labels = classes.ids(source.labels)
    return labels, classes.reweighted(labels, weights)
