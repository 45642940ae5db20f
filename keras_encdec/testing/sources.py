"""Tiny decoder-only models of other families, made in place: what guides convert offline.

Their weights are random. Leaves what the families are to KerasHub, whose classes these are.
"""

import json
from collections.abc import Iterable
from typing import Any

import keras_hub
import tokenizers

from keras_encdec import check

# The pieces that KerasHub's tokenizer of a family asks for.
SPECIAL = {
    "Llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ],
    "Qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "Qwen3Moe": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
# What a family's backbone asks for beyond the sizes of all.
_OWN: dict[str, dict[str, int]] = {
    "Llama3": {},
    "Qwen3": {"head_dim": 16},
    "Qwen3Moe": {"head_dim": 16, "num_experts": 8, "top_k": 2, "moe_intermediate_dim": 32},
}


def tiny_source(family: str, texts: Iterable[str], pieces: int = 512) -> Any:
    """A decoder-only task of two layers, with a byte-pair tokenizer that some texts trained.

    Args:
        family: `"Llama3"`, `"Qwen3"` or `"Qwen3Moe"`.
        texts: what the tokenizer is trained on.
        pieces: of the vocabulary at most, at least 262: bytes and special pieces.

    Returns:
        `keras_hub.models.CausalLM`.

    Raises:
        ValueError: if there is no such family, or too few pieces.

    Example:
        >>> lm = keras_encdec.adapt(tiny_source("Qwen3", texts))
    """
    special = SPECIAL[check.one_of("family", family, tuple(SPECIAL))]
    check.whole("pieces", pieces, least=262)
    vocabulary, merges = _byte_pairs(texts, special, pieces)
    tokenizer = getattr(keras_hub.tokenizers, f"{family}Tokenizer")(vocabulary, merges)
    backbone = getattr(keras_hub.models, f"{family}Backbone")(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=64,
        intermediate_dim=128,
        **_OWN[family],
    )
    models = keras_hub.models
    preprocessor = getattr(models, f"{family}CausalLMPreprocessor")(tokenizer)
    return getattr(models, f"{family}CausalLM")(backbone, preprocessor)


def _byte_pairs(
    texts: Iterable[str], special: list[str], pieces: int
) -> tuple[dict[str, int], list[str]]:
    """A vocabulary, special pieces first, and its merges."""

    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=special,
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]
