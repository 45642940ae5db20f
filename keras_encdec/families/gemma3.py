"""Gemma 3, the text model (arXiv 2503.19786)."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.family import Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import AttentionSpec, NormSpec, RotarySpec, StackSpec

# Section 2.1: a base of its own for layers that see everything.
_LOCAL_BASE, _GLOBAL_BASE = 10_000.0, 1_000_000.0


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `Gemma3Backbone` config.

    Query scale and epsilon are what the config says; see `gemma.from_keras_hub`.
    Five layers with a window, then one without (gemma3_backbone.py).
    """
    with reading(config) as field:
        field("image_size")  # text only: any of the other fields that images need is refused
        heads, head_dim, width = field("num_query_heads"), field("head_dim"), field("hidden_dim")
        by_head, post_norm = field("query_head_dim_normalize"), field("use_post_attention_norm")
        window = field("sliding_window_size")
        window = window if field("use_sliding_window_attention") else None
        field.only("use_post_ffw_norm", post_norm)
        windows = tuple(window if i % 6 < 5 else None for i in range(field("num_layers")))
        positions = {
            True: RotarySpec(_LOCAL_BASE, field("local_rope_scaling_factor")),
            False: RotarySpec(_GLOBAL_BASE, field("global_rope_scaling_factor")),
        }
        norm = NormSpec(field("layer_norm_epsilon"), zero_centered=True)
        return StackSpec(
            vocabulary_size=field("vocabulary_size"),
            width=width,
            feedforward_dim=field("intermediate_dim"),
            attention=AttentionSpec(
                num_heads=heads,
                num_kv_heads=field("num_key_value_heads"),
                head_dim=head_dim,
                query_pre_attn_scalar=head_dim if by_head else width // heads,
                logit_soft_cap=field("attention_logit_soft_cap"),
                query_key_norm=norm if field("use_query_key_norm") else None,
            ),
            windows=windows,
            rotary=tuple(positions[window is not None] for window in windows),
            norm=norm,
            post_norm=post_norm,
            tied_output=field("tie_word_embeddings"),
            final_logit_soft_cap=field("final_logit_soft_cap"),
            dropout=field("dropout"),
        )


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `gemma3_text`."""
    with reading(config) as field:
        field.only("hidden_activation", "gelu_pytorch_tanh")
        pattern = field("sliding_window_pattern", 6)
        attention = {
            "query_pre_attn_scalar": field("query_pre_attn_scalar"),
            "logit_soft_cap": field("attn_logit_softcapping", None),
        }
        older = {
            "full_attention": {
                "rope_theta": field("rope_theta", _GLOBAL_BASE),
                **(field("rope_scaling", None) or {}),
            },
            "sliding_attention": {"rope_theta": field("rope_local_base_freq", _LOCAL_BASE)},
        }
        kinds = field("rope_parameters", None) or older
        everywhere = transformers.rotary_of(kinds["full_attention"])
        near = transformers.rotary_of(kinds["sliding_attention"])
        return transformers.stack(
            field,
            tied=True,
            zero_centered=True,
            query_key_norm=True,
            local=lambda layer: (layer + 1) % pattern != 0,
            rotary=lambda layer, window: everywhere if window is None else near,
            attention=attention,
            final_logit_soft_cap=field("final_logit_softcapping", None),
        )


FAMILIES = (
    Family(
        ("Gemma3Backbone",),
        ("gemma3_text",),
        keras_hub.gemma_rules(),
        transformers.rules(post_norm=True),
        from_keras_hub,
        from_transformers,
    ),
)
