"""Qwen 3 MoE: Qwen 3 with experts, in all layers or in some (arXiv 2505.09388)."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import Fields, reading
from keras_encdec.spec import EncoderSpec, MoESpec, StackSpec


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `Qwen3MoeBackbone` config.

    KerasHub 0.32 itself normalises heads with 1e-6 whatever the config's epsilon
    (qwen3_moe_decoder.py), on JAX and PyTorch leaves the window out (qwen3_moe_attention.py), and
    has another loss of uneven experts (see `keras_encdec.families.mixtral.from_keras_hub`), which
    counts padding.
    """
    with reading(config) as field:
        experts = MoESpec(
            num_experts=field("num_experts"),
            top_k=config["top_k"],
            expert_dim=field("moe_intermediate_dim"),
            renormalize=field("norm_top_k_prob"),
            balance_weight=float(field("router_aux_loss_coefficient")),
            layers=sparse_layers(field, config["num_layers"]),
        )
        rotary, window = keras_hub.linear_rotary(field), field("sliding_window_size")
        return keras_hub.llama_stack(
            field, rotary=rotary, window=window, query_key_norm=True, experts=experts
        )


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `qwen3_moe`.

    A window is every layer's (modeling_qwen3_moe.py): `max_window_layers`, which the configs of
    checkpoints have, is not read there.
    """
    with reading({"use_sliding_window": False, **config}) as field:
        field.only("hidden_act", "silu")
        field.drop("max_window_layers")
        experts = MoESpec(
            num_experts=field("num_experts", None) or field("num_local_experts"),
            expert_dim=field("moe_intermediate_size"),
            renormalize=field("norm_topk_prob", False),
            layers=sparse_layers(field, config["num_hidden_layers"]),
            **transformers.routing(field),
        )
        return transformers.stack(field, experts=experts, query_key_norm=True, **LLAMA)


def sparse_layers(field: Fields, depth: int) -> tuple[int, ...]:
    """Those with experts: each `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    step, dense = field("decoder_sparse_step", 1), field("mlp_only_layers", None) or ()
    return tuple(i for i in range(depth) if (i + 1) % step == 0 and i not in dense)


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `qwen3_moe`."""
    experts, window = transformers.experts_of(spec), transformers.local_window(spec)
    return transformers.config(
        spec,
        "Qwen3MoeModel",
        hidden_act="silu",
        use_sliding_window=window is not None,
        sliding_window=window,
        num_experts=experts.num_experts,
        moe_intermediate_size=experts.expert_dim,
        norm_topk_prob=experts.renormalize,
        decoder_sparse_step=1,
        mlp_only_layers=[i for i in range(spec.encoder.num_layers) if not experts.is_in(i)],
        **transformers.routing_config(experts),
    )


FAMILIES = (
    Family(
        ("Qwen3MoeBackbone",),
        ("qwen3_moe",),
        (
            *keras_hub.llama_rules(),
            *keras_hub.expert_rules(gate="gate_dense", up="gate_dense"),
        ),
        (
            *transformers.rules(post_norm=False),
            *transformers.expert_rules("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
        ),
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
