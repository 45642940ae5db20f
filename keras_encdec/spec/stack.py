"""A stack of Transformer blocks with its embedding: a frozen dataclass.

Knows what its layers have in common and each of its own. Leaves attentions, norms and positions
to `keras_encdec.spec.sublayers`, and pairs of stacks to `keras_encdec.spec.pair`. Standard
library only.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

from keras_encdec import check
from keras_encdec.spec.experts import MoESpec, experts_from_json, gated_weights
from keras_encdec.spec.fields import check_fields, check_given, require
from keras_encdec.spec.sublayers import (
    AttentionSpec,
    CrossAttentionSpec,
    NormSpec,
    RotarySpec,
    Shape,
    attention_from_json,
    rotary_from_json,
)

Window = int | tuple[int, int] | None
Activation = Literal["gelu_tanh", "silu", "clamped_swiglu"]

# Of `"clamped_swiglu"`: `swiglu_alpha` and `swiglu_limit` in the config of gpt-oss.
SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0

EMBEDDING = "embedding/embeddings"
OUTPUT = "embedding/reverse_embeddings"  # as Keras names an output matrix of its own


@dataclasses.dataclass(frozen=True)
class StackSpec:
    """A stack of Transformer blocks with its embedding: one decoder-only model.

    Args:
        vocabulary_size: rows of the embedding, V.
        width: model width, D.
        feedforward_dim: hidden width of the gated feed-forward, F; or a tuple with one for each
            layer. Gemma's papers report gate and up together, twice this number.
        attention: the self-attention of every block; or a tuple with one for each layer
            (Gemma 4). Kept as the one where all are alike.
        windows: for each layer, the number of keys a query may see on each side,
            its own included; `(before, after)` where the sides differ; None for all. Its
            length is the depth, L.
        rotary: positions: one `RotarySpec` for all layers, or None for none, or a tuple
            with one or None for each layer. Kept as the one where all are alike.
        activation: of the gate: `"gelu_tanh"`, the tanh approximation, or `"silu"`; or of the
            gate and what it opens, `"clamped_swiglu"`: `(u + 1) * g * sigmoid(SWIGLU_ALPHA * g)`, g
            at most `SWIGLU_LIMIT`, u that far on either side of 0 (gpt-oss; transformers,
            `GptOssExperts` of modeling_gpt_oss.py).
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
        layer_scalar: multiply what each block gives by a number of its own, which stays as it is
            in training (Gemma 4).
        borrowing_layers: how many of the last layers have no keys and values of their own in
            self-attention, but those of the last layer before them that sees as they do
            (Gemma 4 E2B and E4B).
        per_layer_dim: width of each block's part of a second embedding, P, which it is told of
            beside the states (Gemma 4 E2B and E4B); None where there is none.
    """

    vocabulary_size: int
    width: int
    feedforward_dim: int | tuple[int, ...]
    attention: AttentionSpec | tuple[AttentionSpec, ...]
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
    layer_scalar: bool = False
    borrowing_layers: int = 0
    per_layer_dim: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, check.whole, "vocabulary_size", "width")
        check_fields(self, check.whole, "borrowing_layers", least=0)
        check_given(self, check.whole, "per_layer_dim")
        flags = "pre_norm", "post_norm", "scale_embeddings", "tied_output", "layer_scalar"
        check_fields(self, check.flag, *flags)
        multipliers = "embedding_multiplier", "residual_multiplier", "logits_scaling"
        check_fields(self, check.real, *multipliers, above=0)
        require(self.pre_norm or self.post_norm, "a pre_norm or a post_norm", self)
        check_given(self, check.real, "final_logit_soft_cap", above=0)
        check_fields(self, check.real, "dropout", least=0, below=1)
        check.one_of("activation of StackSpec", self.activation, get_args(Activation))
        require(len(self.windows) > 0, "at least one layer in windows", self)
        for length in [n for w in self.windows if w is not None for n in window_lengths(w)]:
            check.whole("windows of StackSpec", length)
        self._check_layers()
        self._check_experts()

    def _check_layers(self) -> None:
        """Refuses what does not fit the depth; what is alike in all layers becomes one."""
        for name in ("attention", "feedforward_dim", "rotary"):
            each = self._of_each(name)
            received = f"{len(each)} and {self.num_layers}"
            require(len(each) == self.num_layers, f"as many {name} as windows", received)
            object.__setattr__(self, name, each[0] if len(set(each)) == 1 else each)
        if isinstance(self.feedforward_dim, tuple):
            for dim in self.feedforward_dim:
                check.whole("feedforward_dim of StackSpec", dim)
        else:
            check_fields(self, check.whole, "feedforward_dim")
        for attention, rotary in zip(self.attentions, self.rotaries, strict=True):
            if rotary is not None:
                rotary.check_fits(attention.head_dim)
        lends = self.borrowing_layers < self.num_layers
        lends = lends and all(self._lenders(i) for i in self._borrowers)
        expected = "a layer before the borrowing_layers that sees as each of them does"
        require(lends, expected, f"{self.borrowing_layers} of layers with windows {self.windows}")

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
        return self._of_each("rotary")

    @property
    def attentions(self) -> tuple[AttentionSpec, ...]:
        """`attention` of each layer."""
        return self._of_each("attention")

    @property
    def feedforward_dims(self) -> tuple[int, ...]:
        """`feedforward_dim` of each layer."""
        return self._of_each("feedforward_dim")

    def _of_each(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.num_layers

    @property
    def _borrowers(self) -> range:
        return range(self.num_layers - self.borrowing_layers, self.num_layers)

    def _lenders(self, layer: int) -> list[int]:
        """Layers with keys and values of their own that see as this one does."""
        sees = list(zip(self.windows, self.attentions, self.rotaries, strict=True))
        return [i for i in range(self._borrowers.start) if sees[i] == sees[layer]]

    def lender_of(self, layer: int) -> int | None:
        """The layer whose keys and values another borrows; None where it has its own."""
        return self._lenders(layer)[-1] if layer in self._borrowers else None

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
        weights: dict[str, Shape] = {EMBEDDING: (self.vocabulary_size, self.width)}
        if writes and not self.tied_output:
            weights[OUTPUT] = (self.width, self.vocabulary_size)
        if (dim := self.per_layer_dim) is not None:
            weights |= {
                "per_layer/embedding/embeddings": (self.vocabulary_size, self.num_layers * dim),
                "per_layer/projection/kernel": (self.width, self.num_layers * dim),
                "per_layer/norm/scale": (dim,),
            }
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
        d, f = self.width, self.feedforward_dims[layer]
        attention, borrows = self.attentions[layer], layer in self._borrowers
        sublayers = {"attention": attention.weights(d, d, borrows=borrows)}
        if context_width is not None:
            sublayers["cross_attention"] = attention.weights(d, context_width)
        experts = self.experts_of(layer)
        sublayers["feedforward"] = gated_weights(d, f) if experts is None else experts.weights(d)
        weights: dict[str, Shape] = {}
        for name, kernels in sublayers.items():
            weights |= {f"{side}_{name}_norm/scale": (d,) for side in self.norm_sides}
            weights |= {f"{name}/{key}": shape for key, shape in kernels.items()}
        if (dim := self.per_layer_dim) is not None:
            weights["per_layer/gate/kernel"] = (d, dim)
            weights["per_layer/output/kernel"] = (dim, d)
            weights["per_layer/norm/scale"] = (d,)
        return weights | ({"layer_scalar/scale": ()} if self.layer_scalar else {})


def window_lengths(window: int | tuple[int, int]) -> tuple[int, int]:
    """How many keys a query sees before and after it, itself included."""
    return window if isinstance(window, tuple) else (window, window)


def stack_from_json(data: "StackSpec | dict[str, Any]") -> StackSpec:
    """The inverse of `dataclasses.asdict` on a `StackSpec`, also through JSON."""
    if isinstance(data, StackSpec):
        return data
    read = {
        "feedforward_dim": _one_or_each(data["feedforward_dim"], lambda dim: dim),
        "attention": _one_or_each(data["attention"], attention_from_json),
        "windows": tuple(tuple(w) if isinstance(w, list) else w for w in data["windows"]),
        "rotary": _one_or_each(data["rotary"], rotary_from_json),
        "norm": NormSpec(**data["norm"]),
        "experts": experts_from_json(data.get("experts")),
    }
    return StackSpec(**{**data, **read})


def _one_or_each(value: Any, read: Callable[[Any], Any]) -> Any:
    """What all layers have, or a tuple with that of each."""
    return tuple(map(read, value)) if isinstance(value, (list, tuple)) else read(value)
