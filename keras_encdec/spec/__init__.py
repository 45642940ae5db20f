"""What a model is: frozen dataclasses for a stack, a pair and an encoder.

Knows every number that shapes a model, and from them the name and shape of each
weight. Leaves attentions, norms and positions to `keras_encdec.spec.sublayers`, whose names are
here too, what is computed to `keras_encdec.layers`, and what other projects
call these fields to `keras_encdec.families`. Standard library only.

Axes, everywhere in this package: B batch, S source length, T target length,
N query heads, K key/value heads, G = N / K, H head width, D model width,
F feed-forward width, V vocabulary, L layers.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

from keras_encdec import check
from keras_encdec.spec.experts import MoESpec, experts_from_json
from keras_encdec.spec.fields import check_fields, check_given, require
from keras_encdec.spec.sublayers import (
    AttentionSpec,
    CrossAttentionSpec,
    NormSpec,
    RotarySpec,
    Shape,
    attention_from_json,
    cross_attention_from_json,
    rotary_from_json,
)
from keras_encdec.spec.vision import VisionSpec, vision_from_json

Tensor = Any  # of the active backend: JAX, TensorFlow or PyTorch
InputShape = tuple[Any, ...]  # of a layer's input, None where a length is open
EncoderAttention = Literal["bidirectional", "causal"]
Window = int | tuple[int, int] | None
Activation = Literal["gelu_tanh", "silu"]

_EMBEDDING = "embedding/embeddings"
_OUTPUT = "embedding/reverse_embeddings"  # as Keras names an output matrix of its own


@dataclasses.dataclass(frozen=True)
class StackSpec:
    """A stack of Transformer blocks with its embedding: one decoder-only model.

    Args:
        vocabulary_size: rows of the embedding, V.
        width: model width, D.
        feedforward_dim: hidden width of the gated feed-forward, F. Gemma's papers
            report gate and up together, twice this number.
        attention: the self-attention of every block.
        windows: for each layer, the number of keys a query may see on each side,
            its own included; `(before, after)` where the sides differ; None for all. Its
            length is the depth, L.
        rotary: positions: one `RotarySpec` for all layers, or None for none, or a tuple
            with one or None for each layer. Kept as the one where all are alike.
        activation: of the gate: `"gelu_tanh"`, the tanh approximation, or `"silu"`.
        norm: every norm in the stack.
        pre_norm: normalise the input of each sublayer, as all but OLMo 2 do.
        post_norm: normalise the output of each sublayer too (Gemma 2).
        scale_embeddings: multiply embedded tokens by the square root of D (Gemma).
        embedding_multiplier: of embedded tokens, beside that (Granite).
        residual_multiplier: of what each sublayer adds (Granite).
        logits_scaling: what logits are divided by, before their cap (Granite). A decoder's
            states are, which is the same; an encoder's are not, unless logits are asked of it.
        tied_output: the embedding also writes the logits; else a matrix of its own
            does. An encoder keeps its source's, which nothing computes with.
        final_logit_soft_cap: `cap * tanh(x / cap)` on the output logits; in an encoder
            likewise.
        dropout: rate on embeddings, sublayer outputs and the final norm's output.
        experts: a mixture of them in place of the feed-forward, in some layers or in all.
    """

    vocabulary_size: int
    width: int
    feedforward_dim: int
    attention: AttentionSpec
    windows: tuple[Window, ...]
    rotary: RotarySpec | tuple[RotarySpec | None, ...] | None = RotarySpec()
    activation: Activation = "gelu_tanh"
    norm: NormSpec = NormSpec()
    post_norm: bool = True
    scale_embeddings: bool = True
    tied_output: bool = True
    final_logit_soft_cap: float | None = None
    dropout: float = 0.0
    pre_norm: bool = True
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    experts: MoESpec | None = None

    def __post_init__(self) -> None:
        check_fields(self, check.whole, "vocabulary_size", "width", "feedforward_dim")
        check_fields(self, check.flag, "pre_norm", "post_norm", "scale_embeddings", "tied_output")
        multipliers = "embedding_multiplier", "residual_multiplier", "logits_scaling"
        check_fields(self, check.real, *multipliers, above=0)
        require(self.pre_norm or self.post_norm, "a pre_norm or a post_norm", self)
        check_given(self, check.real, "final_logit_soft_cap", above=0)
        check_fields(self, check.real, "dropout", least=0, below=1)
        check.one_of("activation of StackSpec", self.activation, get_args(Activation))
        require(len(self.windows) > 0, "at least one layer in windows", self)
        for length in [n for w in self.windows if w is not None for n in window_lengths(w)]:
            check.whole("windows of StackSpec", length)
        if isinstance(self.rotary, tuple) and len(set(self.rotary)) == 1:
            object.__setattr__(self, "rotary", self.rotary[0])
        require(len(self.rotaries) == self.num_layers, "as many rotary as windows", self)
        for rotary in filter(None, self.rotaries):
            rotary.check_fits(self.attention.head_dim)
        self._check_experts()

    def _check_experts(self) -> None:
        """Refuses experts in layers that there are none of; all layers become None."""
        if self.experts is None or self.experts.layers is None:
            return
        layers, every = set(self.experts.layers), set(range(self.num_layers))
        require(bool(layers) and layers <= every, "experts in layers that there are", self.experts)
        kept = None if layers == every else tuple(sorted(layers))
        object.__setattr__(self, "experts", dataclasses.replace(self.experts, layers=kept))

    @property
    def num_layers(self) -> int:
        return len(self.windows)

    @property
    def rotaries(self) -> tuple[RotarySpec | None, ...]:
        """`rotary` of each layer."""
        if isinstance(self.rotary, tuple):
            return self.rotary
        return (self.rotary,) * self.num_layers

    @property
    def norm_sides(self) -> tuple[str, ...]:
        """Where a sublayer has norms: `"pre"`, `"post"` or both."""
        return ("pre",) * self.pre_norm + ("post",) * self.post_norm

    @property
    def embedding_scale(self) -> float:
        """What embedded tokens are multiplied by."""
        return (self.width**0.5 if self.scale_embeddings else 1.0) * self.embedding_multiplier

    @property
    def longest_written(self) -> int | None:
        """Tokens of a text that is written one by one, None for any number.

        All tokens of a longer one turn otherwise (LongRoPE), those before too.
        """
        lengths = [r.original_length for r in self.rotaries if r and r.long_factors]
        return min(filter(None, lengths), default=None)

    def weights(
        self,
        context_width: int | None = None,
        cross_attention: CrossAttentionSpec | None = None,
        writes: bool = True,
    ) -> dict[str, Shape]:
        """Name and shape of each weight.

        Args:
            context_width: of the states that a cross-attention reads.
            cross_attention: of a decoder, or None.
            writes: whether the stack writes logits, as all but an encoder do.
        """
        weights: dict[str, Shape] = {_EMBEDDING: (self.vocabulary_size, self.width)}
        if writes and not self.tied_output:
            weights[_OUTPUT] = (self.width, self.vocabulary_size)
        for i in range(self.num_layers):
            cross = cross_attention if cross_attention and cross_attention.is_in(i) else None
            separate = cross is not None and not cross.merged
            block = self._block_weights(i, context_width if separate else None)
            if cross is not None and cross.gate:
                block["cross_attention_gate/scale"] = ()
            weights |= {f"block_{i}/{name}": shape for name, shape in block.items()}
        return {**weights, "final_norm/scale": (self.width,)}

    def experts_of(self, layer: int) -> MoESpec | None:
        """The experts of a layer; None where it has the one feed-forward."""
        return self.experts if self.experts is not None and self.experts.is_in(layer) else None

    @property
    def idle_parameters(self) -> int:
        """Parameters that a token does not go through: of the experts that are not its own."""
        experts = [found for i in range(self.num_layers) if (found := self.experts_of(i))]
        return sum(found.idle_parameters(self.width) for found in experts)

    def _block_weights(self, layer: int, context_width: int | None) -> dict[str, Shape]:
        d, f = self.width, self.feedforward_dim
        sublayers = {"attention": self.attention.weights(d, d)}
        if context_width is not None:
            sublayers["cross_attention"] = self.attention.weights(d, context_width)
        experts = self.experts_of(layer)
        dense: dict[str, Shape] = {
            "gate/kernel": (d, f),
            "up/kernel": (d, f),
            "down/kernel": (f, d),
        }
        sublayers["feedforward"] = dense if experts is None else experts.weights(d)
        weights: dict[str, Shape] = {}
        for name, kernels in sublayers.items():
            weights |= {f"{side}_{name}_norm/scale": (d,) for side in self.norm_sides}
            weights |= {f"{name}/{key}": shape for key, shape in kernels.items()}
        return weights


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
        vision: of images among the encoder's tokens (arXiv 2512.14856, section 2); None
            for text alone.
    """

    encoder: StackSpec
    decoder: StackSpec
    encoder_attention: EncoderAttention = "bidirectional"
    cross_attention: CrossAttentionSpec = CrossAttentionSpec()
    tied_embeddings: bool = False
    vision: VisionSpec | None = None

    def __post_init__(self) -> None:
        encoder, decoder, cross = self.encoder, self.decoder, self.cross_attention
        allowed = get_args(EncoderAttention)
        check.one_of("encoder_attention of PairSpec", self.encoder_attention, allowed)
        check_fields(self, check.flag, "tied_embeddings")
        one_sided = not any(isinstance(window, tuple) for window in decoder.windows)
        require(one_sided, "a decoder whose windows are numbers", decoder.windows)
        layers = cross.layers is None or set(cross.layers) <= set(range(decoder.num_layers))
        require(layers and cross.layers != (), "cross_attention in layers that there are", cross)
        same_width = encoder.width == decoder.width
        widths = encoder.width, decoder.width
        require(same_width or not cross.merged, "one width for merged attention", widths)
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

    def weights(self) -> dict[str, Shape]:
        """Name and shape of each weight of the pair; names are variable paths."""
        decoder = self.decoder.weights(self.encoder.width, self.cross_attention)
        if self.tied_embeddings:
            del decoder[_EMBEDDING]
        encoder = EncoderSpec(self.encoder, self.encoder_attention).weights()
        vision = self.vision.weights(self.encoder.width) if self.vision else {}
        return {
            **encoder,
            **{f"decoder/{k}": v for k, v in decoder.items()},
            **{f"vision/{k}": v for k, v in vision.items()},
        }

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """How many ids each side has."""
        return {"encoder": self.encoder.vocabulary_size, "decoder": self.decoder.vocabulary_size}

    @property
    def output(self) -> str:
        """Path of the weight that writes the logits: (V, D), or (D, V) if it is not tied."""
        side = "encoder" if self.tied_embeddings else "decoder"
        return f"{side}/{_EMBEDDING if self.decoder.tied_output else _OUTPUT}"


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


def window_lengths(window: int | tuple[int, int]) -> tuple[int, int]:
    """How many keys a query sees before and after it, itself included."""
    return window if isinstance(window, tuple) else (window, window)


def count_parameters(weights: dict[str, Shape]) -> int:
    """The number of parameters in a name-to-shape mapping; nothing is allocated."""
    return sum(math.prod(shape) for shape in weights.values())


def stack_from_json(data: "StackSpec | dict[str, Any]") -> StackSpec:
    """The inverse of `dataclasses.asdict` on a `StackSpec`, also through JSON."""
    if isinstance(data, StackSpec):
        return data
    rotary = data["rotary"]
    every = isinstance(rotary, (list, tuple))
    read = {
        "attention": attention_from_json(data["attention"]),
        "windows": tuple(tuple(w) if isinstance(w, list) else w for w in data["windows"]),
        "rotary": tuple(map(rotary_from_json, rotary)) if every else rotary_from_json(rotary),
        "norm": NormSpec(**data["norm"]),
        "experts": experts_from_json(data.get("experts")),
    }
    return StackSpec(**{**data, **read})


def pair_from_json(
    encoder: "StackSpec | dict[str, Any]",
    decoder: "StackSpec | dict[str, Any]",
    encoder_attention: EncoderAttention = "bidirectional",
    cross_attention: "CrossAttentionSpec | dict[str, Any] | None" = None,
    tied_embeddings: bool = False,
    vision: "VisionSpec | dict[str, Any] | None" = None,
) -> PairSpec:
    """A pair from the fields that `dataclasses.asdict` gives."""
    return PairSpec(
        stack_from_json(encoder),
        stack_from_json(decoder),
        encoder_attention,
        cross_attention_from_json(cross_attention),
        tied_embeddings,
        vision_from_json(vision),
    )


def spec_from_json(fields: "dict[str, Any]") -> PairSpec | EncoderSpec:
    """The inverse of `dataclasses.asdict` on either, also through JSON.

    Fields that an earlier version did not know have their defaults.
    """
    if "decoder" in fields:
        return pair_from_json(**fields)
    return EncoderSpec(stack_from_json(fields["encoder"]), fields["encoder_attention"])
