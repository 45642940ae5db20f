"""Writes an encoder, alone or with a task, as transformers and sentence-transformers load it.

Knows the files of such folders, and which parts of a task a layout has a place for. Leaves
configs and names of tensors to `keras_encdec.families.encoders`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import save_file

from keras_encdec import check, hosts
from keras_encdec.conversion.effective import effective_weights
from keras_encdec.conversion.execute import export
from keras_encdec.families import dialect, encoders
from keras_encdec.families.layout import Layout
from keras_encdec.files import atomic_folder, final_of, write_json
from keras_encdec.integrity import check_finite
from keras_encdec.models import (
    EncDecTextClassifier,
    EncDecTextEmbedder,
    JsonTokenizer,
)
from keras_encdec.sharing.card import write_card
from keras_encdec.sharing.export import Shards, bytes_of
from keras_encdec.sharing.tokenizers import check_writable, write_tokenizer

_POOLINGS = {"mean": "mean", "last": "lasttoken", "first": "cls"}
_MODULES = "sentence_transformers.models"  # names that every version of it knows


@hosts.by_first
def export_encoder(model: Any, path: str | os.PathLike, max_shard_size: float = 5.0) -> None:
    """Writes an encoder as transformers loads it, whole or not at all.

    A bidirectional encoder of Gemma 2's kind becomes a T5Gemma with `is_encoder_decoder=False`
    (`T5GemmaEncoderModel`); any other the model of a decoder-only family with `is_causal` in its
    config (`AutoModel`, from transformers 5.2 on). Hidden states are ours, past every window. Of a
    pair of texts a classifier reads one there: both, with the preprocessor's separator between.
    Weights are in the model's dtype, also where they were read from MXFP4.

    Args:
        model: `EncoderBackbone`; `EncDecTextClassifier`, with its head; or `EncDecTextEmbedder`
            without a projection, whose pooling and prompts transformers has no place for.
        path: the folder; new, empty, or a preset to replace.
        max_shard_size: of one file, in GiB; one tensor is never cut.

    Raises:
        ValueError: naming the field that the layout cannot hold.
        OSError: if there is no room or no right to write there.
    """
    if isinstance(model, EncDecTextEmbedder) and model.projection:
        raise ValueError(
            "Expected no projection, which the layouts of transformers cannot hold. Received: "
            f"projection={model.projection}. export_to_sentence_transformers writes it."
        )
    _write(model, path, max_shard_size)


@hosts.by_first
def export_to_sentence_transformers(
    embedder: EncDecTextEmbedder, path: str | os.PathLike, max_shard_size: float = 5.0
) -> None:
    """Writes an embedder as sentence-transformers loads it, whole or not at all.

    `SentenceTransformer(path).encode(texts, prompt_name="query")` is then
    `embedder.encode_text(texts, prompt="query")`.

    Args:
        embedder: with its preprocessor.
        path: the folder; new, empty, or a preset to replace.
        max_shard_size: of one file of the encoder, in GiB.

    Raises:
        ValueError: if there is no preprocessor, or as `export_encoder`.
        OSError: if there is no room or no right to write there.
    """
    if embedder.preprocessor is None:
        raise ValueError(
            "Expected a preprocessor, whose tokenizer and prompts sentence-transformers asks for. "
            "Received: none. export_to_transformers writes an encoder alone."
        )
    size, largest = _bytes_of(embedder, max_shard_size)
    with atomic_folder(path, size, largest=largest) as folder:
        _write(embedder, folder, max_shard_size)
        modules = list(_modules(embedder, folder))
        every = [
            {"idx": i, "name": str(i), "path": part, "type": f"{_MODULES}.{kind}"}
            for i, (kind, part) in enumerate(modules)
        ]
        write_json(folder / "modules.json", every)
        length = {"max_seq_length": embedder.preprocessor.sequence_length}
        write_json(folder / "sentence_bert_config.json", {**length, "do_lower_case": False})
        about = {"prompts": embedder.preprocessor.prompts, "default_prompt_name": None}
        similarity = {"similarity_fn_name": "cosine"}
        write_json(folder / "config_sentence_transformers.json", {**about, **similarity})
        write_card(folder, final_of(path))


def _modules(embedder: EncDecTextEmbedder, folder: Path) -> Iterator[tuple[str, str]]:
    """Writes what follows the encoder; the class and the folder of each module."""
    width = embedder.backbone.spec.encoder.width
    yield "Transformer", ""
    mode = _POOLINGS[embedder.pooling]
    # Written as before version 5.7 too, which has a flag for each mode.
    flags = {"mean": "mean_tokens", "lasttoken": "lasttoken", "cls": "cls_token"}
    pooling = {f"pooling_mode_{flag}": name == mode for name, flag in flags.items()}
    yield "Pooling", _module(folder, "1_Pooling", {"word_embedding_dimension": width, **pooling})
    weights = effective_weights(embedder)
    for number, layer in enumerate(embedder.dense):
        kernel = check_finite(layer.name, weights[f"{layer.name}/kernel"], "the model to export")
        sizes = {"in_features": kernel.shape[0], "out_features": kernel.shape[1]}
        linear = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
        part = _module(folder, f"{2 + number}_Dense", {**sizes, **linear})
        tensors = {"linear.weight": np.ascontiguousarray(kernel.T)}
        save_file(tensors, folder / part / "model.safetensors", metadata={"format": "pt"})
        yield "Dense", part
    if embedder.normalize:
        yield "Normalize", f"{2 + len(embedder.dense)}_Normalize"


def _module(folder: Path, part: str, config: dict[str, Any]) -> str:
    (folder / part).mkdir()
    write_json(folder / part / "config.json", config)
    return part


def _write(model: Any, path: str | os.PathLike, max_shard_size: float) -> None:
    """Config, tensors and tokenizer of the encoder, and a classifier's head."""
    size, largest = _bytes_of(model, max_shard_size)
    backbone = getattr(model, "backbone", model)
    preprocessor = getattr(model, "preprocessor", None)
    layout = encoders.layout_of(backbone.spec, backbone.variable_dtype)
    config = layout.config
    if isinstance(model, EncDecTextClassifier):
        config = config | _head_config(model, layout)
    if preprocessor is not None:
        check_writable(preprocessor.tokenizer)
        config = _with_ids(config, preprocessor.tokenizer)
    with atomic_folder(path, size, largest=largest) as folder:
        write_json(folder / "config.json", config)
        shards = Shards(folder, max_shard_size)
        export(backbone, layout.rules, shards.add)
        for name, array in _head(model):
            shards.add(f"{encoders.HEAD}.{name}", array)
        shards.close()
        if preprocessor is not None:
            write_tokenizer(folder, preprocessor.tokenizer, **_reads(preprocessor))
        backbone.record.write(folder, *backbone.merged_in_files(), {"what": "exported"})
        write_card(folder, final_of(path))


def _bytes_of(model: Any, max_shard_size: float) -> tuple[int, int]:
    """Of the files of an encoder with its task, as of `bytes_of`."""
    check.real("max_shard_size", max_shard_size, above=0)
    backbone = getattr(model, "backbone", model)
    layout = encoders.layout_of(backbone.spec, backbone.variable_dtype)
    bound = dialect.bind(layout.rules, backbone.spec.weights())
    others = {w.path: tuple(w.shape) for w in model.weights if w.path not in bound}
    theirs = {name: tensor.shape for tensor in bound.values() for name in tensor.names}
    return bytes_of(others | theirs, backbone.variable_dtype, max_shard_size)


def _reads(preprocessor: Any) -> dict[str, Any]:
    """What a preprocessor does with a text, as `write_tokenizer` takes it."""
    # SentencePiece itself makes no special token of text, allowed or not.
    spelled = preprocessor.allow_special and isinstance(preprocessor.tokenizer, JsonTokenizer)
    return {
        "start": preprocessor.add_start_token,
        "end": preprocessor.add_end_token,
        "split_special_tokens": not spelled,
        "plain": preprocessor.reader.plain_tokens,
        "model_max_length": preprocessor.sequence_length,
        "padding_side": "right",
        "truncation_side": "right",
    }


def _with_ids(config: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A config that knows the special ids of a tokenizer."""
    ids = {
        "pad_token_id": tokenizer.pad_token_id or 0,
        "bos_token_id": getattr(tokenizer, "start_token_id", None),
        "eos_token_id": tokenizer.end_token_id,
    }
    inner = {"encoder": {**config["encoder"], **ids}} if "encoder" in config else {}
    return {**config, **ids, **inner}


def _head_config(classifier: EncDecTextClassifier, layout: Layout) -> dict[str, Any]:
    """What T5GemmaForSequenceClassification knows of a head.

    Raises:
        ValueError: naming what it cannot hold.
    """
    model_type, reads = layout.config["model_type"], classifier.preprocessor
    pads = reads is not None and reads.tokenizer.end_token_id == (reads.tokenizer.pad_token_id or 0)
    held = (
        ("pooling", classifier.pooling, "last"),
        ("num_choices", classifier.num_choices, None),
        ("add_end_token", pads and reads.add_end_token, False),  # where it pads, too, it is cut off
        ("activation", keras.activations.serialize(classifier.activation), "linear"),
        ("model_type", model_type, encoders.T5GEMMA),  # heads of the others have no bias
    )
    for name, value, only in held:
        if value != only:
            raise ValueError(
                f"Expected {name}={only!r}, all that a classifier of transformers holds. Received: "
                f"{value!r}. save_to_preset keeps any classifier."
            )
    names = classifier.label_names or classifier.num_classes
    return encoders.head_to_transformers(names, classifier.dropout_rate)


def _head(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a classifier's head; none of other models."""
    if isinstance(model, EncDecTextClassifier):
        weights = effective_weights(model)
        kernel, bias = (
            check_finite(name, weights[name], "the model to export")
            for name in ("head/kernel", "head/bias")
        )
        yield "weight", np.ascontiguousarray(kernel.T)
        yield "bias", bias
