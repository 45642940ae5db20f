"""The text part of the released T5Gemma 2 pairs, in the layout of transformers.

Merged attention and one embedding for both sides (arXiv 2512.14856, section 2); each side is
Gemma 3's text model otherwise. Source: transformers 5.23 models/t5gemma2.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_encdec.families import gemma3
from keras_encdec.families.dialect import Rule
from keras_encdec.spec import CrossAttentionSpec, PairSpec, StackSpec, Window, sides

# Ours, theirs within a layer, and how the axes move from theirs to ours.
_LAYER = (
    ("pre_attention_norm/scale", "pre_self_attn_layernorm", "d -> d"),
    ("attention/query/kernel", "self_attn.q_proj", "(n h) d -> d n h"),
    ("attention/key/kernel", "self_attn.k_proj", "(k h) d -> d k h"),
    ("attention/value/kernel", "self_attn.v_proj", "(k h) d -> d k h"),
    ("attention/query_norm/scale", "self_attn.q_norm", "h -> h"),
    ("attention/key_norm/scale", "self_attn.k_norm", "h -> h"),
    ("attention/attention_output/kernel", "self_attn.o_proj", "d (n h) -> n h d"),
    ("post_attention_norm/scale", "post_self_attn_layernorm", "d -> d"),
    ("pre_feedforward_norm/scale", "pre_feedforward_layernorm", "d -> d"),
    ("feedforward/gate/kernel", "mlp.gate_proj", "f d -> d f"),
    ("feedforward/up/kernel", "mlp.up_proj", "f d -> d f"),
    ("feedforward/down/kernel", "mlp.down_proj", "d f -> f d"),
    ("post_feedforward_norm/scale", "post_feedforward_layernorm", "d -> d"),
)
_SIDES = {"encoder": "model.encoder", "decoder": "model.decoder"}
TRANSFORMERS = (
    Rule("encoder/embedding/embeddings", "model.encoder.embed_tokens.weight", "v d -> v d"),
    *(Rule(f"{side}/final_norm/scale", f"{prefix}.norm.weight", "d -> d") for side, prefix in _SIDES.items()),
    *(
        Rule(f"{side}/block_{{i}}/{ours}", f"{prefix}.layers.{{i}}.{theirs}.weight", layout)
        for side, prefix in _SIDES.items()
        for ours, theirs, layout in _LAYER
    ),
)  # fmt: skip

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
    size, _ = sides(window or 0)
    return (size + 1) // 2, size // 2 + 1
