"""An encoder alone as a KerasHub backbone, for tasks that write nothing.

Leaves settings, LoRA and files to `keras_encdec.models.base`, and where an encoder comes from to
`keras_encdec.sharing.encoders`.
"""

from collections.abc import Sequence
from typing import Any

import keras

from keras_encdec import layout
from keras_encdec.layers.encoder import Encoder
from keras_encdec.layers.stack import Stack
from keras_encdec.models.base import StacksBackbone
from keras_encdec.models.exports import Exports
from keras_encdec.spec import EncoderAttention, EncoderSpec, StackSpec, stack_from_json


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncoderBackbone(Exports, StacksBackbone):
    """The encoder of a pair, or a decoder-only model as one, without a decoder.

    Inputs are KerasHub's: `token_ids` and `padding_mask`, (B, S); the output is (B, S, D)
    normalised states. A padding mask is 0 for padding and 1 for tokens, or the number of the
    example where a row holds several. `backbone.attention`, `backbone.remat` and `backbone.scan`
    are as those of `EncDecBackbone`.

    Args:
        encoder: `StackSpec`, or its fields as a dict.
        encoder_attention: `"bidirectional"`, or `"causal"` as a decoder-only model reads.
        dtype: dtype or policy of computations and weights.
        **kwargs: of `keras_hub.models.Backbone`.

    Raises:
        ValueError: if the spec contradicts itself, or the active distribution cannot cut
            a weight evenly.

    Example:
        >>> backbone = EncoderBackbone.from_preset("./my_pair")
        >>> states = backbone({"token_ids": ids, "padding_mask": mask})

    Reference:
        [Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225), section 4
    """

    def __init__(
        self,
        encoder: StackSpec | dict[str, Any],
        encoder_attention: EncoderAttention = "bidirectional",
        dtype: Any = None,
        **kwargs: Any,
    ):
        spec = EncoderSpec(stack_from_json(encoder), encoder_attention)
        layout.check(spec.weights())
        causal = encoder_attention == "causal"
        self.encoder = Encoder(spec.encoder, causal=causal, name="encoder", dtype=dtype)
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name)
            for name in ("token_ids", "padding_mask")
        }
        super().__init__(
            spec, inputs=inputs, outputs=self.encoder(*inputs.values()), dtype=dtype, **kwargs
        )

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return (self.encoder,)

    @property
    def token_embedding(self) -> keras.layers.Layer:
        """The embedding, as KerasHub's backbones name it."""
        return self.encoder.embedding

    def enable_lora(self, rank: int, target_layer_names: Sequence[str] | None = None) -> None:
        """Freezes the encoder, but for LoRA.

        Args:
            rank: of the LoRA factors.
            target_layer_names: layers that get them, by default `"query"` and `"value"`.

        Raises:
            ValueError: if the rank is no number of 1 or more, or there are no such layers.
        """
        self._enable_lora(rank, target_layer_names, whole=False)

    @classmethod
    def from_preset(
        cls, preset: Any, load_weights: bool = True, **kwargs: Any
    ) -> "EncoderBackbone":
        """The encoder of whatever has one.

        Args:
            preset: one of ours, alone or in a pair; a pair in memory; or a decoder-only model, all
                that `keras_encdec.adapt` takes.
            load_weights: as in KerasHub; a random encoder is made by its config.
            **kwargs: `encoder_attention` of a decoder-only model, by default `"bidirectional"`;
                and `dtype`.

        Raises:
            ValueError: if there is no such model, or `encoder_attention` is given for an encoder
                that is trained to attend as it does.
        """
        from keras_encdec.sharing.encoders import find_encoder

        if not load_weights:
            raise ValueError(
                "Expected load_weights=True. Received: False. "
                "EncoderBackbone(**config) makes random weights."
            )
        return find_encoder(preset, **kwargs).backbone
