"""A tiny Qwen 2 with a tokenizer of its own, in a folder as transformers has it."""

import json

import tokenizers
from drawn import drawn
from reference_folder import facts_of
from safetensors.numpy import save_file

TEXTS = [
    "Return the sum of array elements over a given axis, or of all of them.",
    "Sort the array in place; the order of equal elements is kept if kind is stable.",
    "Read a table of numbers from a text file, one row for each line of it.",
]
PIECES = 320


def write_qwen(folder):
    """Config, weights and tokenizer; returns the folder."""
    facts = facts_of("qwen2")
    (folder / "config.json").write_text(json.dumps({**facts["config"], "vocab_size": PIECES}))
    shapes = {k: [PIECES if n == 96 else n for n in v] for k, v in facts["tensors"].items()}
    tensors = {key: drawn(key, shape, False) for key, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    """Byte pairs of the texts, with ChatML's special pieces."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": None, "eos_token": {"content": "<|endoftext|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
