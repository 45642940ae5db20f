"""Mixtral: Mistral with experts in every layer (arXiv 2401.04088)."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, MoESpec, StackSpec


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `MixtralBackbone` config; its output is never tied.

    The loss of uneven experts is transformers', with the config's weight. KerasHub 0.32 itself
    adds up those of all layers, each a k-th of it (mixtral_decoder.py).
    """
    with reading(config) as field:
        field.only("router_jitter_noise", 0.0)
        field.drop("output_router_logits")  # of an output, which a backbone has no room for
        experts = MoESpec(
            num_experts=field("num_experts"),
            top_k=config["top_k"],
            expert_dim=config["intermediate_dim"],
            balance_weight=float(field("router_aux_loss_coef")),
        )
        rotary, window = keras_hub.linear_rotary(field), field("sliding_window")
        return keras_hub.llama_stack(field, rotary=rotary, window=window, experts=experts)


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `mixtral`."""
    with reading(config) as field:
        field.only("hidden_act", "silu")
        field.only("router_jitter_noise", 0.0)
        experts = MoESpec(
            num_experts=field("num_local_experts"),
            expert_dim=config["intermediate_size"],
            **transformers.routing(field),
        )
        return transformers.stack(field, experts=experts, **LLAMA)


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `mixtral`."""
    experts = transformers.experts_of(spec)
    return transformers.config(
        spec,
        "MixtralModel",
        hidden_act="silu",
        sliding_window=transformers.local_window(spec),
        num_local_experts=experts.num_experts,
        **transformers.routing_config(experts),
    )


FAMILIES = (
    Family(
        ("MixtralBackbone",),
        ("mixtral",),
        (
            *keras_hub.llama_rules(),
            *keras_hub.expert_rules(gate="gate_dense", up="intermediate_dense"),
        ),
        (
            *transformers.rules(post_norm=False),
            *transformers.expert_rules("block_sparse_moe", gate="w1", up="w3", down="w2"),
        ),
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
