"""Gemma and Gemma 2 as KerasHub has them (keras_hub/src/models/gemma, 0.32)."""

from typing import Any

from keras_encdec.families.dialect import Rule
from keras_encdec.spec import AttentionSpec, StackSpec

KERAS_HUB_CLASS = "GemmaBackbone"

KERAS_HUB = (
    Rule("embedding/embeddings", "token_embedding/embeddings", "v d -> v d"),
    Rule("final_norm/scale", "final_normalization/scale", "d -> d"),
    *(
        Rule(f"block_{{i}}/{ours}", f"decoder_block_{{i}}/{theirs}", layout)
        for ours, theirs, layout in (
            ("pre_attention_norm/scale", "pre_attention_norm/scale", "d -> d"),
            ("attention/query/kernel", "attention/query/kernel", "n d h -> d n h"),
            ("attention/key/kernel", "attention/key/kernel", "k d h -> d k h"),
            ("attention/value/kernel", "attention/value/kernel", "k d h -> d k h"),
            (
                "attention/attention_output/kernel",
                "attention/attention_output/kernel",
                "n h d -> n h d",
            ),
            ("post_attention_norm/scale", "post_attention_norm/scale", "d -> d"),
            ("pre_feedforward_norm/scale", "pre_ffw_norm/scale", "d -> d"),
            ("feedforward/gate/kernel", "ffw_gating/kernel", "d f -> d f"),
            ("feedforward/up/kernel", "ffw_gating_2/kernel", "d f -> d f"),
            ("feedforward/down/kernel", "ffw_linear/kernel", "f d -> f d"),
            ("post_feedforward_norm/scale", "post_ffw_norm/scale", "d -> d"),
        )
    ),
)


def from_keras_hub(config: dict[str, Any]) -> StackSpec:
    """The spec behind a `GemmaBackbone` config.

    Query scale and epsilon are what the config says. KerasHub 0.32 itself gives
    neither to its blocks (gemma_backbone.py, gemma_decoder_block.py): they scale by
    the head width, which is wrong for Gemma 2 27B, and normalise with 1e-6.
    """
    heads, head_dim = config["num_query_heads"], config["head_dim"]
    by_head = config["query_head_dim_normalize"]
    window = config["sliding_window_size"] if config["use_sliding_window_attention"] else None
    _same("use_post_ffw_norm", config["use_post_ffw_norm"], config["use_post_attention_norm"])
    return StackSpec(
        vocabulary_size=config["vocabulary_size"],
        width=config["hidden_dim"],
        feedforward_dim=config["intermediate_dim"] // 2,
        attention=AttentionSpec(
            num_heads=heads,
            num_kv_heads=config["num_key_value_heads"],
            head_dim=head_dim,
            query_pre_attn_scalar=head_dim if by_head else config["hidden_dim"] // heads,
            logit_soft_cap=config["attention_logit_soft_cap"],
        ),
        windows=tuple(None if i % 2 else window for i in range(config["num_layers"])),
        post_norm=config["use_post_attention_norm"],
        norm_epsilon=config["layer_norm_epsilon"],
        final_logit_soft_cap=config["final_logit_soft_cap"],
        dropout=config["dropout"],
    )


def _same(field: str, received: Any, expected: Any) -> None:
    if received != expected:
        raise ValueError(f"Expected {field}={expected}, as for attention. Received: {received}.")
