"""What a model is: frozen dataclasses for an attention, a stack and a pair.

Knows every number that shapes a model, and from them the name and shape of each
weight. Leaves what is computed to `keras_encdec.layers`, and what other projects
call these fields to `keras_encdec.families`. Standard library only.

Axes, everywhere in this package: B batch, S source length, T target length,
N query heads, K key/value heads, G = N / K, H head width, D model width,
F feed-forward width, V vocabulary, L layers.
"""

import dataclasses
import math
from typing import Any, Literal

Shape = tuple[int, ...]
EncoderAttention = Literal["bidirectional", "causal"]


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """One attention sublayer.

    Args:
        num_heads: query heads, N.
        num_kv_heads: key/value heads, K; divides N.
        head_dim: width of a head, H; even where rotary positions are used.
        query_pre_attn_scalar: queries are multiplied by its inverse square root.
            The head width in most models, but D / N = 144 in Gemma 2 27B
            (arXiv 2408.00118; gemma/gm/nn/_gemma.py).
        logit_soft_cap: `cap * tanh(x / cap)` on the logits, before the mask.
        rope_base: wavelength base of the rotary positions; None: no positions.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    logit_soft_cap: float | None = None
    rope_base: float | None = 10_000.0

    def __post_init__(self):
        _require(
            self.num_heads % self.num_kv_heads == 0, "num_kv_heads that divides num_heads", self
        )
        _require(
            self.rope_base is None or self.head_dim % 2 == 0, "an even head_dim for rotary", self
        )

    @property
    def query_scale(self) -> float:
        return self.query_pre_attn_scalar**-0.5

    def weights(self, width: int, context_width: int) -> dict[str, Shape]:
        """Kernels for queries from `width` and keys/values from `context_width`."""
        n, k, h = self.num_heads, self.num_kv_heads, self.head_dim
        return {
            "query/kernel": (width, n, h),
            "key/kernel": (context_width, k, h),
            "value/kernel": (context_width, k, h),
            "attention_output/kernel": (n, h, width),
        }


@dataclasses.dataclass(frozen=True)
class StackSpec:
    """A stack of Transformer blocks with its embedding: one decoder-only model.

    Args:
        vocabulary_size: rows of the embedding, V.
        width: model width, D.
        feedforward_dim: hidden width of the gated feed-forward, F. Gemma's papers
            report gate and up together, twice this number.
        attention: the self-attention of every block.
        windows: for each layer, the number of keys a query may see on one side,
            its own included, or None for all. Its length is the depth, L.
        post_norm: normalise the output of each sublayer too (Gemma 2).
        norm_epsilon: of every RMS norm in the stack.
        final_logit_soft_cap: `cap * tanh(x / cap)` on the output logits; an encoder
            keeps its source's, which nothing computes with.
        dropout: rate on embeddings, sublayer outputs and the final norm's output.
    """

    vocabulary_size: int
    width: int
    feedforward_dim: int
    attention: AttentionSpec
    windows: tuple[int | None, ...]
    post_norm: bool = True
    norm_epsilon: float = 1e-6
    final_logit_soft_cap: float | None = None
    dropout: float = 0.0

    def __post_init__(self):
        _require(len(self.windows) > 0, "at least one layer in windows", self)
        _require(all(w is None or w > 0 for w in self.windows), "windows of at least 1", self)

    @property
    def num_layers(self) -> int:
        return len(self.windows)

    @property
    def cross_attention(self) -> AttentionSpec:
        """Of a decoder: its own heads, scale and soft cap, without positions."""
        return dataclasses.replace(self.attention, rope_base=None)

    def weights(self, context_width: int | None = None) -> dict[str, Shape]:
        """Name and shape of each weight.

        Args:
            context_width: with a number, every block has a cross-attention whose
                keys and values read states of this width.
        """
        block = self._block_weights(context_width)
        return {
            "embedding/embeddings": (self.vocabulary_size, self.width),
            **{f"block_{i}/{k}": v for i in range(self.num_layers) for k, v in block.items()},
            "final_norm/scale": (self.width,),
        }

    def _block_weights(self, context_width: int | None) -> dict[str, Shape]:
        d, f = self.width, self.feedforward_dim
        sublayers = {"attention": self.attention.weights(d, d)}
        if context_width is not None:
            sublayers["cross_attention"] = self.attention.weights(d, context_width)
        sublayers["feedforward"] = {
            "gate/kernel": (d, f),
            "up/kernel": (d, f),
            "down/kernel": (f, d),
        }
        sides = ("pre", "post") if self.post_norm else ("pre",)
        weights: dict[str, Shape] = {}
        for name, kernels in sublayers.items():
            weights |= {f"{side}_{name}_norm/scale": (d,) for side in sides}
            weights |= {f"{name}/{key}": shape for key, shape in kernels.items()}
        return weights


@dataclasses.dataclass(frozen=True)
class PairSpec:
    """An encoder-decoder: two full stacks, each with its own everything.

    The decoder's cross-attention has the decoder's heads, scale and soft cap,
    reads the encoder's width, sees every encoder position and knows no positions
    (gemma/research/t5gemma/modules.py).

    Args:
        encoder: the stack that reads the input.
        decoder: the stack that writes the target, with cross-attention added.
        encoder_attention: `"bidirectional"`, or `"causal"` as an ablation
            (arXiv 2504.06225, section 5).
    """

    encoder: StackSpec
    decoder: StackSpec
    encoder_attention: EncoderAttention = "bidirectional"

    def __post_init__(self):
        expected = "encoder_attention 'bidirectional' or 'causal'"
        _require(self.encoder_attention in ("bidirectional", "causal"), expected, self)

    def weights(self) -> dict[str, Shape]:
        """Name and shape of each weight of the pair; names are variable paths."""
        decoder = self.decoder.weights(context_width=self.encoder.width)
        return {
            **{f"encoder/{k}": v for k, v in self.encoder.weights().items()},
            **{f"decoder/{k}": v for k, v in decoder.items()},
        }


def count_parameters(weights: dict[str, Shape]) -> int:
    """The number of parameters in a name-to-shape mapping; nothing is allocated."""
    return sum(math.prod(shape) for shape in weights.values())


def stack_from_json(data: "StackSpec | dict[str, Any]") -> StackSpec:
    """The inverse of `dataclasses.asdict` on a `StackSpec`, also through JSON."""
    if isinstance(data, StackSpec):
        return data
    fields = dict(data)
    fields["attention"] = AttentionSpec(**fields["attention"])
    fields["windows"] = tuple(fields["windows"])
    return StackSpec(**fields)


def _require(condition: bool, expected: str, spec: Any) -> None:
    if not condition:
        raise ValueError(f"Expected {expected}. Received: {spec}")
