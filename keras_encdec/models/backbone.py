"""The encoder-decoder as a KerasHub backbone. Knows its inputs and outputs.

Leaves settings, LoRA and files to `keras_encdec.models.base`.
"""

from collections.abc import Sequence
from typing import Any

import keras

from keras_encdec import check, layout
from keras_encdec.layers.decoder import Decoder
from keras_encdec.layers.encoder import Encoder
from keras_encdec.layers.stack import Stack
from keras_encdec.layers.vision import Vision
from keras_encdec.models.base import StacksBackbone
from keras_encdec.models.images import IMAGES, OptionalImages
from keras_encdec.spec import (
    AdaptorSpec,
    CrossAttentionSpec,
    EncoderAttention,
    PairSpec,
    StackSpec,
    VisionSpec,
    pair_from_json,
)


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecBackbone(OptionalImages, StacksBackbone):
    """An encoder and a decoder with cross-attention, from two independent specs.

    Inputs are KerasHub's: `encoder_token_ids`, `encoder_padding_mask` (B, S) and
    `decoder_token_ids`, `decoder_padding_mask` (B, T). Outputs are
    `encoder_sequence_output` (B, S, D'), of the encoder's width or an adaptor's, and
    `decoder_sequence_output` (B, T, D).
    `backbone.encoder` and `backbone.decoder` can each be called alone.

    A padding mask is 0 for padding and 1 for tokens. Rows that hold several examples
    number them 1, 2, 3, ... in both masks: each then sees only itself, from position 0.
    An example stands in one run of the row, without padding inside; padding may stand
    before and after it.

    With `vision` there may be `images` (B, N, H, W, 3) too, of which rows that have fewer are
    filled up: float32 from -1 to 1, each in the places of `vision.tokens_per_image` tokens
    `vision.image_token_id` of `encoder_token_ids`. What reads them, `backbone.vision`, is frozen
    unless its `trainable` is set.

    Three settings change memory and speed but, rounding aside, no number. They are not
    saved, and, as in Keras, a compiled task sees a change at its next `compile()`:
    `backbone.attention` is `"auto"` (fused for long texts), `"plain"`, `"fused"` or the
    name of a kernel (`keras_encdec.layers.choice.PATHS`); all but the first two are an
    error, which says why, where they cannot be: merged attention, TensorFlow, a soft cap
    on PyTorch; `backbone.remat = True` computes each block again in the backward pass
    instead of keeping what it computed; `backbone.scan = True`, on JAX,
    compiles blocks that are alike once, as a loop. Each step then copies the weights of these
    blocks, which need their memory twice, and the optimizer's part, one update for each
    weight, is compiled as before.

    A fourth one changes the time of greedy generation and its memory, and no token, from the next
    call on: `backbone.output_screen`. Where a table of the output matrix in int8 says which
    word is the likeliest, a quarter of the bytes of float32 is read, else the whole matrix. By
    default, `"auto"`, on JAX on CPUs in float32, with room for more than 64 tokens, where it is
    measured to pay, once for each number of rows; True wherever it can be, False never. The
    table takes V * (D + 12) bytes. Not screened are samplers that draw, an embedding that is
    quantised, has LoRA or does not write the logits, and any `keras.distribution`.

    Args:
        encoder: `StackSpec`, or its fields as a dict.
        decoder: `StackSpec`, or its fields as a dict.
        encoder_attention: `"bidirectional"` or `"causal"`.
        cross_attention: `CrossAttentionSpec`, or its fields as a dict; None for the usual one.
        tied_embeddings: whether both sides share an embedding.
        adaptor: `AdaptorSpec` of the encoder's states, or its fields as a dict; or None.
        vision: `VisionSpec`, or its fields as a dict; None for text alone.
        dtype: dtype or policy of computations and weights.
        **kwargs: of `keras_hub.models.Backbone`.

    Raises:
        ValueError: if a spec contradicts itself, or the active distribution cannot cut
            a weight evenly.

    Example:
        >>> pair = keras_encdec.testing.tiny_pair()
        >>> backbone = EncDecBackbone(pair.encoder, pair.decoder)

    Reference:
        [Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225)
    """

    def __init__(
        self,
        encoder: StackSpec | dict[str, Any],
        decoder: StackSpec | dict[str, Any],
        encoder_attention: EncoderAttention = "bidirectional",
        cross_attention: CrossAttentionSpec | dict[str, Any] | None = None,
        tied_embeddings: bool = False,
        adaptor: AdaptorSpec | dict[str, Any] | None = None,
        vision: VisionSpec | dict[str, Any] | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        sides = encoder, decoder, encoder_attention, cross_attention
        given = *sides, tied_embeddings, adaptor, vision
        spec = pair_from_json(*given)
        layout.check(spec.weights())
        policy = {"dtype": dtype}
        self.vision = _vision(spec, **policy)
        self.decoder = Decoder(
            spec.decoder,
            spec.context_width,
            spec.cross_attention,
            vision=self.vision,
            name="decoder",
            **policy,
        )
        self.encoder = Encoder(
            spec.encoder,
            causal=encoder_attention == "causal",
            adaptor=spec.adaptor,
            embedding=self.decoder.embedding if tied_embeddings else None,
            vision=self.vision,
            name="encoder",
            **policy,
        )
        inputs = {
            f"{side}_{name}": keras.Input((None,), dtype="int32", name=f"{side}_{name}")
            for side in ("encoder", "decoder")
            for name in ("token_ids", "padding_mask")
        }
        source = (inputs["encoder_token_ids"], inputs["encoder_padding_mask"])
        target = (inputs["decoder_token_ids"], inputs["decoder_padding_mask"])
        if spec.vision is not None:
            pixels = (None, spec.vision.image_size, spec.vision.image_size, 3)
            inputs[IMAGES] = keras.Input(pixels, dtype="float32", name=IMAGES, optional=True)
        encoder_output = self.encoder(*source, images=inputs.get(IMAGES))
        decoder_output = self.decoder(*target, encoder_output, source[1])
        outputs = {
            "encoder_sequence_output": encoder_output,
            "decoder_sequence_output": decoder_output,
        }
        super().__init__(spec, inputs=inputs, outputs=outputs, dtype=dtype, **kwargs)
        if self.vision is not None:
            self.vision.trainable = False

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return self.encoder, self.decoder

    @property
    def output_screen(self) -> bool | str:
        """Whether greedy generation screens the output projection: `"auto"`, True or False."""
        return self.decoder.output_screen

    @output_screen.setter
    def output_screen(self, value: bool | str) -> None:
        self.decoder.output_screen = value

    def enable_lora(
        self,
        rank: int,
        target_layer_names: Sequence[str] | None = None,
        train_cross_attention: bool = True,
    ) -> None:
        """Freezes the model, but for LoRA and for the cross-attention and adaptor, which are new.

        Args:
            rank: of the LoRA factors.
            target_layer_names: layers that get them, by default `"query"` and `"value"`.
            train_cross_attention: whether the cross-attention, its norms and an adaptor
                included, trains whole and gets no LoRA; with False it is treated like
                self-attention, and an adaptor like any layer.

        Raises:
            ValueError: if the rank is no number of 1 or more, there are no such layers, or the
                cross-attention is to train but is quantised; nothing is changed then.

        Example:
            >>> lm.quantize("int8", filters=keras_encdec.training.pretrained)
            >>> lm.backbone.enable_lora(8)
        """
        check.flag("train_cross_attention", train_cross_attention)
        self._enable_lora(rank, target_layer_names, train_cross_attention)


def _vision(spec: PairSpec, **policy: Any) -> Vision | None:
    """What reads images; None where there are none."""
    if spec.vision is None:
        return None
    vision = Vision(spec.vision, spec.encoder.width, name="vision", **policy)
    vision.build()
    return vision
