"""Mixtral: Mistral with experts in every layer (arXiv 2401.04088)."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, MoESpec, StackSpec


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
        (),  # KerasHub 0.32 gives no layer of experts a name, but for the order of its making
        ("mixtral",),
        (),
        (
            *transformers.rules(post_norm=False),
            *transformers.expert_rules("block_sparse_moe", gate="w1", up="w3", down="w2"),
        ),
        None,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
