"""The encoder as a classifier: a head on one state of each text.

Knows heads, classes and choices. Leaves training to `keras_encdec.models.encoder_task`.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_encdec import check
from keras_encdec.data.labelled import Classes
from keras_encdec.layers.pooling import ChoicesToRows, Pool, Pooling, RowsToChoices
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.models.encoder_task import EncoderTask
from keras_encdec.models.text_classifier_preprocessor import EncDecTextClassifierPreprocessor

_HEAD_STDDEV = 0.02  # of transformers' T5Gemma heads
_COUNTS = "num_classes", "label_names", "num_choices"


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecTextClassifier(EncoderTask, keras_hub.models.TextClassifier):
    """Classifies texts, pairs of texts, or choices, by the encoder of a pair.

    Called on model inputs it returns logits (B, C). `fit` takes texts and labels:
    `fit(texts, labels)`, `fit((premises, hypotheses), labels)`, or a dict, frame or dataset with
    the columns `text`, `text_pair`, `choices` and `label`. Losses and metrics are means over
    texts by weight, whatever the batch.

    Args:
        backbone: `EncoderBackbone`.
        num_classes: C. Or give `label_names` or `num_choices`.
        preprocessor: `EncDecTextClassifierPreprocessor`, or None to work on tokens.
        pooling: which state of a text is classified: of its `"last"` token
            (arXiv 2504.06225, section 4), the `"mean"`, or of its `"first"`.
        dropout: rate in front of the head.
        activation: of the head, such as `"softmax"`; None for logits.
        label_names: names of the classes, in order: labels may then be names.
        num_choices: C, where each text comes with as many choices: each is read behind the text
            and gets one logit.
        **kwargs: of `keras_hub.models.TextClassifier`.

    Raises:
        ValueError: if not exactly one of the three numbers is given, or they contradict.

    Example:
        >>> classifier = EncDecTextClassifier.from_preset("./my_pair", label_names=["no", "yes"])
        >>> classifier.fit(texts, ["yes", "no", "yes"])
        >>> classifier.classify(["Another text."])

    Reference:
        [Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225), section 4
    """

    preprocessor_cls = EncDecTextClassifierPreprocessor
    _any_labels = False

    def __init__(
        self,
        backbone: EncoderBackbone,
        num_classes: int | None = None,
        preprocessor: Any = None,
        pooling: Pooling = "last",
        dropout: float = 0.0,
        activation: Any = None,
        label_names: Sequence[str] | None = None,
        num_choices: int | None = None,
        **kwargs: Any,
    ):
        count = _count(num_classes, label_names, num_choices)
        check.real("dropout", dropout, least=0, below=1)
        self.backbone, self.preprocessor = backbone, preprocessor
        self.num_classes, self.num_choices = count, num_choices
        self.label_names = None if label_names is None else tuple(label_names)
        self.pooling, self.dropout_rate = pooling, float(dropout)
        self.activation = keras.activations.get(activation)
        policy = {"dtype": backbone.encoder.dtype_policy}
        self.pool = Pool(pooling, name="pool", **policy)
        self.dropout = keras.layers.Dropout(self.dropout_rate, name="dropout", **policy)
        self.head = keras.layers.Dense(
            1 if num_choices else count,
            kernel_initializer=keras.initializers.RandomNormal(stddev=_HEAD_STDDEV),
            activation=None if num_choices else self.activation,
            name="head",
            **policy,
        )
        inputs = self._inputs()
        super().__init__(inputs=inputs, outputs=self._outputs(inputs), **kwargs)

    @classmethod
    def _of_found(cls, found: Any, **kwargs: Any) -> Any:
        """With the head of a classifier of transformers, unless another is asked for."""
        if found.head is None or any(name in kwargs for name in _COUNTS):
            return super()._of_found(found, **kwargs)
        task = super()._of_found(found, **{**found.head.options, **kwargs})
        task.head.kernel.assign(found.head.kernel)
        task.head.bias.assign(found.head.bias)
        return task

    def _inputs(self) -> dict[str, Any]:
        if not self.num_choices:
            return self.backbone.input
        shape = (self.num_choices, None)
        return {n: keras.Input(shape, dtype="int32", name=n) for n in self.backbone.input}

    def _outputs(self, inputs: dict[str, Any]) -> Any:
        rows = inputs
        if self.num_choices:
            rows = {name: ChoicesToRows()(x) for name, x in inputs.items()}
        vector = self.pool(self.backbone(rows), rows["padding_mask"])
        logits = self.head(self.dropout(vector))
        if not self.num_choices:
            return logits
        logits = RowsToChoices(self.num_choices)(logits)
        return keras.layers.Activation(self.activation)(logits)

    def compile(
        self, optimizer: Any = "auto", loss: Any = "auto", *, metrics: Any = "auto", **kwargs: Any
    ) -> None:
        """As in `keras_hub.models.TextClassifier`.

        Args:
            optimizer: by default AdamW at 5e-5 with gradients clipped at norm 1; a number is
                another rate for it.
            loss: by default the cross-entropy of integer labels; another loss of Keras gets labels
                as they are.
            metrics: by default accuracy; rows count by their weight, as in the loss.
            **kwargs: `logs`, as of `EncDecSeq2SeqLM.compile`, and those of `keras.Model.compile`.
        """
        given = {"loss": loss, "metrics": metrics, **kwargs}
        self._compiled_with = types.MappingProxyType(given)  # Keras would keep metrics of a dict
        self._any_labels = loss != "auto"
        if not self._any_labels:
            logits = self.activation != keras.activations.softmax
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
        if isinstance(metrics, str) and metrics == "auto":
            metrics = (
                [] if self._any_labels else [keras.metrics.SparseCategoricalAccuracy("accuracy")]
            )
        self.compile_rows(optimizer, loss, metrics, **kwargs)

    def classify(self, x: Any, batch_size: int | None = None, verbose: Any = 0) -> list[Any]:
        """The likeliest class of each text: its name, or number where there are no names.

        Args:
            x: texts, as `fit` takes them.
            batch_size: texts at a time.
            verbose: as in Keras.
        """
        numbers = np.argmax(self.predict(x, batch_size, verbose), axis=-1).tolist()
        return numbers if self.label_names is None else [self.label_names[i] for i in numbers]

    def _classes(self, class_weight: Mapping[int, float] | None) -> Classes | None:
        if not self._any_labels:
            return Classes(self.num_classes, self.label_names, class_weight)
        if class_weight is not None:
            raise ValueError(
                "Expected loss='auto' with class_weight, which counts texts by their class. "
                "Received: a loss of yours. Weigh its texts by sample_weight."
            )
        return None

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": None if self.label_names or self.num_choices else self.num_classes,
            "pooling": self.pooling,
            "dropout": self.dropout_rate,
            "activation": keras.activations.serialize(self.activation),
            "label_names": self.label_names and list(self.label_names),
            "num_choices": self.num_choices,
        }


def _count(
    num_classes: int | None, label_names: Sequence[str] | None, num_choices: int | None
) -> int:
    """Logits of a text."""
    given = dict(zip(_COUNTS, (num_classes, label_names, num_choices), strict=True))
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) != 1:
        raise ValueError(
            f"Expected one of num_classes, label_names or num_choices. Received: {asked or 'none'}."
        )
    if label_names is None:
        return check.whole(asked[0], given[asked[0]], least=1 if num_classes is not None else 2)
    names = [check.text("label_names", name) for name in label_names]
    if isinstance(label_names, str) or len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(f"Expected two different label_names or more. Received: {label_names!r}.")
    return len(names)
