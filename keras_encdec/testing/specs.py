"""Tiny specs whose values make every feature bite.

K < N, N*H != D, unequal widths and depths, windows shorter than the texts, caps
that are reached, and a query scale that is not the head width's.
"""

import dataclasses
from typing import Any

from keras_encdec.spec import (
    AttentionSpec,
    CrossAttentionSpec,
    MoESpec,
    NormSpec,
    PairSpec,
    RotarySpec,
    StackSpec,
)


def tiny_encoder(**changes: Any) -> StackSpec:
    """Four layers of width 48; `changes` replace fields."""
    spec = StackSpec(
        vocabulary_size=96,
        width=48,
        feedforward_dim=80,
        attention=AttentionSpec(
            num_heads=4, num_kv_heads=2, head_dim=16, query_pre_attn_scalar=16, logit_soft_cap=5.0
        ),
        windows=(8, None, 8, None),
        final_logit_soft_cap=3.0,
    )
    return dataclasses.replace(spec, **changes)


def tiny_decoder(**changes: Any) -> StackSpec:
    """Two layers of width 42; `changes` replace fields."""
    spec = StackSpec(
        vocabulary_size=96,
        width=42,
        feedforward_dim=72,
        attention=AttentionSpec(
            num_heads=6, num_kv_heads=2, head_dim=12, query_pre_attn_scalar=6, logit_soft_cap=4.0
        ),
        windows=(6, None),
        final_logit_soft_cap=3.0,
    )
    return dataclasses.replace(spec, **changes)


def tiny_pair(**changes: Any) -> PairSpec:
    """`tiny_encoder` with `tiny_decoder`."""
    return dataclasses.replace(PairSpec(tiny_encoder(), tiny_decoder()), **changes)


def other(spec: StackSpec) -> StackSpec:
    """With all that Gemma 2 lacks, and without what it has."""
    stretched = RotarySpec(100.0, 8.0, 1.0, 4.0, 64)
    return dataclasses.replace(
        spec,
        attention=dataclasses.replace(
            spec.attentions[0], logit_soft_cap=None, bias=True, query_key_norm=NormSpec(1e-2, False)
        ),
        rotary=(None, *[stretched] * (spec.num_layers - 1)),
        activation="silu",
        norm=NormSpec(1e-2, zero_centered=False),
        post_norm=False,
        scale_embeddings=False,
        tied_output=False,
        final_logit_soft_cap=None,
    )


def later(spec: StackSpec, original_length: int) -> StackSpec:
    """With what OLMo 2, Granite 3 and Phi-4 have; texts beyond `original_length` are long."""
    pairs = spec.attentions[0].head_dim // 4  # half of a head turns
    by_length = RotarySpec(
        100.0,
        original_length=original_length,
        fraction=0.5,
        short_factors=(1.0, *[1.5] * (pairs - 1)),
        long_factors=(1.0, *[4.0] * (pairs - 1)),
        attention_factor=1.2,
    )
    return dataclasses.replace(
        spec,
        attention=dataclasses.replace(
            spec.attentions[0], query_key_norm=NormSpec(1e-2, False), norm_across_heads=True
        ),
        rotary=by_length,
        norm=NormSpec(1e-2, zero_centered=False),
        pre_norm=False,
        embedding_multiplier=2.0,
        residual_multiplier=0.7,
        logits_scaling=0.5,
    )


def uneven(spec: StackSpec, borrowing_layers: int = 2) -> StackSpec:
    """With what Gemma 4 has: layers without a window have other heads; the last ones borrow."""
    near = dataclasses.replace(
        spec.attentions[0], query_key_norm=NormSpec(1e-2, False), value_norm=1e-2
    )
    far = dataclasses.replace(
        near, num_kv_heads=1, head_dim=2 * near.head_dim, values_are_keys=True
    )
    everywhere = RotarySpec(100.0, fraction=0.25, proportional=True)
    first = spec.num_layers - borrowing_layers
    dims = (dim * (1 + (i >= first)) for i, dim in enumerate(spec.feedforward_dims))
    return dataclasses.replace(
        spec,
        attention=tuple(far if window is None else near for window in spec.windows),
        rotary=tuple(everywhere if window is None else RotarySpec() for window in spec.windows),
        feedforward_dim=tuple(dims),
        norm=NormSpec(1e-2, zero_centered=False),
        layer_scalar=True,
        borrowing_layers=borrowing_layers,
        per_layer_dim=6,
    )


def sunk(spec: StackSpec, num_experts: int = 4) -> StackSpec:
    """With what gpt-oss has; in YaRN's positions texts are longer than `original_length`."""
    attention = dataclasses.replace(
        spec.attentions[0], logit_soft_cap=None, bias=True, output_bias=True, sinks=True
    )
    experts = MoESpec(
        num_experts, 2, spec.feedforward_dims[0] // 2, router_bias=True, expert_bias=True
    )
    return dataclasses.replace(
        spec,
        attention=attention,
        rotary=RotarySpec(100.0, 4.0, 0.1, 1.0, 8, attention_factor=1.2, yarn=True, truncate=False),
        activation="clamped_swiglu",
        norm=NormSpec(1e-2, zero_centered=False),
        post_norm=False,
        scale_embeddings=False,
        tied_output=False,
        final_logit_soft_cap=None,
        experts=experts,
    )


def other_pair(**changes: Any) -> PairSpec:
    """`tiny_pair` of another kind: `other` sides, uneven windows, a gate in some layers."""
    encoder = other(tiny_encoder(windows=((3, 8), None)))
    cross_attention = CrossAttentionSpec(gate=True, layers=(0,))
    pair = PairSpec(encoder, other(tiny_decoder()), cross_attention=cross_attention)
    return dataclasses.replace(pair, **changes)
