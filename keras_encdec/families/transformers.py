"""What decoder-only families of transformers share: tensor names, and most of a config.

Configs are read, and written for encoders: `"is_causal": false` in one makes a model read both
ways, each query as many as `sliding_window` keys before and behind its own; a window of ours
counts its own key too (`sliding_window_bidirectional_overlay` in masking_utils.py).

Source: transformers 5.23, configuration_*.py and modeling_*.py of the families, which name
the same things alike. A rule for a weight that a family lacks is never used.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from keras_encdec.families.dialect import Rule
from keras_encdec.families.fields import Fields, reading
from keras_encdec.spec import (
    AttentionSpec,
    EncoderSpec,
    MoESpec,
    NormSpec,
    RotarySpec,
    StackSpec,
    window_lengths,
)

# Ours, theirs within a layer, and how the axes move from theirs to ours.
_LAYER = (
    ("attention/query/kernel", "self_attn.q_proj.weight", "(n h) d -> d n h"),
    ("attention/key/kernel", "self_attn.k_proj.weight", "(k h) d -> d k h"),
    ("attention/value/kernel", "self_attn.v_proj.weight", "(k h) d -> d k h"),
    ("attention/query/bias", "self_attn.q_proj.bias", "(n h) -> n h"),
    ("attention/key/bias", "self_attn.k_proj.bias", "(k h) -> k h"),
    ("attention/value/bias", "self_attn.v_proj.bias", "(k h) -> k h"),
    ("attention/query_norm/scale", "self_attn.q_norm.weight", "h -> h"),
    ("attention/key_norm/scale", "self_attn.k_norm.weight", "h -> h"),
    ("attention/attention_output/kernel", "self_attn.o_proj.weight", "d (n h) -> n h d"),
    ("feedforward/gate/kernel", "mlp.gate_proj.weight", "f d -> d f"),
    ("feedforward/up/kernel", "mlp.up_proj.weight", "f d -> d f"),
    ("feedforward/down/kernel", "mlp.down_proj.weight", "d f -> f d"),
    ("pre_attention_norm/scale", "input_layernorm.weight", "d -> d"),
)
_WITHOUT_POST_NORMS = (("pre_feedforward_norm/scale", "post_attention_layernorm.weight", "d -> d"),)
_WITH_POST_NORMS = (
    ("post_attention_norm/scale", "post_attention_layernorm.weight", "d -> d"),
    ("pre_feedforward_norm/scale", "pre_feedforward_layernorm.weight", "d -> d"),
    ("post_feedforward_norm/scale", "post_feedforward_layernorm.weight", "d -> d"),
)


def rules(post_norm: bool) -> tuple[Rule, ...]:
    """Names in a safetensors file; `post_norm` says which of two norms has which."""
    layer = _LAYER + (_WITH_POST_NORMS if post_norm else _WITHOUT_POST_NORMS)
    return (
        Rule("embedding/embeddings", "model.embed_tokens.weight", "v d -> v d"),
        Rule("embedding/reverse_embeddings", "lm_head.weight", "v d -> d v"),
        Rule("final_norm/scale", "model.norm.weight", "d -> d"),
        *blocks(layer),
    )


def blocks(rows: Iterable[tuple[str, str, str]]) -> tuple[Rule, ...]:
    """Rules of every layer from rows of ours, theirs and a layout."""
    return tuple(
        Rule(f"block_{{i}}/{o}", f"model.layers.{{i}}.{t}", layout) for o, t, layout in rows
    )


def expert_rules(block: str, *, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Names of a router and its experts, each with tensors of its own, in the part `block`."""
    ours, theirs = "block_{i}/feedforward", f"model.layers.{{i}}.{block}"
    return (
        Rule(f"{ours}/router/kernel", f"{theirs}.gate.weight", "e d -> d e"),
        Rule(f"{ours}/experts/gate", f"{theirs}.experts.{{e}}.{gate}.weight", "e f d -> e d f"),
        Rule(f"{ours}/experts/up", f"{theirs}.experts.{{e}}.{up}.weight", "e f d -> e d f"),
        Rule(f"{ours}/experts/down", f"{theirs}.experts.{{e}}.{down}.weight", "e d f -> e f d"),
    )


def routing(field: Fields) -> dict[str, Any]:
    """Fields of `MoESpec` that configs name alike; `routing_config` is the inverse."""
    field.drop("output_router_logits")  # of an output, and of whether the loss below is added
    return {
        "top_k": field("num_experts_per_tok"),
        "balance_weight": float(field("router_aux_loss_coef", 0.001)),
    }


def routing_config(experts: MoESpec) -> dict[str, Any]:
    """What configs of models with experts name alike."""
    return {
        "num_experts_per_tok": experts.top_k,
        "router_aux_loss_coef": experts.balance_weight,
    }


def experts_of(spec: EncoderSpec) -> MoESpec:
    """Of an encoder; of one without, one expert: it reads as another model, and is refused."""
    return spec.encoder.experts or MoESpec(1, 1, spec.encoder.feedforward_dims[0])


def text_part(
    config: Mapping[str, Any], beside: Sequence[str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of the text model inside one that reads more than text.

    Args:
        config: of the whole, whose output is tied.
        beside: fields that say something of what is no text.
        defaults: what the config inside may leave out.

    Raises:
        ValueError: if there is none, or the whole has a field that says something else.
    """
    with reading(config) as field:
        field.only("tie_word_embeddings", True)
        field.drop(*beside)
        text = field("text_config")
    if not isinstance(text, Mapping):
        raise ValueError(f"Expected the fields of a text model as text_config. Received: {text!r}.")
    return {"tie_word_embeddings": True, **defaults, **text}


def stack(
    field: Fields,
    *,
    zero_centered: bool = False,
    query_key_norm: bool = False,
    local: Callable[[int], bool] = lambda layer: True,
    rotary: Callable[[int, int | None], RotarySpec | None] | None = None,
    attention: Mapping[str, Any] | None = None,
    **own: Any,
) -> StackSpec:
    """The spec behind a config, but for what a family has of its own.

    Args:
        field: of the config.
        zero_centered: of the norms.
        query_key_norm: whether heads are normalised, as every norm of the stack.
        local: which layers have the window, where there is one and no `layer_types`.
        rotary: positions of a layer by its number and window; as the config says if None.
        attention: fields of `AttentionSpec` with the family's values.
        **own: fields of `StackSpec` with the family's values.

    Raises:
        ValueError: if a field has a value that a spec cannot express.
    """
    for name in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        field.only(name, False, None)
    field.only("attention_dropout", 0.0)
    heads, width = field("num_attention_heads"), field("hidden_size")
    head_dim = field("head_dim", None) or width // heads
    norm = NormSpec(field("rms_norm_eps"), zero_centered)
    windows = _windows(field, local)
    if rotary is None:
        positions = read_rotary(field)
        rotary = lambda layer, window: positions  # noqa: E731
    given = {"query_pre_attn_scalar": head_dim, **(attention or {})}
    return StackSpec(
        vocabulary_size=field("vocab_size"),
        width=width,
        feedforward_dim=field("intermediate_size"),
        attention=AttentionSpec(
            num_heads=heads,
            num_kv_heads=field("num_key_value_heads", heads),
            head_dim=head_dim,
            query_key_norm=norm if query_key_norm else None,
            **given,
        ),
        windows=windows,
        rotary=tuple(rotary(i, window) for i, window in enumerate(windows)),
        norm=norm,
        tied_output=field("tie_word_embeddings"),
        **own,
    )


def _windows(field: Fields, local: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Of each layer."""
    window, layers = field("sliding_window", None), range(field("num_hidden_layers"))
    kinds = field("layer_types", None)
    if field("is_causal", True) is False and window is not None:
        window += 1
    if not field("use_sliding_window", True):
        window = None
    if kinds is None:
        return tuple(window if local(i) else None for i in layers)
    known = {"sliding_attention": window, "full_attention": None}
    if unknown := set(kinds) - set(known):
        raise ValueError(f"Expected layer_types of {sorted(known)}. Received: {sorted(unknown)}.")
    return tuple(known[kinds[i]] for i in layers)


def read_rotary(field: Fields) -> RotarySpec:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` of older configs.

    Where a config says nothing, as Llama 2's, the base is that of arXiv 2104.09864.
    """
    base, scaling = field("rope_theta", 10_000.0), field("rope_scaling", None)
    given = field("rope_parameters", None) or {"rope_theta": base, **(scaling or {})}
    return rotary_of(given)


def rotary_of(parameters: Mapping[str, Any]) -> RotarySpec:
    """The positions that `rope_parameters` describe.

    Raises:
        ValueError: if they are of a kind that a spec cannot express.
    """
    given = Fields(parameters)
    kind = given("rope_type", None) or given("type", "default")
    given("type", None)
    if kind not in ("default", "linear", "llama3", "yarn", "proportional", *_BY_LENGTH):
        raise ValueError(
            "Expected rope_type 'default', 'linear', 'llama3', 'yarn', 'proportional' or "
            f"'longrope'. Received: {kind!r}, which keras_encdec has no field for."
        )
    spec: dict[str, Any] = {"base": float(given("rope_theta"))}
    if kind == "proportional":
        fraction = given("partial_rotary_factor", 1.0)
        spec |= {"factor": float(given("factor", 1.0)), "fraction": fraction}
        spec["proportional"] = fraction != 1
    given.only("partial_rotary_factor", 1.0)
    if kind in ("linear", "llama3"):
        spec["factor"] = float(given("factor"))
    if kind in _BY_LENGTH:
        spec |= _by_length(given)
    if kind == "yarn":
        spec |= _yarn(given)
    if kind == "llama3":
        spec["low_frequency_factor"] = given("low_freq_factor")
        spec["high_frequency_factor"] = given("high_freq_factor")
        spec["original_length"] = given("original_max_position_embeddings")
    given.check_empty()
    return RotarySpec(**spec)


_BY_LENGTH = "longrope", "su"  # as it was called at first


def _by_length(given: Fields) -> dict[str, Any]:
    """Of LongRoPE (`_compute_longrope_parameters` in modeling_rope_utils.py)."""
    original, said = given("original_max_position_embeddings"), given("attention_factor", None)
    factor = given("factor", 1.0 if said is not None else None)
    if factor is None:
        raise ValueError(
            "Expected attention_factor or factor beside long_factor. Received: neither, so "
            "that nobody can tell how far texts were extended."
        )
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "short_factors": tuple(given("short_factor")),
        "long_factors": tuple(given("long_factor")),
        "original_length": original,
        "attention_factor": float(usual if said is None else said),
    }


def _yarn(given: Fields) -> dict[str, Any]:
    """Of YaRN (`_compute_yarn_parameters` in modeling_rope_utils.py)."""
    factor, said = float(given("factor")), given("attention_factor", None)
    scales = given("mscale", None), given("mscale_all_dim", None)
    grown = [0.1 * m * math.log(max(factor, 1.0)) + 1 for m in (scales if all(scales) else (1, 0))]
    return {
        "factor": factor,
        "low_frequency_factor": float(given("beta_slow", None) or 1),
        "high_frequency_factor": float(given("beta_fast", None) or 32),
        "original_length": given("original_max_position_embeddings"),
        "attention_factor": grown[0] / grown[1] if said is None else float(said),
        "yarn": True,
        "truncate": given("truncate", True),
    }


def config(spec: EncoderSpec, architecture: str, **own: Any) -> dict[str, Any]:
    """What families share of the `config.json` of an encoder; `stack` reads it.

    Args:
        spec: of the encoder.
        architecture: the class in transformers.
        **own: fields that the family has beside these.
    """
    stack, positions = spec.encoder, first_rotary(spec.encoder)
    attention = stack.attentions[0]
    longest = (positions.original_length or _LENGTH) * positions.factor
    return {
        "architectures": [architecture],
        "is_causal": spec.encoder_attention == "causal",
        "vocab_size": stack.vocabulary_size,
        "hidden_size": stack.width,
        "intermediate_size": stack.feedforward_dims[0],
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "rms_norm_eps": stack.norm.epsilon,
        "rope_parameters": rope_parameters(positions),
        "tie_word_embeddings": stack.tied_output,
        "max_position_embeddings": int(longest),
        # Else a family's own ids, which need not be in the vocabulary; a tokenizer's replace them.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        **own,
    }


_LENGTH = 8192  # a hint to programs that run a model; no number of it depends on it


def local_layers(spec: EncoderSpec) -> dict[str, Any]:
    """The fields of a family whose layers see everything or a window."""
    windows = spec.encoder.windows
    return {
        "sliding_window": local_window(spec) or _LENGTH // 2,  # masks are made, used or not
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
    }


def local_window(spec: EncoderSpec) -> int | None:
    """`sliding_window` of an encoder: the widest that there is, None where there is none.

    0, a query that sees itself alone, is none of theirs (their caches fail).
    """
    sizes = [window_lengths(window)[0] for window in spec.encoder.windows if window is not None]
    widest = max(sizes, default=0) - (spec.encoder_attention != "causal")
    return widest if widest > 0 else None


def scalar(spec: EncoderSpec) -> int:
    """`query_pre_attn_scalar`, which is a whole number there."""
    return int(spec.encoder.attentions[0].query_pre_attn_scalar)


def first_rotary(stack: StackSpec) -> RotarySpec:
    """Of the first layer that knows positions."""
    return next(filter(None, stack.rotaries), RotarySpec())


def rope_parameters(rotary: RotarySpec) -> dict[str, Any]:
    """The inverse of `rotary_of`; of heads whose first part turns, its base alone."""
    if rotary.proportional:
        return {
            "rope_type": "proportional",
            "rope_theta": rotary.base,
            "factor": rotary.factor,
            "partial_rotary_factor": rotary.fraction,
        }
    if rotary.fraction != 1:
        return {"rope_type": "default", "rope_theta": rotary.base}
    if rotary.short_factors is not None and rotary.long_factors is not None:
        return {
            "rope_type": "longrope",
            "rope_theta": rotary.base,
            "short_factor": list(rotary.short_factors),
            "long_factor": list(rotary.long_factors),
            "original_max_position_embeddings": rotary.original_length,
            "attention_factor": rotary.attention_factor,
        }
    if rotary.yarn:
        return {
            "rope_type": "yarn",
            "rope_theta": rotary.base,
            "factor": rotary.factor,
            "beta_slow": rotary.low_frequency_factor,
            "beta_fast": rotary.high_frequency_factor,
            "original_max_position_embeddings": rotary.original_length,
            "attention_factor": rotary.attention_factor,
            "truncate": rotary.truncate,
        }
    if rotary.original_length is not None:
        return {
            "rope_type": "llama3",
            "rope_theta": rotary.base,
            "factor": rotary.factor,
            "low_freq_factor": rotary.low_frequency_factor,
            "high_freq_factor": rotary.high_frequency_factor,
            "original_max_position_embeddings": rotary.original_length,
        }
    if rotary.factor != 1.0:
        return {"rope_type": "linear", "rope_theta": rotary.base, "factor": rotary.factor}
    return {"rope_type": "default", "rope_theta": rotary.base}
