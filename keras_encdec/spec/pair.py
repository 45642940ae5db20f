"""Encoder-decoders and encoders of stacks: frozen dataclasses.

Knows what has to fit between two stacks. Leaves a stack to `keras_encdec.spec.stack`, and what
reads images to `keras_encdec.spec.vision`. Standard library only.
"""

import dataclasses
from typing import Any, Literal, get_args

from keras_encdec import check
from keras_encdec.spec.fields import check_fields, require
from keras_encdec.spec.stack import EMBEDDING, OUTPUT, StackSpec, stack_from_json
from keras_encdec.spec.sublayers import (
    AdaptorSpec,
    CrossAttentionSpec,
    Shape,
    adaptor_from_json,
    cross_attention_from_json,
)
from keras_encdec.spec.vision import VisionSpec, vision_from_json

EncoderAttention = Literal["bidirectional", "causal"]


@dataclasses.dataclass(frozen=True)
class PairSpec:
    """An encoder-decoder: two full stacks, each with its own everything.

    Args:
        encoder: the stack that reads the input.
        decoder: the stack that writes the target, with cross-attention added.
        encoder_attention: `"bidirectional"`, or `"causal"` as an ablation
            (arXiv 2504.06225, section 5).
        cross_attention: how the decoder looks at the encoder.
        tied_embeddings: encoder and decoder share one embedding (arXiv 2512.14856,
            section 2).
        adaptor: of the encoder's states before the decoder reads them, or None.
        vision: of images among the encoder's tokens (arXiv 2512.14856, section 2); None
            for text alone.
    """

    encoder: StackSpec
    decoder: StackSpec
    encoder_attention: EncoderAttention = "bidirectional"
    cross_attention: CrossAttentionSpec = CrossAttentionSpec()
    tied_embeddings: bool = False
    adaptor: AdaptorSpec | None = None
    vision: VisionSpec | None = None

    def __post_init__(self) -> None:
        encoder, decoder, cross = self.encoder, self.decoder, self.cross_attention
        allowed = get_args(EncoderAttention)
        check.one_of("encoder_attention of PairSpec", self.encoder_attention, allowed)
        check_fields(self, check.flag, "tied_embeddings")
        one_sided = not any(isinstance(window, tuple) for window in decoder.windows)
        require(one_sided, "a decoder whose windows are numbers", decoder.windows)
        borrows = cross.merged and decoder.borrowing_layers
        require(not borrows, "no borrowing_layers where attention is merged", borrows)
        layers = cross.layers is None or set(cross.layers) <= set(range(decoder.num_layers))
        require(layers and cross.layers != (), "cross_attention in layers that there are", cross)
        same_width = encoder.width == decoder.width
        widths = encoder.width, decoder.width
        self._check_adaptor()
        self._check_positions()
        fits = same_width and encoder.vocabulary_size == decoder.vocabulary_size
        fits = fits and decoder.tied_output
        expected = "one width, one vocabulary and a tied output for tied_embeddings"
        sizes = encoder.vocabulary_size, decoder.vocabulary_size
        received = f"widths {widths}, vocabularies {sizes}, tied_output {decoder.tied_output}"
        require(fits or not self.tied_embeddings, expected, received)
        self._check_vision()

    def _check_vision(self) -> None:
        """Refuses images where the ids around them are not of both vocabularies."""
        if self.vision is not None:
            smallest = min(self.vocabulary_sizes.values())
            require(self.vision.largest_id < smallest, "ids of images below the vocabulary", self)
            same = self.encoder.width == self.decoder.width
            require(same, "one width of encoder and decoder with images", self)
            told = self.encoder.per_layer_dim or self.decoder.per_layer_dim
            require(not told, "no per_layer_dim with images", told)

    def _check_adaptor(self) -> None:
        """Refuses more groups than layers, and a width that merged attention cannot read."""
        depth, widths = self.encoder.num_layers, (self.context_width, self.decoder.width)
        fits = self.adaptor is None or self.adaptor.groups <= depth
        require(fits, f"groups of an adaptor from 1 to {depth}", self.adaptor)
        one_width = widths[0] == widths[1] or not self.cross_attention.merged
        require(one_width, "one width for merged attention", widths)

    def _check_positions(self) -> None:
        """Refuses continuous positions that no layer has, or whose speed a text's length changes.

        In LongRoPE it would be that of input and target, which is not known while one writes.
        """
        if self.cross_attention.rotary is None:
            return
        layers = enumerate(self.decoder.rotaries)
        turned = [rotary for i, rotary in layers if rotary and self.cross_attention.is_in(i)]
        expected = "a decoder with rotary positions for those of a continuous cross-attention"
        require(bool(turned), f"{expected}, in a layer that has it", self.decoder.rotary)
        fits = self.decoder.longest_written is None
        require(fits, f"{expected}, without long_factors", self.decoder.rotary)

    def weights(self) -> dict[str, Shape]:
        """Name and shape of each weight of the pair; names are variable paths."""
        decoder = self.decoder.weights(self.context_width, self.cross_attention)
        if self.tied_embeddings:
            del decoder[EMBEDDING]
        encoder = EncoderSpec(self.encoder, self.encoder_attention).weights()
        encoder |= {f"encoder/{k}": v for k, v in self.adaptor_weights().items()}
        vision = self.vision.weights(self.encoder.width) if self.vision else {}
        return {
            **encoder,
            **{f"decoder/{k}": v for k, v in decoder.items()},
            **{f"vision/{k}": v for k, v in vision.items()},
        }

    def adaptor_weights(self) -> dict[str, Shape]:
        """Name and shape of each weight of the adaptor, as the encoder calls it."""
        weights = {} if self.adaptor is None else self.adaptor.weights(self.encoder.width)
        return {f"adaptor/{name}": shape for name, shape in weights.items()}

    @property
    def context_width(self) -> int:
        """Width of the states that the decoder reads."""
        return (self.adaptor and self.adaptor.width) or self.encoder.width

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """How many ids each side has."""
        return {"encoder": self.encoder.vocabulary_size, "decoder": self.decoder.vocabulary_size}

    @property
    def output(self) -> str:
        """Path of the weight that writes the logits: (V, D), or (D, V) if it is not tied."""
        side = "encoder" if self.tied_embeddings else "decoder"
        return f"{side}/{EMBEDDING if self.decoder.tied_output else OUTPUT}"


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """An encoder alone; its weights have the names that they have in a pair.

    Args:
        encoder: the stack that reads the input.
        encoder_attention: `"bidirectional"`, or `"causal"` as a decoder-only model reads.
    """

    encoder: StackSpec
    encoder_attention: EncoderAttention = "bidirectional"

    def __post_init__(self) -> None:
        allowed = get_args(EncoderAttention)
        check.one_of("encoder_attention of EncoderSpec", self.encoder_attention, allowed)

    def weights(self) -> dict[str, Shape]:
        """Name and shape of each weight; names are variable paths."""
        return {f"encoder/{k}": v for k, v in self.encoder.weights(writes=False).items()}

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """How many ids there are."""
        return {"encoder": self.encoder.vocabulary_size}


def pair_from_json(
    encoder: "StackSpec | dict[str, Any]",
    decoder: "StackSpec | dict[str, Any]",
    encoder_attention: EncoderAttention = "bidirectional",
    cross_attention: "CrossAttentionSpec | dict[str, Any] | None" = None,
    tied_embeddings: bool = False,
    adaptor: "AdaptorSpec | dict[str, Any] | None" = None,
    vision: "VisionSpec | dict[str, Any] | None" = None,
) -> PairSpec:
    """A pair from the fields that `dataclasses.asdict` gives."""
    return PairSpec(
        stack_from_json(encoder),
        stack_from_json(decoder),
        encoder_attention,
        cross_attention_from_json(cross_attention),
        tied_embeddings,
        adaptor_from_json(adaptor),
        vision_from_json(vision),
    )


def spec_from_json(fields: "dict[str, Any]") -> PairSpec | EncoderSpec:
    """The inverse of `dataclasses.asdict` on either, also through JSON.

    Fields that an earlier version did not know have their defaults.
    """
    if "decoder" in fields:
        return pair_from_json(**fields)
    return EncoderSpec(stack_from_json(fields["encoder"]), fields["encoder_attention"])
