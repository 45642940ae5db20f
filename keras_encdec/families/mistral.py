"""Mistral: Llama with a window in every layer (arXiv 2310.06825)."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, StackSpec


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `MistralBackbone` config; its output is never tied."""
    with reading(config) as field:
        rotary, window = keras_hub.linear_rotary(field), field("sliding_window")
        return keras_hub.llama_stack(field, rotary=rotary, window=window)


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `mistral`."""
    with reading(config) as field:
        field.only("hidden_act", "silu")
        return transformers.stack(field, **LLAMA)


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `mistral`."""
    window = transformers.local_window(spec)
    return transformers.config(spec, "MistralModel", hidden_act="silu", sliding_window=window)


FAMILIES = (
    Family(
        ("MistralBackbone",),
        ("mistral",),
        keras_hub.llama_rules(),
        transformers.rules(post_norm=False),
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
