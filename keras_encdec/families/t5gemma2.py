"""The text part of the released T5Gemma 2 pairs, in the layout of transformers.

Merged attention and one embedding for both sides (arXiv 2512.14856, section 2); each side is
Gemma 3's text model otherwise. Source: transformers 5.23 models/t5gemma2.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_encdec.families import gemma3, transformers
from keras_encdec.families.dialect import Rule
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


def from_transformers(config: Mapping[str, Any]) -> PairSpec:
    """The pair behind a `config.json` of model type `t5gemma2`.

    Raises:
        ValueError: if a field asks for what a spec cannot express.
    """
    if not config.get("tie_word_embeddings", True):
        raise ValueError("Expected tie_word_embeddings=true. Received: false.")
    encoder, decoder = _stack(config["encoder"]["text_config"]), _stack(config["decoder"])
    windows = tuple(None if window is None else _halves(window) for window in encoder.windows)
    return PairSpec(
        dataclasses.replace(encoder, windows=windows),
        decoder,
        cross_attention=CrossAttentionSpec(merged=True),
        tied_embeddings=True,
    )


def _stack(config: Mapping[str, Any]) -> StackSpec:
    stack = gemma3.from_transformers({k: v for k, v in config.items() if k != "dropout_rate"})
    return dataclasses.replace(stack, dropout=config.get("dropout_rate", 0.0))


def _halves(window: Window) -> Window:
    """Of an encoder's window a query sees half on each side.

    Source: `sliding_window_mask_function` in modeling_t5gemma2.py.
    """
    size, _ = window_lengths(window or 0)
    return (size + 1) // 2, size // 2 + 1
