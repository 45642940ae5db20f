"""A decoder-only model by name, folder or object: its config first, its weights when asked for.

So that a conversion is planned and refused before anything large is read. Leaves what a
config means to `keras_encdec.families`.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import keras
import keras_hub

from keras_encdec import layout
from keras_encdec.conversion.mxfp4 import Mxfp4Source
from keras_encdec.conversion.sources import ModelSource, SafetensorsSource, Source
from keras_encdec.families import known
from keras_encdec.families.keras_hub import name_of
from keras_encdec.files import read_json, readable
from keras_encdec.sharing import card, catalog
from keras_encdec.sharing.fetch import file_of, folder_of
from keras_encdec.sharing.hub_errors import explanation
from keras_encdec.sharing.hubs import Kaggle, hub_of
from keras_encdec.sharing.tokenizers import chat_template_of_files, tokenizer_of_files
from keras_encdec.spec import StackSpec, count_parameters


class DecoderOnly(Protocol):
    """A model of which the config alone was read."""

    @property
    def spec(self) -> StackSpec:
        """What it is."""

    def tokenizer(self) -> Any:
        """Its own, or None."""

    def chat_template(self) -> str | None:
        """How its tokenizer frames turns, in Jinja, where it says so."""

    def source(self, dtype: Any) -> Source:
        """Its weights, loaded in `dtype` where loading decides it."""

    def about(self) -> dict[str, Any]:
        """What a record says of it: `name`, `parameters`, `license` and others."""


def find(model: Any) -> DecoderOnly:
    """What is to be converted.

    Args:
        model: a preset name, handle or folder of KerasHub or of transformers, or a KerasHub
            backbone or task.

    Raises:
        ValueError: if there is no such model.
    """
    if not isinstance(model, (str, Path)):
        return InMemory(model)
    name = str(model)
    catalog.check_known(name)
    preset = catalog.on_this_machine(name)
    config = config_of(preset)
    if config.get("is_causal") is False:
        raise ValueError(
            f"Expected a decoder-only model. Received: {name}, an encoder: its config.json has "
            "is_causal=false. keras_encdec.models.EncoderBackbone.from_preset loads it."
        )
    return (Folder if "model_type" in config else Preset)(preset, config, name)


def config_of(preset: str) -> dict[str, Any]:
    """The `config.json` of a preset.

    Raises:
        ValueError: if it has none.
    """
    try:
        return read_json(file_of(preset, "config.json"))
    except FileNotFoundError as error:
        hub = hub_of(preset)
        if isinstance(hub, Kaggle) and (unknown := explanation(error, hub, "load")):
            raise unknown from error
        raise ValueError(
            f"Expected a preset with a config.json. Received: {preset!r}, which has none."
        ) from error


def backbone_of(model: Any) -> Any:
    """Of a KerasHub task; what is none is its own."""
    return model.backbone if isinstance(model, keras_hub.models.Task) else model


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A KerasHub backbone or task."""

    model: Any

    @functools.cached_property
    def spec(self) -> StackSpec:
        # Not every backbone of KerasHub tells: Llama's and Mistral's do not.
        backbone = backbone_of(self.model)
        family = known.of_backbone(type(backbone).__name__)
        tied = {"tie_word_embeddings": backbone.token_embedding.tie_weights}
        return family.read_keras_hub({**tied, **backbone.get_config()})

    def tokenizer(self) -> Any:
        return getattr(getattr(self.model, "preprocessor", None), "tokenizer", None)

    def chat_template(self) -> None:
        """None: KerasHub keeps no templates."""

    def source(self, dtype: Any, consume: bool = False) -> Source:
        backbone = backbone_of(self.model)
        family = known.of_backbone(type(backbone).__name__)
        weights = ModelSource(backbone, consume, lambda v: name_of(v.path))
        return Source(self.spec, weights, family.keras_hub, family.dropped)

    def about(self) -> dict[str, Any]:
        kind = type(self.model).__name__
        return {"name": f"a {kind} in memory", "kind": kind, **_sizes(self.spec)}


@dataclasses.dataclass(frozen=True)
class _Stored:
    """By name: where it is, its config, and the name that the user gave."""

    preset: str
    config: Mapping[str, Any]
    name: str

    @functools.cached_property
    def folder(self) -> str:
        """All of it on this machine, fetched if need be."""
        return folder_of(self.preset)

    def task(self, dtype: Any) -> Any:
        """It as a `keras_hub.models.CausalLM` on tokens, in Keras' default policy if None.

        Raises:
            ValueError: if KerasHub cannot read it.
        """
        dtype = self.dtype_of(keras.config.dtype_policy() if dtype is None else dtype)
        with readable("causal language model", self.name):
            return keras_hub.models.CausalLM.from_preset(
                self.folder, dtype=dtype, preprocessor=None
            )

    def dtype_of(self, dtype: Any) -> Any:
        """What it is loaded in: a quantised preset has its own alone, which KerasHub would drop."""
        saved = self.config.get("config", {}).get("dtype")
        quantised = isinstance(saved, dict) and saved["class_name"] == "DTypePolicyMap"
        return saved if quantised else dtype


class Preset(_Stored):
    """A preset of KerasHub."""

    @functools.cached_property
    def spec(self) -> StackSpec:
        name = self.config.get("class_name", "")
        family = known.of_backbone(name)  # first, as other classes may not be KerasHub's
        fields = {**_defaults(getattr(keras_hub.models, name)), **self.config["config"]}
        return family.read_keras_hub(fields)

    def tokenizer(self) -> Any:
        with readable("tokenizer", self.preset):
            return keras_hub.models.Tokenizer.from_preset(self.folder)

    def chat_template(self) -> None:
        """None: KerasHub keeps no templates."""

    def source(self, dtype: Any) -> Source:
        with layout.on_host(), readable("preset", self.preset):
            backbone = keras_hub.models.Backbone.from_preset(
                self.folder, dtype=self.dtype_of(dtype)
            )
        return InMemory(backbone).source(dtype, consume=True)

    def about(self) -> dict[str, Any]:
        kind = self.config.get("class_name")
        return {**described(self.name, self.folder), "kind": kind, **_sizes(self.spec)}


class Folder(_Stored):
    """A checkpoint of transformers: `config.json` with safetensors."""

    @functools.cached_property
    def spec(self) -> StackSpec:
        return known.spec_of(self.config)

    def tokenizer(self) -> Any:
        return tokenizer_of_files(self.folder)

    def chat_template(self) -> str | None:
        return chat_template_of_files(self.folder)

    def source(self, dtype: Any) -> Source:
        family = known.of_model_type(self.config["model_type"])
        stored = SafetensorsSource(lambda name: file_of(self.folder, name), self.preset)
        # Readers of configs refuse all other ways to quantise.
        weights = Mxfp4Source(stored) if self.config.get("quantization_config") else stored
        return Source(self.spec, weights, family.transformers, family.dropped)

    def about(self) -> dict[str, Any]:
        kind = self.config["model_type"]
        return {**described(self.name, self.folder), "kind": kind, **_sizes(self.spec)}


def described(name: str, folder: str) -> dict[str, Any]:
    """What is known of a preset by its name and by its card, which need not be there.

    Args:
        name: as the user gave it; of a folder on this machine only its last part is kept.
        folder: where its files are.

    Returns:
        `name` and, where known, `license`, `language` and `hugging_face`, its name there.
    """
    known = catalog.license_of(name)
    with contextlib.suppress(OSError, ValueError):
        text = (Path(folder) / card.FILE).read_text()
        fields = card.front_matter(text, name)
        known |= {key: fields[key] for key in ("license", "license_name") if key in fields}
        languages = fields.get("language", [])
        known |= {"language": languages if isinstance(languages, list) else [languages]}
    if name.startswith("hf://"):
        known["hugging_face"] = name.removeprefix("hf://")
    return {"name": name if "://" in name else Path(name).name, **known}


def _sizes(spec: StackSpec) -> dict[str, int]:
    return {
        "parameters": count_parameters(spec.weights()),
        "layers": spec.num_layers,
        "width": spec.width,
        "vocabulary_size": spec.vocabulary_size,
    }


def _defaults(backbone_class: type) -> dict[str, Any]:
    """Of a KerasHub backbone: presets of earlier versions leave later fields out."""
    parameters = inspect.signature(backbone_class.__init__).parameters.values()  # type: ignore[misc]
    return {p.name: p.default for p in parameters if p.default is not p.empty}
