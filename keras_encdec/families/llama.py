"""Llama 2 and 3, and what has their shape, such as SmolLM2."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, RotarySpec, StackSpec


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `LlamaBackbone` or `Llama3Backbone` config.

    Positions are scaled as the config says; KerasHub 0.32 itself takes no notice of
    `rope_position_scaling_factor` (llama_rotary_embedding.py).
    """
    with reading(config) as field:
        slower = field("rope_frequency_adjustment_factor")  # Llama 3.1; None before it
        if slower is not None:
            field.only("rope_position_scaling_factor", 1.0)
        rotary = RotarySpec(
            base=float(field("rope_max_wavelength")),
            factor=field("rope_position_scaling_factor", slower),
            low_frequency_factor=field("rope_low_freq_factor"),
            high_frequency_factor=field("rope_high_freq_factor"),
            original_length=field("rope_pretraining_sequence_length"),
        )
        return keras_hub.llama_stack(field, rotary=rotary)


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `llama`."""
    with reading(config) as field:
        field.only("hidden_act", "silu")
        field.only("rope_interleaved", False)
        return transformers.stack(field, **LLAMA)


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `llama`."""
    return transformers.config(spec, "LlamaModel", hidden_act="silu")


FAMILIES = (
    Family(
        ("LlamaBackbone", "Llama3Backbone"),
        ("llama",),
        keras_hub.llama_rules(),
        transformers.rules(post_norm=False),
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
