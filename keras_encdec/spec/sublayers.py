"""What the sublayers of a block are: frozen dataclasses of an attention, its positions and norms,
and of what brings an encoder's states to a decoder.

Knows their numbers, and from them the name and shape of each weight. Leaves the stacks that are
made of them, and what axes are called, to `keras_encdec.spec`. Standard library only.
"""

import dataclasses
from typing import Any, Literal, get_args

from keras_encdec import check
from keras_encdec.spec.fields import check_fields, check_given, require

Shape = tuple[int, ...]
CrossRotary = Literal["continuous", None]


@dataclasses.dataclass(frozen=True)
class RotarySpec:
    """Rotary positions: pair j of a head turns by position / base^(2j / H), or slower.

    At most one of two ways tells pairs apart: those that are slow in Llama 3.1, or a factor
    for each in LongRoPE (arXiv 2402.13753). Both know `original_length`.

    Args:
        base: wavelength base.
        factor: how many times longer a text may be than in pretraining: each pair turns
            that many times slower, or, with the two frequency factors, the slow ones do.
        low_frequency_factor: pairs that turn fewer times than this in
            `original_length` are slow (Llama 3.1; transformers, modeling_rope_utils.py).
        high_frequency_factor: pairs that turn more times than this stay as they are;
            between the two it changes evenly with the turns.
        original_length: tokens of a text in pretraining.
        fraction: of a head's width that turns, its first part; H above is this part
            (Phi-4-mini).
        short_factors: how many times slower each pair turns in texts of up to
            `original_length` tokens (LongRoPE).
        long_factors: likewise in longer texts.
        attention_factor: what turns is multiplied by it, in queries and in keys (LongRoPE, YaRN).
        proportional: whether `fraction` is of the pairs of the whole head, the fastest of them,
            and not of its first part (Gemma 4; transformers, modeling_rope_utils.py).
        yarn: whether between the two frequency factors, `beta_slow` and `beta_fast` there, it
            changes evenly from pair to pair instead (YaRN, arXiv 2309.00071, section 3.2;
            transformers, modeling_rope_utils.py).
        truncate: whether in YaRN the first and last of these pairs are whole numbers, rounded
            outwards; not in gpt-oss.
    """

    base: float = 10_000.0
    factor: float = 1.0
    low_frequency_factor: float | None = None
    high_frequency_factor: float | None = None
    original_length: int | None = None
    fraction: float = 1.0
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    attention_factor: float = 1.0
    proportional: bool = False
    yarn: bool = False
    truncate: bool = True

    def __post_init__(self) -> None:
        check_fields(self, check.real, "base", "factor", "attention_factor", above=0)
        check_fields(self, check.real, "fraction", above=0, most=1)
        check_given(self, check.real, "low_frequency_factor", "high_frequency_factor", above=0)
        check_given(self, check.whole, "original_length")
        check_fields(self, check.flag, "proportional", "yarn", "truncate")
        for name in ("short_factors", "long_factors"):
            if (factors := getattr(self, name)) is not None:
                read = tuple(check.real(f"{name} of RotarySpec", x, above=0) for x in factors)
                object.__setattr__(self, name, read)
        low_high = self.low_frequency_factor, self.high_frequency_factor
        ways = [[value is not None for value in way] for way in (low_high, self._by_length)]
        alike = all(all(way) or not any(way) for way in ways)
        one = sum(map(any, ways)) == (self.original_length is not None)
        require(not (any(ways[1]) and self.proportional), "no factors where proportional", self)
        stretched = self.low_frequency_factor is not None and not self.proportional
        require(
            stretched or not self.yarn,
            "both frequency factors for yarn, and not proportional",
            self,
        )
        expected = "both frequency factors, or short_factors and long_factors, with original_length"
        require(alike and one, f"{expected}; or none of these", self)
        lengths = {len(factors) for factors in self._by_length if factors is not None}
        require(len(lengths) <= 1, "as many short_factors as long_factors", self)

    @property
    def _by_length(self) -> tuple[tuple[float, ...] | None, ...]:
        return self.short_factors, self.long_factors

    def turned(self, head_dim: int) -> int:
        """How much of a head of this width turns, pairs that stand still among it."""
        return head_dim if self.proportional else int(head_dim * self.fraction)

    def turning_pairs(self, turned: int) -> int:
        """How many pairs of what `turned` gives do turn."""
        return int(turned * self.fraction) // 2 if self.proportional else turned // 2

    def check_fits(self, head_dim: int) -> None:
        """Raises ValueError if heads of this width cannot turn so."""
        pairs, odd = divmod(self.turned(head_dim), 2)
        require(
            self.turning_pairs(2 * pairs) > 0 and not odd,
            "an even head_dim for rotary, of which a fraction turns",
            self,
        )
        fits = self.short_factors is None or len(self.short_factors) == pairs
        require(fits, f"{pairs} short_factors, one for each pair that turns", self)


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """RMS normalisation.

    Args:
        epsilon: added to the mean square.
        zero_centered: whether the stored scale is what is added to 1, as in Gemma.
    """

    epsilon: float = 1e-6
    zero_centered: bool = True

    def __post_init__(self) -> None:
        check_fields(self, check.real, "epsilon", above=0)
        check_fields(self, check.flag, "zero_centered")


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
        bias: whether queries, keys and values add a bias (Qwen 2).
        output_bias: whether what leaves the sublayer adds one (gpt-oss).
        sinks: whether each query head has a logit of its own that takes part in the softmax and
            brings no value, so that a head's weights add up to less than 1 (gpt-oss;
            transformers, `eager_attention_forward` of modeling_gpt_oss.py).
        query_key_norm: of each head's queries and keys, before they are rotated
            (Gemma 3, Qwen 3); None for no such norm.
        norm_across_heads: whether that norm is of all heads of a token together, each
            with a scale of its own (OLMo 2).
        values_are_keys: whether values have no kernel of their own, but are the keys as they
            were projected, before any norm (Gemma 4's layers that see everything).
        value_norm: epsilon of a norm without scale of each head's values (Gemma 4); None for no
            such norm.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    logit_soft_cap: float | None = None
    bias: bool = False
    query_key_norm: NormSpec | None = None
    norm_across_heads: bool = False
    values_are_keys: bool = False
    value_norm: float | None = None
    output_bias: bool = False
    sinks: bool = False

    def __post_init__(self) -> None:
        check_fields(self, check.whole, "num_heads", "num_kv_heads", "head_dim")
        check_fields(self, check.real, "query_pre_attn_scalar", above=0)
        check_given(self, check.real, "logit_soft_cap", above=0)
        check_given(self, check.real, "value_norm", above=0)
        check_fields(self, check.flag, "bias", "norm_across_heads", "values_are_keys")
        check_fields(self, check.flag, "output_bias", "sinks")
        normed = self.query_key_norm is not None or not self.norm_across_heads
        require(normed, "a query_key_norm for norm_across_heads", self)
        require(
            self.num_heads % self.num_kv_heads == 0, "num_kv_heads that divides num_heads", self
        )

    @property
    def query_scale(self) -> float:
        return self.query_pre_attn_scalar**-0.5

    def weights(self, width: int, context_width: int, *, borrows: bool = False) -> dict[str, Shape]:
        """Kernels for queries from `width` and keys/values from `context_width`.

        Args:
            width: of what asks.
            context_width: of what is asked.
            borrows: whether keys and values are another layer's.
        """
        n, k, h = self.num_heads, self.num_kv_heads, self.head_dim
        weights: dict[str, Shape] = {
            "query/kernel": (width, n, h),
            "key/kernel": (context_width, k, h),
            "value/kernel": (context_width, k, h),
            "attention_output/kernel": (n, h, width),
        }
        if self.bias:
            weights |= {"query/bias": (n, h), "key/bias": (k, h), "value/bias": (k, h)}
        if self.output_bias:
            weights["attention_output/bias"] = (width,)
        if self.sinks:
            weights["sinks"] = (n,)
        if self.query_key_norm is not None:
            across = self.norm_across_heads
            weights["query_norm/scale"] = (n, h) if across else (h,)
            weights["key_norm/scale"] = (k, h) if across else (h,)
        left_out = ("value/",) * self.values_are_keys + ("value/", "key/", "key_norm/") * borrows
        return {name: s for name, s in weights.items() if not name.startswith(left_out)}


@dataclasses.dataclass(frozen=True)
class CrossAttentionSpec:
    """How a decoder looks at its encoder; its heads, scale, cap and norms are the decoder's.

    It sees every encoder position, and by default knows no positions
    (gemma/research/t5gemma/modules.py). Where heads have sinks, those of a cross-attention are its
    own, and start from self-attention's if its kernels do: how much a head gives was learned with
    its sink, and with one a head can look at nothing of the input. Merged attention is one
    softmax, in which the layer's sinks take part once.

    Args:
        merged: instead of a sublayer of its own, self-attention also sees the encoder's
            states, by its own kernels (arXiv 2512.14856, section 2).
        gate: multiply what the sublayer adds by the tanh of a number that starts at 0, so
            that a pair starts as its decoder's source (arXiv 2204.14198, section 3.1).
        layers: the layers that have it, by number; None for all.
        rotary: `"continuous"` to turn queries and keys as the layer's self-attention does, where
            it does: token s of an input stands at s, and token t of its target behind the last of
            them, at S + t, as in a decoder-only model that reads both in a row
            (arXiv 2510.26622). Merged attention then has these positions too. None for none.
    """

    merged: bool = False
    gate: bool = False
    layers: tuple[int, ...] | None = None
    rotary: CrossRotary = None

    def __post_init__(self) -> None:
        check_fields(self, check.flag, "merged", "gate")
        check.one_of("rotary of CrossAttentionSpec", self.rotary, get_args(CrossRotary))
        for layer in self.layers or ():
            check.whole("layers of CrossAttentionSpec", layer, least=0)
        require(not (self.merged and self.gate), "no gate where attention is merged", self)

    def is_in(self, layer: int) -> bool:
        """Whether a layer sees the encoder."""
        return self.layers is None or layer in self.layers


@dataclasses.dataclass(frozen=True)
class AdaptorSpec:
    """What stands between an encoder's layers and the cross-attention that reads them.

    Layers are cut into groups of neighbours. The state behind each group goes through the
    encoder's last norm, and their sum is read, each times a number that is learned: 0 at first,
    1 for the last layer's, as without an adaptor. A projection may bring the sum to another width.
    The idea, fusion by groups and projection, is LaMaTE's (arXiv 2503.06594); that a group gives
    the state behind its last layer, and where all starts, are ours.

    Args:
        groups: G, at most as many as the encoder has layers; 1 for the last layer alone.
        width: that the projection gives; it starts as the identity, or of another width than the
            encoder's orthonormal. None for no projection.
    """

    groups: int = 1
    width: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, check.whole, "groups")
        check_given(self, check.whole, "width")
        adapts = self.groups > 1 or self.width is not None
        require(adapts, "several groups or a width of an adaptor, else None for it", self)

    def ends(self, depth: int) -> tuple[int, ...]:
        """For each group of an encoder's layers, how many of them are up to its end."""
        return tuple((i + 1) * depth // self.groups for i in range(self.groups))

    def weights(self, width: int) -> dict[str, Shape]:
        """Name and shape of each weight, of an encoder of a width D."""
        weights: dict[str, Shape] = {}
        if self.groups > 1:
            weights["scale"] = (self.groups,)
        if self.width is not None:
            weights["projection/kernel"] = (width, self.width)
        return weights


def attention_from_json(data: AttentionSpec | dict[str, Any]) -> AttentionSpec:
    """As `stack_from_json`, of an `AttentionSpec`."""
    if isinstance(data, AttentionSpec):
        return data
    norm = data.get("query_key_norm")
    return AttentionSpec(**{**data, "query_key_norm": norm and NormSpec(**norm)})


def rotary_from_json(data: RotarySpec | dict[str, Any] | None) -> RotarySpec | None:
    """As `stack_from_json`, of a `RotarySpec`."""
    return RotarySpec(**data) if isinstance(data, dict) else data


def adaptor_from_json(data: AdaptorSpec | dict[str, Any] | None) -> AdaptorSpec | None:
    """As `stack_from_json`, of an `AdaptorSpec`."""
    return AdaptorSpec(**data) if isinstance(data, dict) else data


def cross_attention_from_json(
    data: CrossAttentionSpec | dict[str, Any] | None,
) -> CrossAttentionSpec:
    """As `stack_from_json` of a `CrossAttentionSpec`; None for the usual one."""
    if data is None or isinstance(data, CrossAttentionSpec):
        return data or CrossAttentionSpec()
    layers = data["layers"]
    return CrossAttentionSpec(**{**data, "layers": None if layers is None else tuple(layers)})
