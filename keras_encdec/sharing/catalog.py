"""The presets that ship with the package: recipes of pairs, and tiny models.

Reads presets/*.json. Knows names, specs and where each number is from; loads no
weights.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras_hub
from rich.console import Console
from rich.table import Table

from keras_encdec import check
from keras_encdec.families.known import FAMILIES, spec_of
from keras_encdec.files import read_json
from keras_encdec.sharing import licenses
from keras_encdec.sharing.hubs import Kaggle, hub_of
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
    """Where a preset is: a folder, or the handle of a hub that has to be asked.

    KerasHub asks Kaggle for each optional file even where a whole version lies in the
    cache; a folder needs no network.

    Raises:
        ValueError: if it is a handle, and has not the form of one.
    """
    if path := embedded(preset):
        return path
    handle = _of_keras_hub().get(preset, {}).get("kaggle_handle", preset)
    hub = hub_of(handle)
    return (hub.here() if isinstance(hub, Kaggle) else None) or handle


def nearest_handle(handle: str) -> str:
    """`" Did you mean 'hf://...'?"`, or nothing where no known handle is near."""
    whole = [facts["kaggle_handle"] for facts in _of_keras_hub().values()]
    sides = "s-s", "b-b", "l-l", "ml-ml", "xl-xl", "2b-2b", "9b-2b", "9b-9b"
    kinds = "ul2", "prefixlm", "ul2-it", "prefixlm-it"
    released = [f"hf://google/t5gemma-{side}-{kind}" for side in sides for kind in kinds]
    known = [*whole, *(name.rpartition("/")[0] for name in whole), *released]
    return check.nearest(handle, [one for one in known if one != handle], cutoff=0.8)


def license_of(name: str) -> dict[str, Any]:
    """What is known of a preset's licence by its name or Kaggle handle; see `licenses`.

    The embedded models came with this package, under its licence.
    """
    if embedded(name):
        return {"license": "apache-2.0", "language": ["en"]}
    handles = {
        facts["kaggle_handle"].rpartition("/")[0]: known for known, facts in _of_keras_hub().items()
    }
    unversioned = name.rpartition("/")[0] if name.count("/") == 6 else name
    name = handles.get(unversioned, name)
    language = {"language": ["en"]} if name.endswith("_en") else {}
    known = licenses.of_keras_hub(name)
    return {**known, **language} if known else {}


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
