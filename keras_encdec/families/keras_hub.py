"""What decoder-only families of KerasHub 0.32 share: variable names in one of two manners.

A rule for a weight that a family lacks is never used.
"""

import re
from collections.abc import Callable, Iterable

from keras_encdec.families.dialect import Rule
from keras_encdec.families.family import LLAMA
from keras_encdec.families.fields import Fields
from keras_encdec.spec import AttentionSpec, MoESpec, NormSpec, RotarySpec, StackSpec

_ENDS = (
    Rule("embedding/embeddings", "token_embedding/embeddings", "v d -> v d"),
    Rule("embedding/reverse_embeddings", "token_embedding/reverse_embeddings", "d v -> d v"),
)
_GEMMA = (
    ("attention/query/kernel", "attention/query/kernel", "n d h -> d n h"),
    ("attention/key/kernel", "attention/key/kernel", "k d h -> d k h"),
    ("attention/value/kernel", "attention/value/kernel", "k d h -> d k h"),
    ("attention/query_norm/scale", "attention/query_norm/scale", "h -> h"),
    ("attention/key_norm/scale", "attention/key_norm/scale", "h -> h"),
    ("attention/attention_output/kernel", "attention/attention_output/kernel", "n h d -> n h d"),
    ("feedforward/gate/kernel", "ffw_gating/kernel", "d f -> d f"),
    ("feedforward/up/kernel", "ffw_gating_2/kernel", "d f -> d f"),
    ("feedforward/down/kernel", "ffw_linear/kernel", "f d -> f d"),
    ("pre_attention_norm/scale", "pre_attention_norm/scale", "d -> d"),
    ("post_attention_norm/scale", "post_attention_norm/scale", "d -> d"),
    ("pre_feedforward_norm/scale", "pre_ffw_norm/scale", "d -> d"),
    ("post_feedforward_norm/scale", "post_ffw_norm/scale", "d -> d"),
)
_LLAMA = (
    ("attention/query/kernel", "self_attention/query/kernel", "d n h -> d n h"),
    ("attention/key/kernel", "self_attention/key/kernel", "d k h -> d k h"),
    ("attention/value/kernel", "self_attention/value/kernel", "d k h -> d k h"),
    ("attention/query/bias", "self_attention/query/bias", "n h -> n h"),
    ("attention/key/bias", "self_attention/key/bias", "k h -> k h"),
    ("attention/value/bias", "self_attention/value/bias", "k h -> k h"),
    ("attention/query_norm/scale", "self_attention/query_dense_layernorm/scale", "h -> h"),
    ("attention/key_norm/scale", "self_attention/key_dense_layernorm/scale", "h -> h"),
    ("attention/attention_output/kernel", "self_attention/attention_output/kernel", "n h d -> n h d"),
    ("feedforward/gate/kernel", "feedforward_gate_dense/kernel", "d f -> d f"),
    ("feedforward/up/kernel", "feedforward_intermediate_dense/kernel", "d f -> d f"),
    ("feedforward/down/kernel", "feedforward_output_dense/kernel", "f d -> f d"),
    ("pre_attention_norm/scale", "self_attention_layernorm/scale", "d -> d"),
    ("pre_feedforward_norm/scale", "feedforward_layernorm/scale", "d -> d"),
)  # fmt: skip
# Layers of feed-forwards that were given no name: Keras numbers them in the order of their making.
_UNNAMED = re.compile(r"/((mixtral|qwen3?)_sparse_moe_block|qwen3?_moe_mlp)(_\d+)?/")


def name_of(path: str) -> str:
    """What rules call a variable: its path, without layers that KerasHub gives no name."""
    return _UNNAMED.sub("/", path)


def gemma_rules() -> tuple[Rule, ...]:
    """As in `GemmaBackbone` and `Gemma3Backbone`."""
    last = Rule("final_norm/scale", "final_normalization/scale", "d -> d")
    return (*_ENDS, last, *blocks("decoder_block_{i}", _GEMMA))


def llama_rules() -> tuple[Rule, ...]:
    """As in `LlamaBackbone`, `MistralBackbone`, `QwenBackbone` and `Qwen3Backbone`."""
    last = Rule("final_norm/scale", "sequence_output_layernorm/scale", "d -> d")
    return (*_ENDS, last, *blocks("transformer_layer_{i}", _LLAMA))


def expert_rules(*, gate: str, up: str) -> tuple[Rule, ...]:
    """Of a router and its experts; where gate and up are one variable, they lie side by side."""
    ours, theirs = "block_{i}/feedforward", "transformer_layer_{i}"
    bank, layout = f"{theirs}/experts/expert_feedforward", "e d f -> e d f"
    return (
        Rule(f"{ours}/router/kernel", f"{theirs}/sparse_feedforward_gate_dense/kernel", "d e -> d e"),
        Rule(f"{ours}/experts/gate", f"{bank}_{gate}", layout, axis=2),
        Rule(f"{ours}/experts/up", f"{bank}_{up}", layout, axis=2),
        Rule(f"{ours}/experts/down", f"{bank}_output_dense", "e f d -> e f d"),
    )  # fmt: skip


def blocks(prefix: str, rows: Iterable[tuple[str, str, str]]) -> tuple[Rule, ...]:
    """Rules of every layer from rows of ours, theirs and a layout."""
    return tuple(Rule(f"block_{{i}}/{ours}", f"{prefix}/{t}", layout) for ours, t, layout in rows)


def gemma_stack(
    field: Fields,
    *,
    local: Callable[[int], bool],
    rotary: Callable[[int | None], RotarySpec] = lambda window: RotarySpec(),
    query_key_norm: bool = False,
    gate_and_up: int = 1,
) -> StackSpec:
    """The spec behind the config of one of the backbones that `gemma_rules` are for.

    Args:
        field: of the config.
        local: which layers have the window.
        rotary: positions of a layer by its window.
        query_key_norm: whether heads are normalised.
        gate_and_up: how many widths of the feed-forward its config reports as one.
    """
    heads, head_dim, width = field("num_query_heads"), field("head_dim"), field("hidden_dim")
    by_head, post_norm = field("query_head_dim_normalize"), field("use_post_attention_norm")
    window, used = field("sliding_window_size"), field("use_sliding_window_attention")
    field.only("use_post_ffw_norm", post_norm)
    layers = range(field("num_layers"))
    windows = tuple(window if used and local(i) else None for i in layers)
    norm = NormSpec(field("layer_norm_epsilon"), zero_centered=True)
    return StackSpec(
        vocabulary_size=field("vocabulary_size"),
        width=width,
        feedforward_dim=field("intermediate_dim") // gate_and_up,
        attention=AttentionSpec(
            num_heads=heads,
            num_kv_heads=field("num_key_value_heads"),
            head_dim=head_dim,
            query_pre_attn_scalar=head_dim if by_head else width // heads,
            logit_soft_cap=field("attention_logit_soft_cap"),
            query_key_norm=norm if query_key_norm else None,
        ),
        windows=windows,
        rotary=tuple(rotary(window) for window in windows),
        norm=norm,
        post_norm=post_norm,
        tied_output=field("tie_word_embeddings"),
        final_logit_soft_cap=field("final_logit_soft_cap"),
        dropout=field("dropout"),
    )


def linear_rotary(field: Fields) -> RotarySpec:
    """Positions divided by a factor."""
    return RotarySpec(float(field("rope_max_wavelength")), float(field("rope_scaling_factor")))


def llama_stack(
    field: Fields,
    *,
    rotary: RotarySpec | tuple[RotarySpec | None, ...],
    window: int | None = None,
    query_key_norm: bool = False,
    bias: bool = False,
    experts: MoESpec | None = None,
) -> StackSpec:
    """The spec behind the config of one of the backbones that `llama_rules` are for.

    Args:
        field: of the config.
        rotary: of every layer, or of each.
        window: of every layer.
        query_key_norm: whether heads are normalised.
        bias: of queries, keys and values.
        experts: in place of the feed-forwards.
    """
    heads, width = field("num_query_heads"), field("hidden_dim")
    head_dim = field("head_dim", None) or width // heads
    norm = NormSpec(field("layer_norm_epsilon"), zero_centered=False)
    return StackSpec(
        vocabulary_size=field("vocabulary_size"),
        width=width,
        feedforward_dim=field("intermediate_dim"),
        attention=AttentionSpec(
            num_heads=heads,
            num_kv_heads=field("num_key_value_heads"),
            head_dim=head_dim,
            query_pre_attn_scalar=head_dim,
            bias=bias,
            query_key_norm=norm if query_key_norm else None,
        ),
        windows=(window,) * field("num_layers"),
        rotary=rotary,
        norm=norm,
        tied_output=field("tie_word_embeddings"),
        dropout=field("dropout"),
        experts=experts,
        **LLAMA,
    )
