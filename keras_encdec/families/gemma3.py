"""Gemma 3 (arXiv 2503.19786): the text model, alone or inside one that reads images too.

Of the latter, what images pass through is left unread.
"""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.dialect import renamed
from keras_encdec.families.family import DROPPED, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, RotarySpec, StackSpec

# Section 2.1: a base of its own for layers that see everything.
_LOCAL_BASE, _GLOBAL_BASE = 10_000.0, 1_000_000.0

# What a model that reads images too says of them.
IMAGES = (
    *("boi_token_index", "eoi_token_index", "image_token_index", "image_token_id"),
    *("mm_tokens_per_image", "vision_config"),
)
# A text model's config inside another leaves out what is the default of Gemma3TextConfig
# (transformers 5.23, configuration_gemma3.py), as that of google/gemma-3-4b-it does.
_INSIDE = {
    **{"vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216},
    **{"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4},
    **{"head_dim": 256, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256},
    "sliding_window": 4096,
}


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `Gemma3Backbone` config.

    Query scale and epsilon are what the config says; see `gemma.from_keras_hub`.
    Five layers with a window, then one without (gemma3_backbone.py).
    """
    with reading(config) as field:
        field.drop("image_size", "vision_encoder")
        near = RotarySpec(_LOCAL_BASE, field("local_rope_scaling_factor"))
        everywhere = RotarySpec(_GLOBAL_BASE, field("global_rope_scaling_factor"))
        return keras_hub.gemma_stack(
            field,
            local=lambda layer: layer % 6 < 5,
            rotary=lambda window: everywhere if window is None else near,
            query_key_norm=field("use_query_key_norm"),
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
            zero_centered=True,
            query_key_norm=True,
            local=lambda layer: (layer + 1) % pattern != 0,
            rotary=lambda layer, window: everywhere if window is None else near,
            attention=attention,
            final_logit_soft_cap=field("final_logit_softcapping", None),
        )


def from_transformers_with_images(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind the text part of a `config.json` of model type `gemma3`."""
    return from_transformers(transformers.text_part(config, IMAGES, _INSIDE))


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `gemma3_text`."""
    stack = spec.encoder
    by_kind = {
        window is None: rotary for window, rotary in zip(stack.windows, stack.rotaries, strict=True)
    }
    near, everywhere = (by_kind.get(kind) or RotarySpec() for kind in (False, True))
    kinds = {"full_attention": everywhere, "sliding_attention": near}
    return transformers.config(
        spec,
        "Gemma3TextModel",
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=transformers.scalar(spec),
        attn_logit_softcapping=stack.attentions[0].logit_soft_cap,
        final_logit_softcapping=stack.final_logit_soft_cap,
        **transformers.local_layers(spec),
    ) | {"rope_parameters": {k: transformers.rope_parameters(r) for k, r in kinds.items()}}


FAMILIES = (
    Family(
        ("Gemma3Backbone",),
        ("gemma3_text",),
        keras_hub.gemma_rules(),
        transformers.rules(post_norm=True),
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=True,
        dropped=("image_encoder/*", "vision_output_encoder/*", *DROPPED),
    ),
    Family(
        (),  # Gemma3Backbone serves both
        ("gemma3",),
        keras_hub.gemma_rules(),
        renamed(transformers.rules(post_norm=True), {"model.": "language_model.model."}),
        from_keras_hub,
        from_transformers_with_images,
        None,  # as gemma3_text, which an encoder of texts is
        tied=True,
        dropped=("vision_tower.*", "multi_modal_projector.*", "language_model.lm_head.weight"),
    ),
)
