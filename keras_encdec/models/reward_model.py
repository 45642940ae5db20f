"""A pair as a reward model: one number for an input and an answer to it.

Knows the head and what it reads. Leaves columns to `keras_encdec.data.preferred`, and a step to
`keras_encdec.training.reward_trainer`.
"""

import types
from typing import Any, Literal, get_args

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_encdec import check
from keras_encdec.data.batching import Batching, BatchSource, examples_of, of_rows, required
from keras_encdec.data.conversations import Conversations
from keras_encdec.data.images import of_source, refuse_images
from keras_encdec.data.kinds import Pairs, Stream
from keras_encdec.data.preferred import (
    Preferred,
    as_preferred,
    preferred_inputs,
    read_inputs,
    together_inputs,
)
from keras_encdec.data.ready import Rows
from keras_encdec.layers.pooling import Pool
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.learner import Learner
from keras_encdec.models.preprocessor import EncDecSeq2SeqLMPreprocessor
from keras_encdec.models.task_files import HeadFiles
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.spec import Tensor
from keras_encdec.training.reward_trainer import RewardTrainer

_HEAD_STDDEV = 0.02
Reads = Literal["decoder", "encoder"]


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecRewardModel(RewardTrainer, HeadFiles, Learner, keras_hub.models.Task):
    """Says how good an answer to an input is: a number that grows with it.

    The head reads the decoder's state at the last token of the answer; or, where the encoder alone
    is to judge, the encoder's state at the last token of input and answer, read as one text. The
    decoder is frozen then.

    `fit` takes a dict, frame, dataset or rows with `prompt`, `chosen` and `rejected`, and `margin`
    where there is one; `predict` and `score` take inputs with answers.

    Args:
        backbone: `EncDecBackbone`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`.
        reads: `"decoder"` or `"encoder"`, whose state the head reads.
        **kwargs: of `keras_hub.models.Task`.

    Raises:
        ValueError: if there is no such side.

    Example:
        >>> reward_model = EncDecRewardModel.from_preset("./sft")
        >>> reward_model.fit({"prompt": prompts, "chosen": better, "rejected": worse})
        >>> reward_model.predict({"prompt": prompts, "completion": answers})
    """

    backbone_cls = EncDecBackbone
    preprocessor_cls = EncDecSeq2SeqLMPreprocessor

    def __init__(
        self,
        backbone: EncDecBackbone,
        preprocessor: Any = None,
        reads: Reads = "decoder",
        **kwargs: Any,
    ):
        self.backbone, self.preprocessor = backbone, preprocessor
        self.reads = check.one_of("reads", reads, get_args(Reads))
        if reads == "encoder":
            _freeze_what_is_not_read(backbone)
        policy = {"dtype": backbone.decoder.dtype_policy}
        self.pool = Pool("last", name="pool", **policy)
        initializer = keras.initializers.RandomNormal(stddev=_HEAD_STDDEV)
        self.head = keras.layers.Dense(1, kernel_initializer=initializer, name="head", **policy)
        inputs = {k: v for k, v in backbone.input.items() if reads in ("decoder", k.split("_")[0])}
        states, mask = backbone.output[f"{reads}_sequence_output"], inputs[f"{reads}_padding_mask"]
        super().__init__(inputs=inputs, outputs=self.head(self.pool(states, mask))[:, 0], **kwargs)

    @classmethod
    def from_preset(cls, preset: Any, load_weights: bool = True, **kwargs: Any) -> Any:
        """The reward model that was saved, or a new one on a pair.

        Args:
            preset: a preset of this task, which comes back whole; or what
                `keras_encdec.from_preset` takes, which gets a new head.
            load_weights: as in KerasHub.
            **kwargs: of the task, and with a pair options of `keras_encdec.from_preset`.

        Raises:
            TypeError: if there is no such option.
            ValueError: if there is no such pair.
        """
        from keras_encdec.sharing.encoders import is_task
        from keras_encdec.sharing.load import from_preset

        if is_task(preset, cls):
            return super().from_preset(str(preset), load_weights, **kwargs)
        own = {n: kwargs.pop(n) for n in ("preprocessor", "reads", "name") if n in kwargs}
        lm = from_preset(preset, **kwargs)
        return cls(lm.backbone, **{"preprocessor": lm.preprocessor, **own})

    def compile(
        self, optimizer: Any = "auto", loss: Any = "auto", *, metrics: Any = None, **kwargs: Any
    ) -> None:
        """As in `keras.Model`.

        Args:
            optimizer: by default AdamW at 5e-5 with gradients clipped at norm 1; a number is
                another rate for it.
            loss: `keras_encdec.training.BradleyTerry`, the default.
            metrics: none; accuracy, the share of rows whose better answer gets more, and the mean
                margin between both are reported.
            **kwargs: `logs`, as of `EncDecSeq2SeqLM.compile`, and those of `keras.Model.compile`.

        Raises:
            ValueError: if there is no such loss.
        """
        given = {"loss": loss, "metrics": metrics, **kwargs}
        self.compile_rewards(optimizer, loss, metrics=metrics, **kwargs)
        self._compiled_with = types.MappingProxyType(given)  # Keras would keep metrics of a dict

    def rewards(self, x: Any, training: bool | None = None) -> Tensor:
        """(B * n,) float32, of n answers to each input one after another.

        Args:
            x: model inputs, of the encoder (B, S) and of the decoder (B * n, T); where the encoder
                is read, its own alone, (B * n, S).
            training: whether dropout is on.
        """
        mask = x["encoder_padding_mask"]
        states = self.backbone.encoder(x["encoder_token_ids"], mask, training=training)
        if self.reads == "decoder":
            read, mask = mask, x["decoder_padding_mask"]
            written = x["decoder_token_ids"], mask
            states = self.backbone.decoder(*written, states, read, training=training)
        return ops.cast(self.head(self.pool(states, mask))[:, 0], "float32")

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Tensor:
        """Model inputs to rewards (B,)."""
        return self.rewards(inputs, training)

    def score(self, prompts: Any, answers: Any, batch_size: int | None = None) -> np.ndarray:
        """(N,) float32: how good each answer to its prompt is.

        Args:
            prompts: texts, or conversations that end with the user.
            answers: a text, or messages of the assistant, for each.
            batch_size: rows at a time.
        """
        asked = {"prompt": prompts, "completion": answers}
        return self.predict(asked, batch_size, verbose=0)

    # What `fit` and the others read.

    @property
    def _converter(self) -> Any:
        return None if self.preprocessor is None else self.preprocessor.converter

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        source: Any = as_preferred(x, y, sample_weight)
        source = source.collected() if isinstance(source, Stream) else source
        refuse_images(of_source(source))
        if isinstance(source, (Pairs, Conversations)) or (
            isinstance(source, Preferred) and source.compares
        ):
            return source
        raise ValueError(
            "Expected columns prompt, chosen and rejected, or prompt and completion to predict. "
            "Received: other data."
        )

    def _batch_source(self, source: Any, batching: Batching) -> BatchSource:
        converter = required(self._converter)
        if isinstance(source, Preferred) == batching.inputs_only:
            raise ValueError(
                "Expected prompt, chosen and rejected to train and evaluate on, prompt and "
                "completion to predict. Received: the other one."
            )
        rows = (self._answers if batching.inputs_only else self._compared_rows)(source, converter)
        return of_rows(rows, batching.order(converter, len(rows)), batching.steps)

    def _compared_rows(self, source: Preferred, converter: FeatureConverter) -> Rows:
        if self.reads == "encoder":
            x, weights = read_inputs(source, converter)
        else:
            x, _, weights = preferred_inputs(source, converter)
        none = np.zeros(len(source), "float32")
        return Rows(x, {"margin": none if source.margins is None else source.margins}, weights)

    def _answers(self, source: Pairs | Conversations, converter: FeatureConverter) -> Rows:
        examples = examples_of(source, converter)
        if self.reads == "encoder":
            return Rows(together_inputs(examples, converter))
        return Rows(converter.rows.batch([(example,) for example in examples])[0])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "reads": self.reads}


def _freeze_what_is_not_read(backbone: EncDecBackbone) -> None:
    """The decoder, but for an embedding that the encoder reads by."""
    decoder = backbone.decoder
    for layer in (*decoder.blocks, decoder.final_norm, decoder.embedding):
        if layer is not backbone.encoder.embedding:
            layer.trainable = False
