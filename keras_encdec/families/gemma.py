"""Gemma and Gemma 2."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.family import Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, StackSpec


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `GemmaBackbone` config.

    Query scale and epsilon are what the config says. KerasHub 0.32 itself gives
    neither to its blocks (gemma_backbone.py, gemma_decoder_block.py): they scale by
    the head width, which is wrong for Gemma 2 27B, and normalise with 1e-6.
    """
    with reading(config) as field:
        return keras_hub.gemma_stack(field, local=lambda layer: layer % 2 == 0, gate_and_up=2)


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `gemma`."""
    with reading(config) as field:
        # The first releases say "gelu"; gemma/gm/nn has the approximation.
        field.only("hidden_act", "gelu_pytorch_tanh", "gelu")
        field.only("hidden_activation", None, "gelu_pytorch_tanh")
        return transformers.stack(field, zero_centered=True, post_norm=False)


def from_transformers_2(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `gemma2`."""
    with reading(config) as field:
        for name in ("hidden_activation", "hidden_act"):
            field.only(name, "gelu_pytorch_tanh")
        attention = {
            "query_pre_attn_scalar": field("query_pre_attn_scalar"),
            "logit_soft_cap": field("attn_logit_softcapping"),
        }
        return transformers.stack(
            field,
            zero_centered=True,
            local=lambda layer: layer % 2 == 0,
            attention=attention,
            final_logit_soft_cap=field("final_logit_softcapping"),
        )


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `gemma`."""
    return transformers.config(spec, "GemmaModel", hidden_act="gelu_pytorch_tanh")


def to_transformers_2(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `gemma2`."""
    return transformers.config(
        spec,
        "Gemma2Model",
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=transformers.scalar(spec),
        attn_logit_softcapping=spec.encoder.attentions[0].logit_soft_cap,
        final_logit_softcapping=spec.encoder.final_logit_soft_cap,
        **transformers.local_layers(spec),
    )


FAMILIES = (
    Family(
        ("GemmaBackbone",),
        ("gemma",),
        keras_hub.gemma_rules(),
        transformers.rules(post_norm=False),
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=True,
    ),
    Family(
        (),  # GemmaBackbone serves both
        ("gemma2",),
        keras_hub.gemma_rules(),
        transformers.rules(post_norm=True),
        from_keras_hub,
        from_transformers_2,
        to_transformers_2,
        tied=True,
    ),
)
