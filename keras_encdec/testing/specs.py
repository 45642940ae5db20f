"""Tiny specs whose values make every feature bite.

K < N, N*H != D, unequal widths and depths, windows shorter than the texts, caps
that are reached, and a query scale that is not the head width's.
"""

import dataclasses

from keras_encdec.spec import AttentionSpec, PairSpec, StackSpec


def tiny_encoder(**changes) -> StackSpec:
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


def tiny_decoder(**changes) -> StackSpec:
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


def tiny_pair(**changes) -> PairSpec:
    """`tiny_encoder` with `tiny_decoder`."""
    return dataclasses.replace(PairSpec(tiny_encoder(), tiny_decoder()), **changes)
