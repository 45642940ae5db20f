"""The tokenizer in a folder of transformers, and its chat template: read, and written.

What a tokenizer adds and how it cuts are fields of tokenizer_config.json, as what a `Reader` does
is the preprocessor's.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras_hub
import tokenizers

from keras_encdec import check
from keras_encdec.files import read_json, readable, write_json
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


def chat_template_of_files(preset: str) -> str | None:
    """How a folder or handle frames turns, in Jinja; None where it does not say.

    In a file of its own or in tokenizer_config.json, as transformers looks for it, else in the
    chat_template.json of a processor.

    Raises:
        ValueError: if there are several templates and none of them is the default.
    """
    if path := _file(preset, "chat_template.jinja"):
        with readable("chat template", preset):
            return Path(path).read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = _file(preset, name)
        found = read_json(path).get("chat_template") if path else None
        if isinstance(found, list):
            found = _default_template(found, preset)
        if found is not None:
            return check.text(f"chat_template of {name}", found)
    return None


def _default_template(named: Sequence[Any], preset: str) -> Any:
    with readable("chat template", preset):
        templates = {template["name"]: template["template"] for template in named}
    if "default" not in templates:
        raise ValueError(
            f"Expected a chat template named default in {preset!r}. Received: "
            f"{sorted(templates)}. Name one of them so, or pass a preprocessor."
        )
    return templates["default"]


def write_tokenizer(
    folder: Path,
    tokenizer: Any,
    start: bool = False,
    end: bool = False,
    plain: Sequence[str] = (),
    **config: Any,
) -> None:
    """Writes the files that transformers makes the same ids of.

    Args:
        folder: of the model.
        tokenizer: KerasHub's of Gemma, or a `JsonTokenizer`.
        start: whether texts get its start token there.
        end: whether they get its end token.
        plain: tokens that are plain text where a text spells them, with `split_special_tokens`.
        **config: other fields of tokenizer_config.json.

    Raises:
        ValueError: if it is another tokenizer, of which KerasHub keeps no such file.
    """
    check_writable(tokenizer)
    if isinstance(tokenizer, JsonTokenizer):
        _write_json_tokenizer(folder, tokenizer, start, end)
        pad = tokenizer.pad_token or tokenizer.id_to_token(0)
        special = {"bos": tokenizer.start_token, "eos": tokenizer.end_token, "pad": pad}
        kind = "PreTrainedTokenizerFast"
    else:
        (folder / "tokenizer.model").write_bytes(tokenizer.proto)
        special = {name: f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
        kind = "GemmaTokenizer"
    tokens = {f"{name}_token": token for name, token in special.items() if token is not None}
    added = {"add_bos_token": start, "add_eos_token": end}
    said = {"tokenizer_class": kind, **added, **tokens, **config}
    if plain:  # for transformers they are special, and the others of the file stay what they are
        flags = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
        said["added_tokens_decoder"] = {
            str(int(tokenizer.token_to_id(token))): {"content": token, "special": True, **flags}
            for token in plain
        }
    write_json(folder / "tokenizer_config.json", said)


def _write_json_tokenizer(folder: Path, tokenizer: JsonTokenizer, start: bool, end: bool) -> None:
    """Its tokenizer.json, which adds what it is to add: classes of transformers hold to that."""
    tokenizer.save_assets(folder)
    file = str(folder / "tokenizer.json")
    written = tokenizers.Tokenizer.from_file(file)
    first = [str(tokenizer.start_token)] if start else []
    last = [str(tokenizer.end_token)] if end else []
    ids = [(token, tokenizer.token_to_id(token)) for token in {*first, *last}]
    template = tokenizers.processors.TemplateProcessing
    written.post_processor = template(single=[*first, "$A", *last], special_tokens=ids)
    written.save(file)


def check_writable(tokenizer: Any) -> None:
    """Raises ValueError as `write_tokenizer`."""
    if not isinstance(tokenizer, (JsonTokenizer, keras_hub.tokenizers.GemmaTokenizer)):
        raise ValueError(
            "Expected a GemmaTokenizer or a JsonTokenizer, whose files transformers reads. "
            f"Received: {type(tokenizer).__name__}. Load the model's folder of transformers "
            "instead, such as hf://owner/model, or export it with preprocessor=None."
        )


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
