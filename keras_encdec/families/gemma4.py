"""Gemma 4: the text models, alone or inside one that reads images and sounds too.

Layers that see everything have wider heads, of which a quarter of the pairs turns, and, in the 31B,
keys that are values too; E2B and E4B have an embedding for each layer and borrow keys; the 26B-A4B
has experts beside the dense feed-forward of each layer. Of the models that read more than text,
what that passes through is left unread.

Sources: transformers 5.23, configuration_gemma4.py and modeling_gemma4.py; KerasHub 0.32,
gemma4_backbone.py, gemma4_decoder_block.py and gemma4_moe.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from keras_encdec.families import keras_hub, transformers
from keras_encdec.families.dialect import Rule, renamed
from keras_encdec.families.family import DROPPED, Family
from keras_encdec.families.fields import Fields, reading
from keras_encdec.spec import AttentionSpec, EncoderSpec, MoESpec, NormSpec, RotarySpec, StackSpec

_LOCAL_BASE, _GLOBAL_BASE = 10_000.0, 1_000_000.0

# What a model that reads more than text says of it.
_BESIDE_TEXT = (
    *("audio_config", "audio_token_id", "boa_token_id", "boi_token_id", "eoa_token_index"),
    *("eoa_token_id", "eoi_token_id", "image_token_id", "video_token_id", "vision_config"),
    "vision_soft_tokens_per_image",
)
# The defaults of Gemma4TextConfig, which a config inside another may leave out.
_INSIDE = {
    **{"vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216},
    **{"num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4},
    **{"head_dim": 256, "rms_norm_eps": 1e-6, "sliding_window": 512},
}
_PER_LAYER = (
    ("per_layer/gate/kernel", "per_layer_input_gate.weight", "p d -> d p"),
    ("per_layer/output/kernel", "per_layer_projection.weight", "d p -> p d"),
    ("per_layer/norm/scale", "post_per_layer_input_norm.weight", "d -> d"),
    ("layer_scalar/scale", "layer_scalar", "1 ->"),
    # Beside experts the dense feed-forward is the one that all tokens share.
    ("feedforward/shared/gate/kernel", "mlp.gate_proj.weight", "f d -> d f"),
    ("feedforward/shared/up/kernel", "mlp.up_proj.weight", "f d -> d f"),
    ("feedforward/shared/down/kernel", "mlp.down_proj.weight", "d f -> f d"),
    ("feedforward/router/kernel", "router.proj.weight", "e d -> d e"),
    ("feedforward/router/scale", "router.scale", "d -> d"),
    ("feedforward/router/expert_scale", "router.per_expert_scale", "e -> e"),
    ("feedforward/experts/down", "experts.down_proj", "e d f -> e f d"),
    ("feedforward/pre_experts_norm/scale", "pre_feedforward_layernorm_2.weight", "d -> d"),
    ("feedforward/post_experts_norm/scale", "post_feedforward_layernorm_2.weight", "d -> d"),
    ("feedforward/post_shared_norm/scale", "post_feedforward_layernorm_1.weight", "d -> d"),
)
TRANSFORMERS = (
    *transformers.rules(post_norm=True),
    Rule("per_layer/embedding/embeddings", "model.embed_tokens_per_layer.weight", "v p -> v p"),
    Rule("per_layer/projection/kernel", "model.per_layer_model_projection.weight", "p d -> d p"),
    Rule("per_layer/norm/scale", "model.per_layer_projection_norm.weight", "p -> p"),
    *transformers.blocks(_PER_LAYER),
    *(
        Rule(
            f"block_{{i}}/feedforward/experts/{name}",
            "model.layers.{i}.experts.gate_up_proj",
            "e f d -> e d f",
            axis=1,
        )
        for name in ("gate", "up")
    ),
)
KERAS_HUB = (
    *keras_hub.gemma_rules(),
    Rule("per_layer/embedding/embeddings", "per_layer_token_embedding/embeddings", "v p -> v p"),
    Rule("per_layer/projection/kernel", "per_layer_model_projection/kernel", "d p -> d p"),
    Rule("per_layer/norm/scale", "per_layer_projection_norm/scale", "p -> p"),
    *keras_hub.blocks(
        "decoder_block_{i}",
        (
            ("per_layer/gate/kernel", "per_layer_input_gate/kernel", "d p -> d p"),
            ("per_layer/output/kernel", "per_layer_up_proj/kernel", "p d -> p d"),
            ("per_layer/norm/scale", "post_per_layer_input_norm/scale", "d -> d"),
            ("layer_scalar/scale", "layer_scalar", "->"),
            ("feedforward/router/kernel", "moe_router/proj/kernel", "d e -> d e"),
            ("feedforward/router/scale", "moe_router/per_dim_scale", "d -> d"),
            ("feedforward/router/expert_scale", "moe_expert_bank/per_expert_scale", "e -> e"),
            ("feedforward/experts/gate", "moe_expert_bank/gate_proj", "e d f -> e d f"),
            ("feedforward/experts/up", "moe_expert_bank/up_proj", "e d f -> e d f"),
            ("feedforward/experts/down", "moe_expert_bank/down_proj", "e f d -> e f d"),
            ("feedforward/shared/gate/kernel", "ffw_gating/kernel", "d f -> d f"),
            ("feedforward/shared/up/kernel", "ffw_gating_2/kernel", "d f -> d f"),
            ("feedforward/shared/down/kernel", "ffw_linear/kernel", "f d -> f d"),
            ("feedforward/pre_experts_norm/scale", "pre_ffw_norm_moe/scale", "d -> d"),
            ("feedforward/post_experts_norm/scale", "post_ffw_norm_moe_path/scale", "d -> d"),
            ("feedforward/post_shared_norm/scale", "post_ffw_norm_dense/scale", "d -> d"),
        ),
    ),
)


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `gemma4_text`."""
    with reading(config) as field:
        field.only("hidden_activation", "gelu_pytorch_tanh")
        field.only("use_bidirectional_attention", None, False, "vision")  # of images alone
        dim = field("hidden_size_per_layer_input", 256)
        words = "vocab_size_per_layer_input"
        if dim:
            field.only(words, config["vocab_size"])
        field.drop(words)
        kinds = field("rope_parameters", None) or {}
        everywhere = transformers.rotary_of(kinds.get("full_attention") or _EVERYWHERE)
        near = transformers.rotary_of(kinds.get("sliding_attention") or {"rope_theta": _LOCAL_BASE})
        last = config["num_hidden_layers"] - 1
        wider, wide = _wider(field, config), field("use_double_wide_mlp", False)
        spec = transformers.stack(
            field,
            query_key_norm=True,
            local=lambda layer: (layer + 1) % 6 != 0 and layer != last,
            rotary=lambda layer, window: everywhere if window is None else near,
            attention={"query_pre_attn_scalar": 1.0, "value_norm": config["rms_norm_eps"]},
            final_logit_soft_cap=field("final_logit_softcapping", None),
            layer_scalar=True,
            borrowing_layers=field("num_kv_shared_layers", 0),
            per_layer_dim=dim or None,
            experts=_experts(
                bool(field("enable_moe_block", False)),
                num_experts=field("num_experts", None),
                top_k=field("top_k_experts", None),
                expert_dim=field("moe_intermediate_size", None),
                shared_dim=config["intermediate_size"],
                router_norm=config["rms_norm_eps"],
            ),
        )
    return _with_layers(spec, wider, wide)


def _experts(enabled: bool, **fields: Any) -> MoESpec | None:
    """Those of every layer, beside its dense feed-forward; no loss is known to make them even."""
    if not enabled:
        return None
    return MoESpec(separate_norms=True, expert_scale=True, balance_weight=0.0, **fields)


_EVERYWHERE = {
    "rope_type": "proportional",
    "rope_theta": _GLOBAL_BASE,
    "partial_rotary_factor": 0.25,
}


def _wider(field: Fields, config: Mapping[str, Any]) -> Callable[[int], dict[str, Any]]:
    """What the attention of a layer that sees everything has of its own, by its number."""
    same = bool(field("attention_k_eq_v", False))
    dim, keys = field("global_head_dim", 512), field("num_global_key_value_heads", None)
    usual = {"head_dim": dim, **({"num_key_value_heads": keys} if same and keys else {})}
    said = field("per_layer_config", None)
    names = {"head_dim": "head_dim", "num_key_value_heads": "num_kv_heads"}
    each = None if said is None else {int(layer): own for layer, own in said.items()}

    def changes(layer: int) -> dict[str, Any]:
        own = usual if each is None else each.get(layer, {})
        if unknown := set(own) - set(names):
            raise ValueError(
                f"Expected per_layer_config of {sorted(names)}. Received: {sorted(unknown)}, "
                "which keras_encdec has no field for."
            )
        return {"values_are_keys": same, **{names[name]: value for name, value in own.items()}}

    return changes


def _with_layers(spec: StackSpec, wider: Callable[[int], dict[str, Any]], wide: bool) -> StackSpec:
    """With the heads of layers that see everything, and twice the width where keys are borrowed.

    Raises:
        ValueError: if twice the width is to be beside experts, whose shared one has one width.
    """
    if wide and spec.borrowing_layers and spec.experts is not None:
        raise ValueError(
            "Expected use_double_wide_mlp=False beside experts, or no layers that borrow keys. "
            f"Received: True with {spec.borrowing_layers} that do, which keras_encdec has no "
            "field for."
        )
    attention = tuple(
        dataclasses.replace(each, **wider(i)) if spec.windows[i] is None else each
        for i, each in enumerate(spec.attentions)
    )
    first = spec.num_layers - spec.borrowing_layers
    dims = (dim * (1 + (wide and i >= first)) for i, dim in enumerate(spec.feedforward_dims))
    return dataclasses.replace(spec, attention=attention, feedforward_dim=tuple(dims))


def from_transformers_with_images(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind the text part of a `config.json` of model type `gemma4`."""
    return from_transformers(transformers.text_part(config, _BESIDE_TEXT, _INSIDE))


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `gemma4_text`."""
    stack, experts = spec.encoder, spec.encoder.experts
    layers = list(zip(stack.windows, stack.attentions, stack.rotaries, strict=True))
    near = next((each for each in layers if each[0] is not None), layers[0])
    far = next((each for each in layers if each[0] is None), layers[-1])
    kinds = {"full_attention": far[2], "sliding_attention": near[2]}
    everywhere = [i for i, window in enumerate(stack.windows) if window is None]
    own = {"head_dim": far[1].head_dim, "num_key_value_heads": far[1].num_kv_heads}
    return transformers.config(
        spec,
        "Gemma4TextModel",
        hidden_activation="gelu_pytorch_tanh",
        final_logit_softcapping=stack.final_logit_soft_cap,
        attention_k_eq_v=far[1].values_are_keys,
        per_layer_config={str(i): own for i in everywhere},
        hidden_size_per_layer_input=stack.per_layer_dim or 0,
        vocab_size_per_layer_input=stack.vocabulary_size,
        num_kv_shared_layers=stack.borrowing_layers,
        use_double_wide_mlp=isinstance(stack.feedforward_dim, tuple),
        enable_moe_block=experts is not None,
        num_experts=experts and experts.num_experts,
        top_k_experts=experts and experts.top_k,
        moe_intermediate_size=experts and experts.expert_dim,
        **transformers.local_layers(spec),
    ) | {
        "head_dim": near[1].head_dim,
        "num_key_value_heads": near[1].num_kv_heads,
        "rope_parameters": {
            kind: transformers.rope_parameters(rotary or RotarySpec())
            for kind, rotary in kinds.items()
        },
    }


def from_keras_hub(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `Gemma4Backbone` config.

    KerasHub 0.32 itself rounds the router's probabilities to the compute dtype (gemma4_moe.py), in
    which those of two experts may be equal; ours are in float32, as transformers'.
    """
    with reading(config) as field:
        field.drop("image_size", "vision_encoder", "audio_encoder", "num_audio_tokens_per_clip")
        field.drop("use_vision_bidirectional_attention", "query_head_dim_normalize")  # of no text
        for name in ("is_embedding_model", "use_bidirectional_attention"):
            field.only(name, False)
        dim, words = field("hidden_size_per_layer_input"), field("vocab_size_per_layer_input")
        if dim and words not in (None, config["vocabulary_size"]):
            raise ValueError(
                f"Expected a vocab_size_per_layer_input of {config['vocabulary_size']}, as the "
                f"vocabulary. Received: {words}."
            )
        attention, wider = _attentions_of_keras_hub(field)
        window, used = field("sliding_window_size"), field("use_sliding_window_attention")
        pattern, kinds = field("sliding_window_pattern"), field("layer_types")
        depth = field("num_layers")
        far = [
            kinds[i] == "full_attention" if kinds else (i + 1) % pattern == 0 for i in range(depth)
        ]
        everywhere = RotarySpec(
            float(field("global_rope_wavelength") or _GLOBAL_BASE),
            float(field("global_rope_scaling_factor")),
            fraction=(part := field("global_rope_partial_rotary_factor")),
            proportional=part != 1,
        )
        near = RotarySpec(
            float(field("local_rope_wavelength") or _LOCAL_BASE),
            float(field("local_rope_scaling_factor")),
        )
        spec = StackSpec(
            vocabulary_size=field("vocabulary_size"),
            width=field("hidden_dim"),
            feedforward_dim=field("intermediate_dim"),
            attention=attention,
            windows=tuple(None if far[i] or not used else window for i in range(depth)),
            rotary=tuple(everywhere if each else near for each in far),
            norm=attention.query_key_norm or NormSpec(),
            tied_output=field("tie_word_embeddings"),
            final_logit_soft_cap=field("final_logit_soft_cap"),
            dropout=field("dropout"),
            layer_scalar=True,
            borrowing_layers=field("num_kv_shared_layers"),
            per_layer_dim=dim or None,
            experts=_experts(
                field("enable_moe_block", False),
                num_experts=field("num_experts", None),
                top_k=field("num_experts_per_token", None),
                expert_dim=field("expert_intermediate_dim", None),
                shared_dim=config["intermediate_dim"],
                router_norm=config["layer_norm_epsilon"],
            ),
        )
        wide = field("use_double_wide_mlp")
    return _with_layers(spec, lambda layer: wider, wide)


def _attentions_of_keras_hub(field: Fields) -> tuple[AttentionSpec, dict[str, Any]]:
    """That of layers with a window, and what is otherwise in those that see everything."""
    keys = field("num_global_key_value_heads")
    epsilon = field("layer_norm_epsilon")
    near = AttentionSpec(
        num_heads=field("num_query_heads"),
        num_kv_heads=field("num_key_value_heads"),
        head_dim=field("head_dim"),
        query_pre_attn_scalar=1.0,
        logit_soft_cap=field("attention_logit_soft_cap"),
        query_key_norm=NormSpec(epsilon, zero_centered=False),
        value_norm=epsilon,
    )
    far = {"head_dim": field("global_head_dim") or near.head_dim}
    return near, far | ({"num_kv_heads": keys, "values_are_keys": True} if keys else {})


# Layers that borrow keys have kernels for them in checkpoints, which nothing computes with.
_UNUSED = "*.self_attn.k_proj.weight", "*.self_attn.v_proj.weight", "*.self_attn.k_norm.weight"
_UNREAD = (
    *("model.vision_tower.*", "model.embed_vision.*", "model.audio_tower.*"),
    "model.embed_audio.*",
)

FAMILIES = (
    Family(
        ("Gemma4Backbone",),
        ("gemma4_text",),
        KERAS_HUB,
        TRANSFORMERS,
        from_keras_hub,
        from_transformers,
        to_transformers,
        tied=True,
        dropped=("vision_encoder/*", "audio_encoder/*", *_UNUSED, *DROPPED),
    ),
    Family(
        (),  # Gemma4Backbone serves both
        ("gemma4",),
        KERAS_HUB,
        renamed(TRANSFORMERS, {"model.": "model.language_model."}),
        from_keras_hub,
        from_transformers_with_images,
        None,  # as gemma4_text, which an encoder of texts is
        tied=True,
        dropped=(*_UNREAD, *_UNUSED, *DROPPED),
    ),
)
