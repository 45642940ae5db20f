"""The released T5Gemma pairs, in the layout of transformers and in KerasHub's; encoders alone.

Sources: transformers 5.23 models/t5gemma; keras_hub 0.32 src/models/t5gemma. Both
read encoder windows in their own way (transformers one key wider, KerasHub not at
all), which is theirs: the weights and fields are the same.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from keras_encdec.families import transformers
from keras_encdec.families.dialect import Rule
from keras_encdec.families.fields import reading
from keras_encdec.spec import (
    AttentionSpec,
    CrossAttentionSpec,
    EncoderSpec,
    NormSpec,
    PairSpec,
    RotarySpec,
    StackSpec,
    window_lengths,
)

KERAS_HUB_CLASS = "T5GemmaBackbone"

# One row per weight of a block: ours with its axes, theirs in transformers with its
# axes, and theirs in KerasHub, whose axes are ours.
_BLOCK = (
    ("pre_attention_norm/scale", "d", "pre_self_attn_layernorm", "d", "pre_self_attention_layernorm/scale"),
    ("attention/query/kernel", "d n h", "self_attn.q_proj", "(n h) d", "self_attention/query/kernel"),
    ("attention/key/kernel", "d k h", "self_attn.k_proj", "(k h) d", "self_attention/key/kernel"),
    ("attention/value/kernel", "d k h", "self_attn.v_proj", "(k h) d", "self_attention/value/kernel"),
    ("attention/attention_output/kernel", "n h d", "self_attn.o_proj", "d (n h)", "self_attention/attention_output/kernel"),
    ("post_attention_norm/scale", "d", "post_self_attn_layernorm", "d", "post_self_attention_layernorm/scale"),
    ("pre_feedforward_norm/scale", "d", "pre_feedforward_layernorm", "d", "pre_feedforward_layernorm/scale"),
    ("feedforward/gate/kernel", "d f", "mlp.gate_proj", "f d", "mlp/gate_proj/kernel"),
    ("feedforward/up/kernel", "d f", "mlp.up_proj", "f d", "mlp/up_proj/kernel"),
    ("feedforward/down/kernel", "f d", "mlp.down_proj", "d f", "mlp/down_proj/kernel"),
    ("post_feedforward_norm/scale", "d", "post_feedforward_layernorm", "d", "post_feedforward_layernorm/scale"),
)  # fmt: skip
_CROSS_ATTENTION = tuple(
    (
        ours.replace("attention", "cross_attention", 1),
        our_axes,
        theirs.replace("self_attn", "cross_attn"),
        their_axes,
        keras_hub.replace("self_attention", "cross_attention"),
    )
    for ours, our_axes, theirs, their_axes, keras_hub in _BLOCK
    if "attention" in ours
)


def _rules(
    side: str, rows: Iterable[tuple[str, str, str, str, str]]
) -> tuple[list[Rule], list[Rule]]:
    """The rules of one side, for transformers and for KerasHub."""
    norm_prefix = "decoder_" if side == "decoder" else ""  # KerasHub's, on norms alone
    transformers = [
        Rule(f"{side}/embedding/embeddings", f"model.{side}.embed_tokens.weight", "v d -> v d"),
        Rule(f"{side}/final_norm/scale", f"model.{side}.norm.weight", "d -> d"),
    ]
    keras_hub = [
        Rule(f"{side}/embedding/embeddings", f"{side}_token_embedding/embeddings", "v d -> v d"),
        Rule(f"{side}/final_norm/scale", f"{side}_norm/scale", "d -> d"),
    ]
    for name, axes, theirs, their_axes, in_keras_hub in rows:
        ours, prefix = f"{side}/block_{{i}}/{name}", norm_prefix if "layernorm" in theirs else ""
        layers = f"model.{side}.layers.{{i}}.{theirs}.weight"
        transformers.append(Rule(ours, layers, f"{their_axes} -> {axes}"))
        keras_hub.append(
            Rule(ours, f"{side}_layer_{{i}}/{prefix}{in_keras_hub}", f"{axes} -> {axes}")
        )
    return transformers, keras_hub


_ENCODER = _rules("encoder", _BLOCK)
_DECODER = _rules("decoder", _BLOCK + _CROSS_ATTENTION)
TRANSFORMERS = (*_ENCODER[0], *_DECODER[0])
TRANSFORMERS_ENCODER = tuple(_ENCODER[0])
KERAS_HUB = (*_ENCODER[1], *_DECODER[1])

# Tied to the decoder's embedding; some writers store the tie as a copy.
TRANSFORMERS_DROPPED = ("lm_head.out_proj.weight",)


def dialect_of(pair: PairSpec, names: Iterable[str]) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """As of `keras_encdec.families.t5gemma2`."""
    return TRANSFORMERS, TRANSFORMERS_DROPPED


# What `to_transformers` writes and `_stack` reads, and what those of transformers hold beside it.
_OF_A_PAIR = (
    *("is_encoder_decoder", "is_decoder", "vocab_size", "dropout_rate", "attention_dropout"),
    *("classifier_dropout_rate", "tie_word_embeddings"),
)
_OF_A_MODULE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "query_pre_attn_scalar", "attn_logit_softcapping"),
    *("final_logit_softcapping", "sliding_window", "layer_types", "rope_parameters", "rope_theta"),
    *("rms_norm_eps", "hidden_activation", "attention_bias", "cross_attention_hidden_size"),
)


def from_transformers(config: dict[str, Any]) -> PairSpec:
    """The pair behind a `config.json` of model type `t5gemma`.

    Raises:
        ValueError: if a field asks for what a T5Gemma release never has.
    """
    if is_encoder(config):
        raise ValueError(
            "Expected a pair. Received: is_encoder_decoder=false, an encoder alone. "
            "keras_encdec.models.EncoderBackbone.from_preset loads it."
        )
    encoder, decoder = _stacks(config, ("encoder", "decoder"))
    return PairSpec(encoder, decoder)


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of an encoder alone in this layout."""
    return config.get("model_type") == "t5gemma" and config.get("is_encoder_decoder") is False


def encoder_from_transformers(config: Mapping[str, Any]) -> EncoderSpec:
    """The encoder behind a `config.json` with `is_encoder_decoder=False`.

    Its windows have one key less than ours: transformers counts those beside a query's own.

    Raises:
        ValueError: as `from_transformers`.
    """
    (stack,) = _stacks(config, ("encoder",))
    windows = tuple(window and int(window_lengths(window)[0]) + 1 for window in stack.windows)
    return EncoderSpec(dataclasses.replace(stack, windows=windows))


def encoder_to_transformers(spec: EncoderSpec, dtype: str) -> dict[str, Any]:
    """The `config.json` of an encoder, as near as the layout comes to it.

    Args:
        spec: what to describe; `keras_encdec.families.encoders` says what is lost of it.
        dtype: name of the dtype that the tensors are written in.
    """
    stack = spec.encoder
    module = {
        **_module(stack, dtype),
        "query_pre_attn_scalar": transformers.scalar(spec),
        "sliding_window": transformers.local_window(spec) or 4096,
    }
    return {
        "architectures": ["T5GemmaEncoderModel"],
        "is_encoder_decoder": False,
        "encoder": {**module, **SHARED, "is_decoder": False},
        "vocab_size": stack.vocabulary_size,
        "dropout_rate": stack.dropout,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        **SHARED,
    }


def _stacks(config: Mapping[str, Any], sides: Iterable[str]) -> list[StackSpec]:
    """The sides of a `config.json`; every field must be known."""
    if not config.get("tie_word_embeddings", True):
        raise ValueError("Expected tie_word_embeddings=true. Received: false.")
    try:
        with reading(config) as fields:
            fields.drop("encoder", "decoder", *_OF_A_PAIR)
        for side in sides:
            with reading(config[side]) as fields:
                fields.drop(*_OF_A_PAIR, *_OF_A_MODULE)
        return [_stack(config[side]) for side in sides]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected a T5Gemma config. Received: one without, or with an unknown, {error}."
        ) from error


def _stack(config: dict[str, Any]) -> StackSpec:
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0)}
    for field, received, expected in (
        ("hidden_activation", config["hidden_activation"], "gelu_pytorch_tanh"),
        ("attention_bias", config.get("attention_bias", False), False),
        ("attention_dropout", config.get("attention_dropout", 0.0), 0.0),
        ("rope_type", rope.get("rope_type", "default"), "default"),
    ):
        if received != expected:
            raise ValueError(f"Expected {field}={expected!r}. Received: {received!r}.")
    local = {"sliding_attention": config["sliding_window"], "full_attention": None}
    return StackSpec(
        vocabulary_size=config["vocab_size"],
        width=config["hidden_size"],
        feedforward_dim=config["intermediate_size"],
        attention=AttentionSpec(
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            query_pre_attn_scalar=config["query_pre_attn_scalar"],
            logit_soft_cap=config["attn_logit_softcapping"],
        ),
        rotary=RotarySpec(rope["rope_theta"]),
        windows=tuple(local[kind] for kind in config["layer_types"]),
        norm=NormSpec(config["rms_norm_eps"]),
        final_logit_soft_cap=config["final_logit_softcapping"],
        dropout=config.get("dropout_rate", 0.0),
    )


def to_transformers(pair: PairSpec, dtype: str) -> dict[str, Any]:
    """The `config.json` of a pair; the inverse of `from_transformers`.

    Args:
        pair: what to describe.
        dtype: name of the dtype that the tensors are written in.

    Raises:
        ValueError: naming the field that the T5Gemma layout cannot hold.
    """
    _only(
        ("encoder_attention", pair.encoder_attention, "bidirectional"),
        ("cross_attention", pair.cross_attention, CrossAttentionSpec()),
        ("tied_embeddings", pair.tied_embeddings, False),
        ("adaptor", pair.adaptor, None),
        ("vision", pair.vision, None),
        ("encoder.vocabulary_size", pair.encoder.vocabulary_size, pair.decoder.vocabulary_size),
    )
    for stack in (pair.encoder, pair.decoder):
        _check_held(stack)
    return {
        "architectures": ["T5GemmaForConditionalGeneration"],
        "model_type": "t5gemma",
        "is_encoder_decoder": True,
        "encoder": {**_module(pair.encoder, dtype), **SHARED, "is_decoder": False},
        "decoder": {
            **_module(pair.decoder, dtype),
            **SHARED,
            "is_decoder": True,
            "cross_attention_hidden_size": pair.encoder.width,
        },
        "vocab_size": pair.decoder.vocabulary_size,
        "dtype": dtype,
        "dropout_rate": pair.decoder.dropout,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        **SHARED,
    }


SHARED = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": True}


def _module(spec: StackSpec, dtype: str) -> dict[str, Any]:
    attention, kinds = spec.attentions[0], {True: "full_attention", False: "sliding_attention"}
    return {
        "model_type": "t5_gemma_module",
        "vocab_size": spec.vocabulary_size,
        "hidden_size": spec.width,
        "intermediate_size": spec.feedforward_dims[0],
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "query_pre_attn_scalar": attention.query_pre_attn_scalar,
        "attn_logit_softcapping": attention.logit_soft_cap,
        "final_logit_softcapping": spec.final_logit_soft_cap,
        "sliding_window": max((window_lengths(w)[0] for w in spec.windows if w), default=4096),
        "layer_types": [kinds[window is None] for window in spec.windows],
        "rope_parameters": {
            "rope_theta": transformers.first_rotary(spec).base,
            "rope_type": "default",
        },
        "rms_norm_eps": spec.norm.epsilon,
        "dropout_rate": spec.dropout,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,
    }


_FIXED = {
    **{"pre_norm": True, "post_norm": True, "scale_embeddings": True, "tied_output": True},
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0),
    **{"layer_scalar": False, "borrowing_layers": 0, "per_layer_dim": None},
}
_WITHOUT = ("bias", "output_bias", "sinks", "values_are_keys")


def _check_held(spec: StackSpec) -> None:
    """Raises ValueError naming the first field that a T5Gemma module has no place for."""
    attention = spec.attentions[0]
    _only(
        ("rotary", spec.rotary, RotarySpec(transformers.first_rotary(spec).base)),
        ("activation", spec.activation, "gelu_tanh"),
        ("norm", spec.norm, NormSpec(spec.norm.epsilon)),
        *((name, getattr(spec, name), held) for name, held in _FIXED.items()),
        ("attention", spec.attentions, (attention,) * spec.num_layers),
        *((f"attention.{name}", getattr(attention, name), False) for name in _WITHOUT),
        ("attention.query_key_norm", attention.query_key_norm, None),
        ("attention.value_norm", attention.value_norm, None),
        ("feedforward_dim", spec.feedforward_dim, spec.feedforward_dims[0]),
        ("experts", spec.experts, None),
    )
    sizes = set(spec.windows) - {None}
    if len(sizes) > 1 or any(isinstance(size, tuple) for size in sizes):
        raise ValueError(
            f"Expected one window size in the T5Gemma layout. Received: windows={spec.windows}."
        )


def _only(*fields: tuple[str, Any, Any]) -> None:
    """Raises ValueError at the first of `(name, value, held)` whose two values differ."""
    for name, value, held in fields:
        if value != held:
            raise ValueError(
                f"Expected {name}={held!r}, all that the T5Gemma layout holds. "
                f"Received: {value!r}. save_to_preset keeps any pair."
            )


def from_keras_hub(config: dict[str, Any]) -> PairSpec:
    """The pair behind a `T5GemmaBackbone` config.

    Raises:
        ValueError: if a field asks for what a T5Gemma release never has.
    """
    if not config["tie_word_embeddings"]:
        raise ValueError("Expected tie_word_embeddings=True. Received: False.")
    return PairSpec(_keras_hub_stack(config, "encoder"), _keras_hub_stack(config, "decoder"))


def _keras_hub_stack(config: dict[str, Any], side: str) -> StackSpec:
    shared = {
        "vocab_size": config["vocabulary_size"],
        "hidden_activation": _activation(config["hidden_activation"]),
        "attn_logit_softcapping": config["attn_logit_softcapping"],
        "final_logit_softcapping": config["final_logit_softcapping"],
        "rope_theta": config["rope_max_wavelength"],
        "attention_bias": config["attention_bias"],
        "attention_dropout": config["attention_dropout"],
    }
    names = {
        "hidden_size": "hidden_dim",
        "intermediate_size": "intermediate_dim",
        "num_attention_heads": "num_attention_heads",
        "num_key_value_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "layer_types": "layer_types",
    }
    sided = {theirs: config[f"{side}_{ours}"] for theirs, ours in names.items()}
    same = ("query_pre_attn_scalar", "sliding_window", "rms_norm_eps", "dropout_rate")
    return _stack({**shared, **sided, **{name: config[name] for name in same}})


def _activation(name: str) -> str:
    """KerasHub's name for the activation as transformers has it."""
    return {"gelu_approximate": "gelu_pytorch_tanh"}.get(name, name)
