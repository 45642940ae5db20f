"""The released T5Gemma 2 pairs, in the layout of transformers.

Merged attention and one embedding for both sides (arXiv 2512.14856, section 2); each side is
Gemma 3's text model otherwise. Source: transformers 5.23 models/t5gemma2. A pair of text alone
that is written there gets the layout's part for images too, of one pixel and zeros, which no text
reaches. Leaves that part of other pairs to `keras_encdec.families.siglip`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from keras_encdec.families import gemma3, siglip, transformers
from keras_encdec.families.dialect import Rule, renamed
from keras_encdec.families.fields import Fields, reading
from keras_encdec.families.t5gemma import SHARED
from keras_encdec.spec import (
    CrossAttentionSpec,
    EncoderSpec,
    PairSpec,
    Shape,
    StackSpec,
    Window,
    window_lengths,
)

_SIDES = {"encoder": "model.encoder.", "decoder": "model.decoder."}
# What they call otherwise than in Gemma 3.
_NORMS = {
    "input_layernorm": "pre_self_attn_layernorm",
    "post_attention_layernorm": "post_self_attn_layernorm",
}


TRANSFORMERS = (
    *(
        dataclasses.replace(rule, ours=f"{side}/{rule.ours}")
        for side, prefix in _SIDES.items()
        for rule in renamed(transformers.rules(post_norm=True), {"model.": prefix, **_NORMS})
    ),
    *siglip.rules(_SIDES["encoder"]),
)

# Ties that were stored as copies.
_DROPPED = (
    "model.decoder.embed_tokens.*",
    "lm_head.out_proj.weight",
)


def dialect_of(pair: PairSpec, names: Iterable[str]) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """The rules for a pair's tensors, and patterns of those that are left out.

    Args:
        pair: what is read.
        names: of the tensors that there are.
    """
    rules = siglip.as_named(TRANSFORMERS, names)
    return rules, (*_DROPPED, *siglip.dropped(_SIDES["encoder"], pair.vision))


# What is said of classification, and of both sides at once.
_BESIDE = ("classifier_dropout_rate", "dropout_rate", "vocab_size")


def from_transformers(config: Mapping[str, Any]) -> PairSpec:
    """The pair behind a `config.json` of model type `t5gemma2`.

    Raises:
        ValueError: if a field asks for what a spec cannot express, or nobody knows it.
    """
    with reading(config) as field:
        dropout = field("dropout_rate", 0.0)  # which transformers gives to both sides
        field.only("is_encoder_decoder", True)
        field.drop("eoi_token_index")  # the encoder's is meant
        image = field("image_token_index", siglip.IMAGE_TOKEN)
        encoder, decoder = _taken(field, "encoder", "decoder")
        with reading(encoder) as inner:
            (text,) = _taken(inner, "text_config")
            vision = siglip.from_transformers(inner, image, text["vocab_size"])
        encoder, decoder = _stack(text, dropout), _stack(decoder, dropout)
    windows = tuple(None if window is None else _halves(window) for window in encoder.windows)
    return PairSpec(
        dataclasses.replace(encoder, windows=windows),
        decoder,
        cross_attention=CrossAttentionSpec(merged=True),
        tied_embeddings=True,
        vision=vision,
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
    return plain(((size + 1) // 2, size // 2 + 1))


def plain(window: Window) -> Window:
    """A window of as many tokens on either side, as their number."""
    before, after = window_lengths(window or 0)
    return before if before == after else window


def to_transformers(pair: PairSpec, dtype: str) -> dict[str, Any]:
    """The `config.json` of a pair, as near as the layout comes to it.

    Args:
        pair: what to describe; `keras_encdec.families.pairs` says what is lost of it.
        dtype: name of the dtype that the tensors are written in.
    """
    words = pair.decoder.vocabulary_size
    images = siglip.to_transformers(pair.vision, never=words)
    shared = {**SHARED, "attention_dropout": 0.0, "initializer_range": 0.02, "dtype": dtype}
    text = {**_module(pair.encoder), **shared, "model_type": "t5gemma2_text"}
    windows = [window_lengths(window) for window in pair.encoder.windows if window is not None]
    text["sliding_window"] = sum(windows[0]) - 1 if windows else text["sliding_window"]
    return {
        "architectures": ["T5Gemma2ForConditionalGeneration"],
        "model_type": "t5gemma2",
        "is_encoder_decoder": True,
        "encoder": {
            **shared,
            **images,
            "model_type": "t5gemma2_encoder",
            "text_config": text,
        },
        "decoder": {**_module(pair.decoder), **shared, "model_type": "t5gemma2_decoder"},
        "vocab_size": words,
        "dropout_rate": pair.decoder.dropout,
        "eoi_token_index": images["eoi_token_index"],
        "image_token_index": images["image_token_index"],
        **shared,
    }


def _module(stack: StackSpec) -> dict[str, Any]:
    config = gemma3.to_transformers(EncoderSpec(stack, "causal"))
    of_an_encoder = "architectures", "is_causal"
    return {name: value for name, value in config.items() if name not in of_an_encoder}


def blank(pair: PairSpec) -> dict[str, Shape]:
    """The tensors of the part for images that a pair lacks, by the config written for it."""
    return {} if pair.vision else siglip.blank(_SIDES["encoder"], pair.encoder.width)
