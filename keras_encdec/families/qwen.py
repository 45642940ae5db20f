"""Qwen 2 and 2.5, whose heads have biases, and Qwen 3, whose heads have norms."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, StackSpec


def from_keras_hub_2(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `QwenBackbone` config."""
    with reading(config) as field:
        rotary, window = keras_hub.linear_rotary(field), field("sliding_window_size")
        window = window if field("use_sliding_window_attention") else None
        return keras_hub.llama_stack(field, rotary=rotary, window=window, bias=True)


def from_keras_hub_3(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `Qwen3Backbone` config.

    Heads are normalised with the config's epsilon; KerasHub 0.32 itself does it with 1e-5
    (qwen3_attention.py).
    """
    with reading(config) as field:
        rotary, window = keras_hub.linear_rotary(field), field("sliding_window_size")
        return keras_hub.llama_stack(field, rotary=rotary, window=window, query_key_norm=True)


def from_transformers_2(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `qwen2`."""
    return _from_transformers(config, attention={"bias": True})


def from_transformers_3(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `qwen3`."""
    return _from_transformers(config, query_key_norm=True)


def _from_transformers(config: Mapping[str, Any], **own: Any) -> StackSpec:
    """With the defaults of configuration_qwen2.py and configuration_qwen3.py."""
    with reading({"use_sliding_window": False, **config}) as field:
        field.only("hidden_act", "silu")
        field.only("use_mrope", False)
        first = field("max_window_layers", 28)  # layers that see everything

        def local(layer: int) -> bool:
            return layer >= first

        return transformers.stack(field, local=local, **own, **LLAMA)


def to_transformers_2(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `qwen2`."""
    return _to_transformers(spec, "Qwen2Model")


def to_transformers_3(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `qwen3`."""
    return _to_transformers(spec, "Qwen3Model")


def _to_transformers(spec: EncoderSpec, architecture: str) -> dict[str, Any]:
    return transformers.config(
        spec,
        architecture,
        hidden_act="silu",
        use_sliding_window=transformers.local_window(spec) is not None,
        **transformers.local_layers(spec),
    )


FAMILIES = (
    Family(
        ("QwenBackbone", "Qwen2Backbone"),
        ("qwen2",),
        keras_hub.llama_rules(),
        transformers.rules(post_norm=False),
        from_keras_hub_2,
        from_transformers_2,
        to_transformers_2,
        tied=False,
    ),
    Family(
        ("Qwen3Backbone",),
        ("qwen3",),
        keras_hub.llama_rules(),
        transformers.rules(post_norm=False),
        from_keras_hub_3,
        from_transformers_3,
        to_transformers_3,
        tied=False,
    ),
)
