"""Qwen 2 MoE: Qwen 2 with experts and one that all tokens share, in all layers or in some.

As Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B have it (arXiv 2407.10671).
"""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.families.qwen3_moe import sparse_layers
from keras_encdec.spec import EncoderSpec, MoESpec, StackSpec

_SHARED = (
    ("feedforward/shared/gate/kernel", "mlp.shared_expert.gate_proj.weight", "f d -> d f"),
    ("feedforward/shared/up/kernel", "mlp.shared_expert.up_proj.weight", "f d -> d f"),
    ("feedforward/shared/down/kernel", "mlp.shared_expert.down_proj.weight", "d f -> f d"),
    ("feedforward/shared_weight/kernel", "mlp.shared_expert_gate.weight", "one d -> d one"),
)
_SHARED_IN_KERAS_HUB = (
    ("feedforward/shared/gate/kernel", "shared_expert_dense/feedforward_gate_dense/kernel", "d f -> d f"),
    ("feedforward/shared/up/kernel", "shared_expert_dense/feedforward_intermediate_dense/kernel", "d f -> d f"),
    ("feedforward/shared/down/kernel", "shared_expert_dense/feedforward_output_dense/kernel", "f d -> f d"),
    ("feedforward/shared_weight/kernel", "shared_expert_gate_dense/kernel", "d one -> d one"),
)  # fmt: skip


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `QwenMoeBackbone` config.

    KerasHub 0.32 makes every layer as its first, with experts or without, whatever the config says
    of the others (qwen_moe_backbone.py hands on no `layer_index`), and on JAX and PyTorch leaves
    the window out (qwen_moe_attention.py). Its loss of uneven experts is another, too (see
    `keras_encdec.families.mixtral.from_keras_hub`); the weight of it, which configs leave out, is
    the default there.
    """
    with reading(config) as field:
        field.drop("output_router_logits")  # of an output, which a backbone has no room for
        experts = MoESpec(
            num_experts=field("num_experts"),
            top_k=config["top_k"],
            expert_dim=field("moe_intermediate_dim"),
            renormalize=field("norm_top_k_prob"),
            balance_weight=float(field("router_aux_loss_coefficient", 0.001)),
            layers=None if sparse_layers(field, 1) else (),  # each is made as the first
            shared_dim=field("shared_expert_intermediate_dim"),
            shared_gate=True,
        )
        rotary, window = keras_hub.linear_rotary(field), field("sliding_window_size")
        window = window if field("use_sliding_window_attention") else None
        return keras_hub.llama_stack(
            field, rotary=rotary, window=window, bias=True, experts=experts
        )


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `qwen2_moe`.

    Where it has no `layer_types`, each second of the first `max_window_layers` has the window
    (configuration_qwen2_moe.py of transformers 5.23).
    """
    with reading({"use_sliding_window": False, **config}) as field:
        field.only("hidden_act", "silu")
        end = field("max_window_layers", 28)
        experts = MoESpec(
            num_experts=field("num_experts"),
            expert_dim=field("moe_intermediate_size"),
            renormalize=field("norm_topk_prob", False),
            layers=sparse_layers(field, config["num_hidden_layers"]),
            shared_dim=field("shared_expert_intermediate_size"),
            shared_gate=True,
            **transformers.routing(field),
        )
        return transformers.stack(
            field,
            local=lambda layer: layer % 2 == 0 and layer < end,
            attention={"bias": field("qkv_bias", True)},
            experts=experts,
            **LLAMA,
        )


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `qwen2_moe`."""
    experts = transformers.experts_of(spec)
    return transformers.config(
        spec,
        "Qwen2MoeModel",
        hidden_act="silu",
        use_sliding_window=transformers.local_window(spec) is not None,
        qkv_bias=spec.encoder.attentions[0].bias,
        num_experts=experts.num_experts,
        moe_intermediate_size=experts.expert_dim,
        norm_topk_prob=experts.renormalize,
        shared_expert_intermediate_size=experts.shared_dim or experts.expert_dim,
        decoder_sparse_step=1,
        mlp_only_layers=[i for i in range(spec.encoder.num_layers) if not experts.is_in(i)],
        **transformers.routing_config(experts),
        **transformers.local_layers(spec),
    )


FAMILIES = (
    Family(
        ("QwenMoeBackbone",),
        ("qwen2_moe",),
        (
            *keras_hub.llama_rules(),
            *keras_hub.expert_rules(gate="gate_dense", up="gate_dense"),
            *keras_hub.blocks("transformer_layer_{i}", _SHARED_IN_KERAS_HUB),
        ),
        (
            *transformers.rules(post_norm=False),
            *transformers.expert_rules("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
            *transformers.blocks(_SHARED),
        ),
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
