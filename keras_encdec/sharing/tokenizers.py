"""The tokenizer in a folder of transformers."""

import contextlib
from typing import Any

import keras_hub

from keras_encdec.files import read_json, readable
from keras_encdec.models.json_tokenizer import JsonTokenizer
from keras_encdec.sharing.fetch import file_of


def tokenizer_of_files(preset: str) -> Any:
    """What a folder or handle tokenises by, or None.

    Gemma's SentencePiece model where there is one, as KerasHub's own tokenizer reads it;
    else tokenizer.json, which is exact for every family; else Llama's SentencePiece model.
    """
    model, json = (_file(preset, name) for name in ("tokenizer.model", "tokenizer.json"))
    with readable("tokenizer", preset):
        if model is not None and (found := _sentencepiece("GemmaTokenizer", model)):
            return found
        if json is not None:
            return JsonTokenizer(json, **_special_tokens(preset))
        return _sentencepiece("LlamaTokenizer", model) if model is not None else None


def _sentencepiece(class_name: str, model: str) -> Any:
    """The tokenizer, or None if the model lacks the special tokens of the class."""
    with contextlib.suppress(ValueError):
        return getattr(keras_hub.tokenizers, class_name)(model)
    return None


def _special_tokens(preset: str) -> dict[str, str | None]:
    path = _file(preset, "tokenizer_config.json")
    config = read_json(path) if path else {}
    special = {"start": "bos", "end": "eos", "pad": "pad"}
    found = {ours: config.get(f"{theirs}_token") for ours, theirs in special.items()}
    tokens = {k: v["content"] if isinstance(v, dict) else v for k, v in found.items()}
    if tokens["end"] is None:
        raise ValueError(
            f"Expected an eos_token in tokenizer_config.json of {preset!r}. Received: none. "
            "Download the file again, or pass preprocessor=None to work on tokens."
        )
    return {f"{name}_token": token for name, token in tokens.items()}


def _file(preset: str, name: str) -> str | None:
    try:
        return file_of(preset, name)
    except FileNotFoundError:
        return None
