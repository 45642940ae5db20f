"""Phi-3, 3.5 and 4: Llama with fused kernels and positions by LongRoPE (arXiv 2404.14219, 2.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.dialect import renamed
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import Fields, reading
from keras_encdec.spec import EncoderSpec, RotarySpec, StackSpec

KERAS_HUB = renamed(
    keras_hub.llama_rules(),
    {
        "self_attention_layernorm": "pre_attention_layernorm",
        "feedforward_layernorm": "post_attention_layernorm",
        "self_attention/": "attention/",
    },
)
# Queries, keys and values are rows of one kernel there; so are gate and up.
TRANSFORMERS = renamed(
    transformers.rules(post_norm=False),
    {
        **dict.fromkeys(("attn.q_proj", "attn.k_proj", "attn.v_proj"), "attn.qkv_proj"),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj"),
    },
)


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `Phi3Backbone` config; its output is never tied.

    KerasHub 0.32 has no windows: neither has the spec, where the same checkpoint has one in
    transformers.
    """
    with reading(config) as field:
        longest, original = field("max_sequence_length"), field("pretraining_sequence_length")
        base, kind = field("rope_max_wavelength"), field("rope_scaling_type")
        by_length = {
            "short_factor": field("rope_scaling_short_factor"),
            "long_factor": field("rope_scaling_long_factor"),
            "original_max_position_embeddings": original,
            "factor": longest / original,
        }
        given = {"rope_theta": base, "rope_type": kind or "default"}
        rotary = transformers.rotary_of(given | by_length if kind else given)
        return keras_hub.llama_stack(field, rotary=rotary)


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `phi3`."""
    with reading(config) as field:
        field.only("hidden_act", "silu")
        for name in ("resid_pdrop", "embd_pdrop"):
            field.only(name, 0.0)
        for name in ("interpolate_factor", "full_attn_mod"):
            field.only(name, 1)
        field.only("lm_head_bias", False)
        field.drop("auto_map")  # code of the same model, from before transformers had it
        positions = _rotary(field, config.get("max_position_embeddings"))
        return transformers.stack(field, rotary=lambda layer, window: positions, **LLAMA)


def _rotary(field: Fields, longest: int | None) -> RotarySpec:
    """Said by `rope_parameters`, or in older configs by several fields."""
    original = field("original_max_position_embeddings", None)
    older = {"partial_rotary_factor": field("partial_rotary_factor", 1.0)}
    older |= {"rope_theta": field("rope_theta", 10_000.0), **(field("rope_scaling", None) or {})}
    given = {**(field("rope_parameters", None) or older)}
    fraction = given.pop("partial_rotary_factor", 1.0)
    if given.get("long_factor") is not None:
        given.setdefault("original_max_position_embeddings", original)
        if given.get("factor") is None and longest is not None:
            given["factor"] = longest / given["original_max_position_embeddings"]
    return dataclasses.replace(transformers.rotary_of(given), fraction=fraction)


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `phi3`."""
    positions = transformers.first_rotary(spec.encoder)
    whole = transformers.rope_parameters(dataclasses.replace(positions, fraction=1.0))
    window = transformers.local_window(spec)
    config = transformers.config(spec, "Phi3Model", hidden_act="silu", sliding_window=window)
    original = positions.original_length or config["max_position_embeddings"]
    own = {"rope_parameters": {**whole, "partial_rotary_factor": positions.fraction}}
    return {**config, **own, "original_max_position_embeddings": original}


FAMILIES = (
    Family(
        ("Phi3Backbone",),
        ("phi3",),
        KERAS_HUB,
        TRANSFORMERS,
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
