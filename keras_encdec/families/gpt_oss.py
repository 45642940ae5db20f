"""gpt-oss: experts in every layer, biases everywhere, sinks, and every other layer with a window.

Released weights of experts are in MXFP4, which `keras_encdec.conversion.mxfp4` reads.

Sources: transformers 5.23, configuration_gpt_oss.py and modeling_gpt_oss.py; KerasHub 0.32,
gpt_oss_backbone.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.dialect import Rule, renamed
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, MoESpec, StackSpec
from keras_encdec.spec.stack import SWIGLU_ALPHA, SWIGLU_LIMIT

_OWN = {**LLAMA, "activation": "clamped_swiglu"}
_YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
_YARN |= {"truncate": False, "original_max_position_embeddings": 4096}
# Of GptOssConfig, where a config says nothing.
_DEFAULTS = {"rope_theta": 150_000.0, "rope_scaling": _YARN}

_EXPERTS = "block_{i}/feedforward/experts"


def _shared(theirs: str) -> tuple[Rule, ...]:
    """Rules of the experts, whose gate and up take turns in one tensor, in both dialects."""
    kernel, bias = "e d f -> e d f", "e f -> e f"
    return (
        Rule(f"{_EXPERTS}/gate", f"{theirs}gate_up_proj", kernel, axis=2, takes_turns=True),
        Rule(f"{_EXPERTS}/up", f"{theirs}gate_up_proj", kernel, axis=2, takes_turns=True),
        Rule(f"{_EXPERTS}/gate_bias", f"{theirs}gate_up_proj_bias", bias, axis=1, takes_turns=True),
        Rule(f"{_EXPERTS}/up_bias", f"{theirs}gate_up_proj_bias", bias, axis=1, takes_turns=True),
        Rule(f"{_EXPERTS}/down", f"{theirs}down_proj", "e f d -> e f d"),
        Rule(f"{_EXPERTS}/down_bias", f"{theirs}down_proj_bias", "e d -> e d"),
    )


_LAYER = (
    ("attention/sinks", "self_attn.sinks", "n -> n"),
    ("attention/attention_output/bias", "self_attn.o_proj.bias", "d -> d"),
    ("feedforward/router/kernel", "mlp.router.weight", "e d -> d e"),
    ("feedforward/router/bias", "mlp.router.bias", "e -> e"),
)
TRANSFORMERS = (
    *transformers.rules(post_norm=False),
    *transformers.blocks(_LAYER),
    *_shared("model.layers.{i}.mlp.experts."),
)
# KerasHub calls the norms otherwise than in its other families.
_NORMS = {
    "self_attention_layernorm": "input_layernorm",
    "feedforward_layernorm": "post_attention_layernorm",
}
KERAS_HUB = (
    *renamed(keras_hub.llama_rules(), _NORMS),
    *keras_hub.blocks(
        "transformer_layer_{i}",
        (
            ("attention/sinks", "self_attention/sinks", "n -> n"),
            ("attention/attention_output/bias", "self_attention/attention_output/bias", "d -> d"),
            ("feedforward/router/kernel", "sparse_moe_block/router/router_dense/kernel", "d e -> d e"),
            ("feedforward/router/bias", "sparse_moe_block/router/router_dense/bias", "e -> e"),
        ),
    ),
    *_shared("transformer_layer_{i}/sparse_moe_block/experts/"),
)  # fmt: skip


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `GptOssBackbone` config.

    Windows are those of transformers. KerasHub 0.32 itself has them in the odd layers, where the
    checkpoints have them in the even ones, and one key wider (gpt_oss_backbone.py,
    gpt_oss_attention.py). It has no loss of uneven experts.
    """
    with reading(config) as field:
        field.drop("output_router_logits")
        experts = MoESpec(
            num_experts=field("num_experts"),
            top_k=config["top_k"],
            expert_dim=config["intermediate_dim"],
            balance_weight=0.0,
            router_bias=True,
            expert_bias=True,
        )
        yarn = {**_YARN, "factor": field("rope_scaling_factor")}
        rotary = transformers.rotary_of({"rope_theta": field("rope_max_wavelength"), **yarn})
        window = field("sliding_window")
        stack = keras_hub.llama_stack(field, rotary=rotary, bias=True, experts=experts)
    windows = tuple(None if i % 2 else window for i in range(stack.num_layers))
    attention = dataclasses.replace(stack.attentions[0], output_bias=True, sinks=True)
    own = {"attention": attention, "activation": _OWN["activation"], "windows": windows}
    return dataclasses.replace(stack, **own)


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `gpt_oss`.

    Raises:
        ValueError: if its weights are quantised otherwise than in MXFP4, or a field has a value
            that a spec cannot express.
    """
    said = {name: value for name, value in config.items() if value is not None}
    with reading({**_DEFAULTS, **said}) as field:
        field.only("hidden_act", "silu")
        field.only("swiglu_alpha", SWIGLU_ALPHA)
        field.only("swiglu_limit", SWIGLU_LIMIT)
        field.only("experts_per_token", config["num_experts_per_tok"])  # the same, by another name
        field.drop("initial_context_length")  # of the rotary positions, which say it too
        _check_quantized(field("quantization_config", None))
        biased = field("attention_bias", True)
        experts = MoESpec(
            num_experts=field("num_local_experts"),
            expert_dim=config["intermediate_size"],
            router_bias=True,
            expert_bias=True,
            **transformers.routing(field),
        )
        return transformers.stack(
            field,
            local=lambda layer: layer % 2 == 0,
            attention={"bias": biased, "output_bias": biased, "sinks": True},
            experts=experts,
            **_OWN,
        )


def _check_quantized(given: Mapping[str, Any] | None) -> None:
    method = "mxfp4" if given is None else given.get("quant_method")
    if method != "mxfp4":
        raise ValueError(
            "Expected weights in float, or experts in MXFP4. Received: quantization_config with "
            f"quant_method={method!r}. Load the model in transformers with dequantize=True where "
            "it can, and save it."
        )


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `gpt_oss`: in float, also where its weights were MXFP4."""
    experts = transformers.experts_of(spec)
    return transformers.config(
        spec,
        "GptOssModel",
        hidden_act="silu",
        swiglu_alpha=SWIGLU_ALPHA,
        swiglu_limit=SWIGLU_LIMIT,
        attention_bias=spec.encoder.attentions[0].bias,
        num_local_experts=experts.num_experts,
        **transformers.local_layers(spec),
        **transformers.routing_config(experts),
    )


FAMILIES = (
    Family(
        ("GptOssBackbone",),
        ("gpt_oss",),
        KERAS_HUB,
        TRANSFORMERS,
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
