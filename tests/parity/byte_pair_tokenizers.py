"""Byte-pair tokenizers of KerasHub's families, of the one small vocabulary of `qwen_folder`."""

import json

import keras_hub
from qwen_folder import write_qwen

# Special pieces that a class asks for, in place of the first, second, ... of the vocabulary.
CLASSES = {
    "QwenTokenizer": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "Qwen3Tokenizer": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "Llama3Tokenizer": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ],
    "SmolLM3Tokenizer": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<think>",
        "</think>",
        "<|im_start|>",
        "<|im_end|>",
    ],
}
SPLIT = ("QwenTokenizer", "SmolLM3Tokenizer")  # special pieces, if they are not told


def pieces_and_merges(folder):
    """Of the tokenizer that `write_qwen` writes to a folder."""
    model = json.loads((write_qwen(folder) / "tokenizer.json").read_text())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)[3:]
    return pieces, [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]


def made(name, byte_pairs, **kwargs):
    """A tokenizer of a class, its special pieces first."""
    pieces, merges = byte_pairs
    vocabulary = {piece: i for i, piece in enumerate([*CLASSES[name], *pieces])}
    tokenizer_class = getattr(keras_hub.tokenizers, name)
    return tokenizer_class(vocabulary=vocabulary, merges=merges, **kwargs)


def whole(name, byte_pairs):
    """The same, which keeps its special pieces whole."""
    kwargs = {"unsplittable_tokens": CLASSES[name]} if name in SPLIT else {}
    return made(name, byte_pairs, **kwargs)
