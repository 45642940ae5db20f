"""Qwen 3 MoE: Qwen 3 with experts, in all layers or in some (arXiv 2505.09388)."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import Fields, reading
from keras_encdec.spec import EncoderSpec, MoESpec, StackSpec


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `qwen3_moe`.

    A window is every layer's (modeling_qwen3_moe.py): `max_window_layers`, which the configs of
    checkpoints have, is not read there.
    """
    with reading(config) as field:
        field.only("hidden_act", "silu")
        field.drop("max_window_layers")
        experts = MoESpec(
            num_experts=field("num_experts", None) or field("num_local_experts"),
            expert_dim=field("moe_intermediate_size"),
            renormalize=field("norm_topk_prob", False),
            layers=_layers(field, config["num_hidden_layers"]),
            **transformers.routing(field),
        )
        return transformers.stack(field, experts=experts, query_key_norm=True, **LLAMA)


def _layers(field: Fields, depth: int) -> tuple[int, ...]:
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
        (),  # KerasHub 0.32 keeps an expert's gate and up in one variable
        ("qwen3_moe",),
        (),
        (
            *transformers.rules(post_norm=False),
            *transformers.expert_rules("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
        ),
        None,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
