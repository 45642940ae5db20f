"""SmolLM3: Llama whose every fourth layer knows no positions."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.dialect import Rule
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, RotarySpec, StackSpec

_LAYER = (
    ("attention/query/kernel", "self_attn/q_proj/kernel", "d (n h) -> d n h"),
    ("attention/key/kernel", "self_attn/k_proj/kernel", "d (k h) -> d k h"),
    ("attention/value/kernel", "self_attn/v_proj/kernel", "d (k h) -> d k h"),
    ("feedforward/gate/kernel", "mlp/gate_proj/kernel", "d f -> d f"),
    ("feedforward/up/kernel", "mlp/up_proj/kernel", "d f -> d f"),
    ("feedforward/down/kernel", "mlp/down_proj/kernel", "f d -> f d"),
    ("pre_attention_norm/scale", "input_layernorm/scale", "d -> d"),
    ("pre_feedforward_norm/scale", "post_attention_layernorm/scale", "d -> d"),
)
KERAS_HUB = (
    Rule("embedding/embeddings", "token_embedding/embeddings", "v d -> v d"),
    Rule("final_norm/scale", "sequence_output_layernorm/scale", "d -> d"),
    # Built outside of its layer's name (smollm3_layers.py): all of them share a path.
    Rule("block_{i}/attention/attention_output/kernel", "o_proj/kernel#{i}", "n h d -> n h d"),
    *keras_hub.blocks("transformer_layer_{i}", _LAYER),
)


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `SmolLM3Backbone` config; its output is always tied."""
    as_llama = {"num_query_heads": config["num_attention_heads"], "dropout": 0.0}
    rest = {name: value for name, value in config.items() if name != "num_attention_heads"}
    with reading(rest | as_llama) as field:
        for name in ("attention_bias", "mlp_bias"):
            field.only(name, False)
        field.only("attention_dropout", 0.0)
        field.only("partial_rotary_factor", 1.0)
        field.only("layer_types", ["full_attention"] * config["num_layers"])
        rotary = RotarySpec(float(field("rope_theta")))
        used = field("rope_layer_enabled_list")
        return keras_hub.llama_stack(field, rotary=tuple(rotary if u else None for u in used))


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `smollm3`.

    Where it lists no layers, each fourth has no positions, and the windows that there may be
    (configuration_smollm3.py of transformers 5.23).
    """
    with reading({"use_sliding_window": False, **config}) as field:
        field.only("hidden_act", "silu")
        field("max_window_layers", None)  # not read there
        step, depth = field("no_rope_layer_interval", 4), config["num_hidden_layers"]
        used = field("no_rope_layers", None) or [(i + 1) % step != 0 for i in range(depth)]
        positions = transformers.read_rotary(field)

        def rotary(layer: int, window: int | None) -> RotarySpec | None:
            return positions if used[layer] else None

        return transformers.stack(
            field, rotary=rotary, local=lambda layer: not used[layer], **LLAMA
        )


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `smollm3`."""
    return transformers.config(
        spec,
        "SmolLM3Model",
        hidden_act="silu",
        no_rope_layers=[int(rotary is not None) for rotary in spec.encoder.rotaries],
        use_sliding_window=transformers.local_window(spec) is not None,
        **transformers.local_layers(spec),
    )


FAMILIES = (
    Family(
        ("SmolLM3Backbone",),
        ("smollm3",),
        KERAS_HUB,
        transformers.rules(post_norm=False),
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=True,
        dropped=("lm_head.weight", "*.inv_freq", "rotary_emb/inv_freq*"),
    ),
)
