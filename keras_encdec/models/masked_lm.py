"""The encoder as a masked language model: a warm start before it makes vectors or classes.

Knows what reads hidden tokens out. Leaves training to `keras_encdec.training.masked_trainer`, and
data to `keras_encdec.models.text_learner`.
"""

import types
from collections.abc import Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_encdec.data.kinds import Documents, Source, Stream, Tokens, kind_of
from keras_encdec.data.recognize import as_source
from keras_encdec.layers.hidden import OutputMatrix, StatesBefore, states_to_read
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.models.encoder_task import OnEncoder
from keras_encdec.models.masked_lm_preprocessor import OPTIONS, EncDecMaskedLMPreprocessor
from keras_encdec.models.text_learner import TextLearner
from keras_encdec.spec import Tensor
from keras_encdec.training.loss import FusedCrossEntropy
from keras_encdec.training.masked_trainer import MaskedTrainer


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecMaskedLM(OnEncoder, TextLearner, MaskedTrainer, keras_hub.models.MaskedLM):
    """Predicts hidden tokens from the states in front of them (MNTP), by the encoder of a pair.

    What a decoder-only model that was made bidirectional learns first, and cheaply, before it is
    an embedder or a classifier; with `backbone.enable_lora` as in LLM2Vec. Called on model inputs,
    which have `mask_positions` (B, T) too, it returns logits (B, T, V). `fit` takes plain texts,
    all that `EncDecSeq2SeqLM.fit` takes as such; losses and metrics are means over hidden tokens.

    Args:
        backbone: `EncoderBackbone`.
        preprocessor: `EncDecMaskedLMPreprocessor`, or None.
        **kwargs: of `keras_hub.models.MaskedLM`.

    Example:
        >>> masked_lm = EncDecMaskedLM.from_preset("gemma2_2b_en")
        >>> masked_lm.backbone.enable_lora(16)
        >>> masked_lm.fit(texts)
        >>> masked_lm.save_to_preset("./mntp")
        >>> embedder = EncDecTextEmbedder.from_preset("./mntp")

    Reference:
        [LLM2Vec](https://arxiv.org/abs/2404.05961), section 2.1
    """

    preprocessor_cls = EncDecMaskedLMPreprocessor
    preprocessor_options = OPTIONS
    reads_output = True

    def __init__(self, backbone: EncoderBackbone, preprocessor: Any = None, **kwargs: Any):
        self.backbone, self.preprocessor = backbone, preprocessor
        spec, policy = backbone.spec.encoder, backbone.encoder.dtype_policy
        self.before = StatesBefore(name="before", dtype=policy)
        self.writes: Any = backbone.encoder.embedding
        if not spec.tied_output:
            self.writes = OutputMatrix(
                spec.vocabulary_size,
                spec.width,
                spec.final_logit_soft_cap,
                name="output_embedding",
                dtype=policy,
            )
        places = keras.Input((None,), dtype="int32", name="mask_positions")
        inputs = {**backbone.input, "mask_positions": places}
        logits = self.writes(self.states_before(inputs), reverse=True)
        super().__init__(inputs=inputs, outputs=logits, **kwargs)

    def states_before(self, inputs: Mapping[str, Tensor], training: bool | None = None) -> Tensor:
        """Model inputs to the states (B, T, D) that predict what is hidden."""
        own = {name: inputs[name] for name in ("token_ids", "padding_mask")}
        states = states_to_read(self.backbone(own, training=training), self.backbone.spec.encoder)
        return self.before(states, inputs["mask_positions"])

    def take_output(self, matrix: np.ndarray | None) -> None:
        if self.backbone.spec.encoder.tied_output:
            return
        if matrix is None:
            raise ValueError(
                "Expected a decoder-only model, which has the output matrix that its encoder is "
                "read out by. Received: an encoder without. Start from the source of the pair."
            )
        self.writes.reverse_embeddings.assign(matrix)

    def compile(self, optimizer: Any = "auto", loss: Any = "auto", **kwargs: Any) -> None:
        """As in `keras_hub.models.MaskedLM`.

        Args:
            optimizer: by default AdamW at 5e-5 with gradients clipped at norm 1; a number is
                another rate for it.
            loss: by default `keras_encdec.training.FusedCrossEntropy()`, which never holds all
                logits and reports accuracy and perplexity.
            **kwargs: `logs`, as of `EncDecSeq2SeqLM.compile`, and those of `keras.Model.compile`
                but for metrics.

        Raises:
            ValueError: if it is another loss.
        """
        self._compiled_with = types.MappingProxyType({"loss": loss, **kwargs})
        found = FusedCrossEntropy() if isinstance(loss, str) and loss == "auto" else loss
        self.writes.trainable = self.backbone.encoder.embedding.trainable  # not under LoRA
        self.compile_tokens(optimizer, found, **kwargs)

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Source:
        source = as_source(x, y, sample_weight)
        kind: Any = source.first() if isinstance(source, Stream) else source
        if not isinstance(kind, (Documents, Tokens)):
            raise ValueError(f"Expected plain texts for MNTP. Received: {kind_of(kind)}.")
        return source
