"""From a name or a model to an encoder alone.

Knows where there is one: in a pair, in a preset of an encoder, in a decoder-only model. Leaves
finding and reading to `keras_encdec.sharing.load` and `keras_encdec.sharing.decoder_only`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np

from keras_encdec.accelerators import check_seen
from keras_encdec.conversion.execute import convert_encoder, copy_encoder, load
from keras_encdec.conversion.sources import SafetensorsSource
from keras_encdec.families import encoders
from keras_encdec.files import read_json, readable
from keras_encdec.integrity import check_finite
from keras_encdec.models.base import StacksBackbone
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.sharing import catalog
from keras_encdec.sharing.configs import ENCODER, PAIR, RELEASED
from keras_encdec.sharing.decoder_only import DecoderOnly, backbone_of, config_of, find
from keras_encdec.sharing.fetch import file_of, folder_of
from keras_encdec.sharing.load import check_files, from_preset, read_record, tokenizer_alone
from keras_encdec.sharing.tokenizers import tokenizer_of_files
from keras_encdec.spec import EncoderAttention, EncoderSpec


class Head(NamedTuple):
    """Of a classifier: its arguments, kernel (D, C) and bias (C,)."""

    options: dict[str, Any]
    kernel: np.ndarray
    bias: np.ndarray


class Found(NamedTuple):
    """An encoder, what its text is tokenised by, and (D, V) its source wrote by; or None."""

    backbone: EncoderBackbone
    tokenizer: Any
    output: Any = None
    head: Head | None = None  # of a classifier in a layout of transformers


def find_encoder(
    preset: Any,
    encoder_attention: EncoderAttention | None = None,
    dtype: Any = None,
    with_output: bool = False,
) -> Found:
    """The encoder of whatever has one.

    Args:
        preset: a preset, folder or handle of ours, of a pair or of an encoder; a released
            T5Gemma; an encoder in a layout of transformers, as `export_to_transformers` writes it;
            such a model in memory, of which it is a copy; a recipe of
            `keras_encdec.presets`, whose encoder is its first source made bidirectional; or a
            decoder-only model, all that `keras_encdec.adapt` takes.
        encoder_attention: how a decoder-only model is to read: `"bidirectional"` by default, or
            `"causal"` as it was trained.
        dtype: dtype or policy; if None, Keras' default, or that of a model of ours.
        with_output: whether the output matrix of a decoder-only model is wanted, where it has
            one of its own.

    Raises:
        ValueError: if there is no such model, or `encoder_attention` is given for an encoder that
            was trained to attend as it does.
    """
    check_seen()
    options = encoder_attention, dtype, with_output
    if isinstance(preset, (str, Path)):
        return _by_name(str(preset), *options)
    model = backbone_of(preset)
    if not isinstance(model, StacksBackbone):
        return _of_decoder_only(find(preset), *options)
    _refuse_attention(encoder_attention, f"a {type(preset).__name__}")
    return _copied(model, getattr(preset, "preprocessor", None), dtype)


def is_task(preset: Any, kind: type) -> bool:
    """Whether a preset is of a task of this class, with its head.

    Raises:
        ValueError: if the files of such a preset are not whole.
    """
    if not isinstance(preset, (str, Path)) or preset in catalog.presets:
        return False
    catalog.check_known(str(preset))
    where = catalog.on_this_machine(str(preset))
    try:
        said = read_json(file_of(where, "task.json")).get("registered_name")
    except FileNotFoundError:
        return False
    if said != f"keras_encdec>{kind.__name__}":
        return False
    check_files(folder_of(where))
    return True


def _by_name(name: str, attention: EncoderAttention | None, dtype: Any, with_output: bool) -> Found:
    if name in catalog.presets:
        return _of_recipe(name, attention, dtype, with_output)
    catalog.check_known(name)
    preset = catalog.on_this_machine(name)
    config = config_of(preset)
    if spec := encoders.from_transformers(config):
        _refuse_attention(attention, repr(name))
        return _of_transformers(folder_of(preset), config, spec, dtype, name)
    kind = config.get("registered_name")
    if kind != ENCODER and kind != PAIR and config.get("model_type") not in RELEASED:
        return _of_decoder_only(find(name), attention, dtype, with_output)
    _refuse_attention(attention, repr(name))
    if kind == ENCODER:
        return _of_preset(folder_of(preset), dtype)
    lm = from_preset(name, dtype=dtype)
    return _copied(lm.backbone, lm.preprocessor, dtype)


def _of_preset(folder: str, dtype: Any) -> Found:
    """Of an encoder of ours, alone or with a task."""
    check_files(folder)
    task = Path(folder) / "task.json"
    with readable("preset", folder):
        if not task.exists():
            return Found(keras_hub.models.Backbone.from_preset(folder, dtype=dtype), None)
        kind: Any = keras.saving.get_registered_object(read_json(task)["registered_name"])
        found = kind.from_preset(folder, dtype=dtype)
    return Found(found.backbone, getattr(found.preprocessor, "tokenizer", None))


def _of_transformers(
    folder: str, config: dict[str, Any], spec: EncoderSpec, dtype: Any, name: str
) -> Found:
    """Of an encoder in a layout of transformers."""
    source = SafetensorsSource(lambda file: file_of(folder, file), folder)
    backbone = load(spec, source, encoders.rules_of(config), encoders.DROPPED, dtype)
    read_record(backbone, folder, name, "encoder")
    options = encoders.head_from_transformers(config)
    head = None if options is None else _head(options, source, spec)
    return Found(backbone, tokenizer_of_files(folder), head=head)


def _head(options: dict[str, Any], source: SafetensorsSource, spec: EncoderSpec) -> Head:
    """The head whose config says these options."""
    count = len(options.get("label_names", ())) or options["num_classes"]
    expected = {"weight": (count, spec.encoder.width), "bias": (count,)}
    arrays = []
    for part, shape in expected.items():
        name = f"{encoders.HEAD}.{part}"
        found, _ = source.tensors().get(name, (None, None))
        if found != shape:
            raise ValueError(
                f"Expected {name} of shape {shape}, as config.json says. Received: "
                f"{found or 'no such tensor'}."
            )
        arrays.append(check_finite(name, source.read(name), "the weights to load"))
    kernel, bias = arrays
    return Head(options, kernel.T, bias)


def _of_recipe(
    name: str, attention: EncoderAttention | None, dtype: Any, with_output: bool
) -> Found:
    """The first source of a recipe, or random weights where it has none."""
    recipe = catalog.presets[name]
    if recipe.encoder is not None:
        return _of_decoder_only(find(recipe.encoder), attention, dtype, with_output)
    spec = EncoderSpec(recipe.spec.encoder, attention or "bidirectional")
    return Found(EncoderBackbone.of(spec, dtype=dtype), tokenizer_alone(recipe.tokenizer))


def _of_decoder_only(
    model: DecoderOnly, attention: EncoderAttention | None, dtype: Any, with_output: bool
) -> Found:
    spec = EncoderSpec(model.spec, attention or "bidirectional")
    backbone, output = convert_encoder(spec, model.source(dtype), dtype, with_output)
    backbone.record.sources = {"encoder": model.about()}
    backbone.record.add("made an encoder", attention=spec.encoder_attention)
    return Found(backbone, model.tokenizer(), output)


def _copied(model: StacksBackbone, preprocessor: Any, dtype: Any) -> Found:
    """The encoder of a model of ours, which stays as it is."""
    backbone = copy_encoder(model, dtype or model.dtype_policy)
    backbone.record.take(model.record.to_json(), "a model in memory")
    backbone.record.add("encoder taken", of=type(model).__name__)
    reads_by = getattr(preprocessor, "encoder_tokenizer", None)
    return Found(backbone, reads_by or getattr(preprocessor, "tokenizer", None))


def _refuse_attention(attention: EncoderAttention | None, received: str) -> None:
    if attention is not None:
        raise ValueError(
            "Expected no encoder_attention for an encoder that was trained to attend as it does. "
            f"Received: encoder_attention={attention!r} for {received}."
        )
