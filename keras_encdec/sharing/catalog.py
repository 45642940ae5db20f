"""The presets that ship with the package: recipes of pairs, and tiny models.

Reads presets/*.json. Knows names, specs and where each number is from; loads no
weights.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras_hub
from kagglehub.cache import Cache
from kagglehub.handle import parse_model_handle
from rich.console import Console
from rich.table import Table

from keras_encdec import check
from keras_encdec.families.known import FAMILIES, spec_of
from keras_encdec.files import read_json
from keras_encdec.spec import PairSpec, StackSpec, count_parameters, stack_from_json


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A pair by name.

    Args:
        encoder: preset of the decoder-only source, or None for random weights.
        decoder: likewise.
        encoder_spec: name of the source's spec in presets/specs.json.
        decoder_spec: likewise.
        chat: whether the sources are instruction-tuned.
        source: where the recipe is from.
        tokenizer: preset with the tokenizer, where there is no source.
    """

    encoder: str | None
    decoder: str | None
    encoder_spec: str
    decoder_spec: str
    chat: bool
    source: str
    tokenizer: str | None = None

    @property
    def spec(self) -> PairSpec:
        return PairSpec(known_spec(self.encoder_spec), known_spec(self.decoder_spec))

    @property
    def parameters(self) -> int:
        return count_parameters(self.spec.weights())


class Presets(Mapping):
    """The recipes by name; prints as a table with parameter counts."""

    def __getitem__(self, name: str) -> Recipe:
        if name not in _recipes():
            hint = check.nearest(name, _recipes()) or f" There are {', '.join(_recipes())}."
            raise KeyError(f"Expected the name of a recipe. Received: {name!r}.{hint}")
        return _recipes()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_recipes())

    def __len__(self) -> int:
        return len(_recipes())

    def __repr__(self) -> str:
        table = Table("preset", "encoder", "decoder", "parameters", box=None)
        for name, recipe in self.items():
            sides = [recipe.encoder or "random", recipe.decoder or "random"]
            table.add_row(name, *sides, f"{recipe.parameters:,}")
        console = Console(width=100)
        with console.capture() as text:
            console.print(table)
        return text.get()


presets = Presets()


def folder() -> Path:
    """presets/ in the installed package, or beside it in a checkout."""
    here = Path(__file__).parents[1]
    installed = here / "_presets"
    return installed if installed.exists() else here.parent / "presets"


def embedded(name: str) -> str | None:
    """The folder of an embedded decoder-only model, or None."""
    path = folder() / "models" / name
    return str(path) if "/" not in name and (path / "config.json").exists() else None


def on_this_machine(preset: str) -> str:
    """The local folder of an embedded model or of a finished Kaggle download, or `preset`.

    KerasHub asks Kaggle for each optional file even where a whole version lies in the
    cache; a folder needs no network.
    """
    if path := embedded(preset):
        return path
    handle = _of_keras_hub().get(preset, {}).get("kaggle_handle", preset)
    if not handle.startswith("kaggle://"):
        return preset
    parsed = parse_model_handle(handle.removeprefix("kaggle://"))
    return (Cache().load_from_cache(parsed) if parsed.is_versioned() else None) or preset


@functools.cache
def known_spec(name: str) -> StackSpec:
    """The spec of a source by name, without its weights."""
    if path := embedded(name):
        return spec_of(read_json(Path(path) / "config.json"))
    return stack_from_json(_read("specs.json")[name]["spec"])


def check_known(name: str) -> None:
    """Refuses a name that is neither a recipe, a preset of KerasHub, a handle nor a path.

    Raises:
        ValueError: with the nearest names.
    """
    builtin = _of_keras_hub()
    known = [*presets, *builtin, *(path.name for path in (folder() / "models").iterdir())]
    if name in known or "://" in name or (name.strip() and Path(name).exists()):
        return
    hint = check.nearest(name, known, most=3) or " See keras_encdec.presets."
    raise ValueError(
        "Expected the name of a preset, a kaggle:// or hf:// handle, or a folder. "
        f"Received: {name!r}.{hint}"
    )


@functools.cache
def _of_keras_hub() -> dict[str, dict]:
    """KerasHub's presets of known families, by name."""
    classes = [getattr(keras_hub.models, name) for f in FAMILIES for name in f.backbones]
    return {name: facts for cls in classes for name, facts in cls.presets.items()}


@functools.cache
def _recipes() -> dict[str, Recipe]:
    return {name: Recipe(**fields) for name, fields in _read("pairs.json").items()}


def _read(name: str) -> dict:
    return read_json(folder() / name)
