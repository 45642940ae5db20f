"""The text part of the released T5Gemma 2 pairs, in the layout of transformers.

Merged attention and one embedding for both sides (arXiv 2512.14856, section 2); each side is
Gemma 3's text model otherwise. Source: transformers 5.23 models/t5gemma2.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_encdec.families import gemma3, transformers
from keras_encdec.families.dialect import Rule
from keras_encdec.families.fields import Fields, reading
from keras_encdec.spec import CrossAttentionSpec, PairSpec, StackSpec, Window, window_lengths

_SIDES = {"encoder": "model.encoder.", "decoder": "model.decoder."}
# What they call otherwise than in Gemma 3.
_NORMS = {
    "input_layernorm": "pre_self_attn_layernorm",
    "post_attention_layernorm": "post_self_attn_layernorm",
}


def _renamed(name: str, prefix: str) -> str:
    name = name.replace("model.", prefix, 1)
    for theirs, here in _NORMS.items():
        name = name.replace(theirs, here)
    return name


TRANSFORMERS = tuple(
    Rule(f"{side}/{rule.ours}", _renamed(rule.theirs, prefix), rule.layout)
    for side, prefix in _SIDES.items()
    for rule in transformers.rules(post_norm=True)
)

# Images, with the one token that ends them; and ties that were stored as copies.
TRANSFORMERS_DROPPED = (
    "model.encoder.vision_tower.*",
    "model.encoder.multi_modal_projector.*",
    "*.embed_tokens.eoi_embedding",
    "model.decoder.embed_tokens.weight",
    "lm_head.out_proj.weight",
)


# What is said of images, of classification, and of both sides at once.
_BESIDE = (
    *("boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image"),
    *("vision_config", "classifier_dropout_rate", "dropout_rate", "vocab_size"),
)


def from_transformers(config: Mapping[str, Any]) -> PairSpec:
    """The pair behind a `config.json` of model type `t5gemma2`.

    Raises:
        ValueError: if a field asks for what a spec cannot express, or nobody knows it.
    """
    with reading(config) as field:
        dropout = field("dropout_rate", 0.0)  # which transformers gives to both sides
        field.only("is_encoder_decoder", True)
        encoder, decoder = _taken(field, "encoder", "decoder")
        with reading(encoder) as inner:
            (text,) = _taken(inner, "text_config")
        encoder, decoder = _stack(text, dropout), _stack(decoder, dropout)
    windows = tuple(None if window is None else _halves(window) for window in encoder.windows)
    return PairSpec(
        dataclasses.replace(encoder, windows=windows),
        decoder,
        cross_attention=CrossAttentionSpec(merged=True),
        tied_embeddings=True,
    )


def _taken(field: Fields, *names: str) -> list[Any]:
    """The configs inside a config."""
    field.only("tie_word_embeddings", True)
    field.only("attention_dropout", 0.0)
    field.drop(*_BESIDE)
    return [field(name) for name in names]


def _stack(config: Mapping[str, Any], dropout: float) -> StackSpec:
    own = {name: value for name, value in config.items() if name != "dropout_rate"}
    stack = gemma3.from_transformers({"tie_word_embeddings": True, **own})
    return dataclasses.replace(stack, dropout=dropout)


def _halves(window: Window) -> Window:
    """Of an encoder's window a query sees half on each side.

    Source: `sliding_window_mask_function` in modeling_t5gemma2.py.
    """
    size, _ = window_lengths(window or 0)
    return (size + 1) // 2, size // 2 + 1
