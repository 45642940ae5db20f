"""Granite 3: Llama with four multipliers (github.com/ibm-granite/granite-3.0-language-models)."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, StackSpec

# Spec and config call them the same.
_MULTIPLIERS = "embedding_multiplier", "residual_multiplier", "logits_scaling"


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `granite`."""
    with reading(config) as field:
        field.only("hidden_act", "silu")
        field.drop("attention_dropout")  # of its training: 0.1 in 3.0, and no number depends on it
        scale = field("attention_multiplier", 1.0)
        multipliers: dict[str, Any] = {name: float(field(name, 1.0)) for name in _MULTIPLIERS}
        return transformers.stack(
            field,
            attention={"query_pre_attn_scalar": scale**-2},
            **multipliers,
            **LLAMA,
        )


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `granite`."""
    return transformers.config(
        spec,
        "GraniteModel",
        hidden_act="silu",
        attention_multiplier=_query_scale(spec.encoder),
        **{name: getattr(spec.encoder, name) for name in _MULTIPLIERS},
    )


def _query_scale(stack: StackSpec) -> float:
    """The number whose inverse square is what a spec keeps; of few digits, as configs have it."""
    attention = stack.attentions[0]
    scales = attention.query_scale, float(f"{attention.query_scale:.15g}")
    exact = (scale for scale in scales if scale**-2 == attention.query_pre_attn_scalar)
    return next(exact, scales[0])


FAMILIES = (
    Family(
        (),  # KerasHub 0.32 has none
        ("granite",),
        (),
        transformers.rules(post_norm=False),
        None,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
