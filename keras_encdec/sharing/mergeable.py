"""Which presets can become one: alike in all that gives their numbers a meaning, and of one origin.

Knows what must agree, and what a record tells of an ancestor. Leaves how they are merged to
`keras_encdec.sharing.merge`.
"""

import contextlib
import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_encdec import check, provenance
from keras_encdec.files import read_json
from keras_encdec.provenance import Provenance
from keras_encdec.sharing import catalog
from keras_encdec.sharing.card import kind_of
from keras_encdec.sharing.configs import ENCODER, PAIR, spec_of_config
from keras_encdec.sharing.decoder_only import config_of
from keras_encdec.sharing.fetch import folder_of
from keras_encdec.sharing.load import check_files
from keras_encdec.sharing.tensors import tensors_of
from keras_encdec.sharing.whole import check_saved

_SAVE = "Load it with keras_encdec, and save it with save_to_preset."
# What a task's config says beside what its head computes.
_BESIDE = "backbone", "preprocessor", "name", "trainable", "dtype", "dropout"


@dataclasses.dataclass(frozen=True)
class Mergeable:
    """A preset of ours, in float.

    Args:
        name: what it is called, without the folders that it lies in.
        folder: where it is.
        config: its `config.json`.
    """

    name: str
    folder: Path
    config: dict[str, Any]

    @functools.cached_property
    def record(self) -> Provenance:
        """How it was made."""
        record = Provenance()
        record.read(self.folder)
        return record

    @property
    def tells(self) -> bool:
        """Whether it says how it was made, which early presets do not."""
        return (self.folder / provenance.FILE).is_file()

    def kind(self) -> dict[str, Any]:
        """Its class."""
        return {"class": kind_of(self.folder, self.config)}

    def spec(self) -> dict[str, Any]:
        """What its backbone is, as JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(spec_of_config(self.config))))  # type: ignore

    def head(self) -> dict[str, Any]:
        """What its task says of a head, such as the names of classes in their order."""
        path = self.folder / "task.json"
        said = read_json(path)["config"] if path.is_file() else {}
        return {name: value for name, value in said.items() if name not in _BESIDE}

    def tokenizers(self) -> dict[str, int]:
        """Checksums of their files."""
        files = sorted(path for path in (self.folder / "assets").rglob("*") if path.is_file())
        return {
            path.relative_to(self.folder).as_posix(): zlib.crc32(path.read_bytes())
            for path in files
        }

    def tensors(self) -> dict[str, list]:
        """Shape of each, and whether it holds real numbers."""
        with contextlib.ExitStack() as files:
            found = tensors_of(self.folder, files)
            return {name: [list(t.shape), t.is_real] for name, t in sorted(found.items())}


_AGREE: dict[str, Callable[[Mergeable], dict[str, Any]]] = {
    "task": Mergeable.kind,
    "spec": Mergeable.spec,
    "head": Mergeable.head,
    "tokenizer": Mergeable.tokenizers,
    "tensors": Mergeable.tensors,
}


def found(preset: Any) -> Mergeable:
    """A preset, whole and as it was saved.

    Args:
        preset: a folder or handle.

    Raises:
        ValueError: if there is none, it is none of ours, damaged or quantised.
    """
    name = str(preset)
    catalog.check_known(name)
    if name in catalog.presets or Path(name).is_file():
        kind = "a recipe" if name in catalog.presets else "a file"
        raise ValueError(
            f"Expected folders of save_to_preset. Received: {name!r}, {kind}. {_SAVE} A file of "
            "save_lora_weights is loaded into its pair by load_lora_weights first."
        )
    place = catalog.on_this_machine(name)
    config = config_of(place)
    if config.get("registered_name") not in (PAIR, ENCODER):
        what = config.get("class_name") or config.get("model_type") or "something else"
        raise ValueError(f"Expected presets of this package. Received: {name!r}, a {what}. {_SAVE}")
    if config["config"].get("quantization"):
        raise ValueError(
            f"Expected presets in float. Received: {name!r}, which is quantised. Merge what it "
            "was quantised from, and quantise the result."
        )
    folder = Path(folder_of(place))
    check_files(str(folder))
    check_saved(folder)
    return Mergeable(name if "://" in name else Path(name).resolve().name, folder, config)


def check_alike(presets: Sequence[Mergeable]) -> None:
    """Refuses presets whose tensors of one name do not mean the same.

    Raises:
        ValueError: naming the first thing that differs, and what it is in both.
    """
    first, *others = presets
    for what, of in _AGREE.items():
        expected = of(first)
        for other in others:
            if (there := of(other)) != expected:
                where, *both = check.difference(expected, there)
                one, two = (str(value)[:80] for value in both)
                raise ValueError(
                    f"Expected presets of one {what}. Received: {first.name!r} and "
                    f"{other.name!r}, where {where} is {one} and {two}."
                )


def check_ancestor(base: Mergeable, presets: Sequence[Mergeable], of_others: bool = False) -> None:
    """Refuses presets that were not trained from `base`, as far as their records tell.

    Args:
        base: what training began from.
        presets: what it led to.
        of_others: whether they may be of other sources, converted in the same way.

    Raises:
        ValueError: naming what `base` and the other one are of.
    """
    for preset in presets:
        if not base.tells or not preset.tells:
            continue
        ours, theirs = base.record, preset.record
        behind = shared_past([ours, theirs])
        is_of_others = of_others and not any(entry.get("fresh") for entry in theirs.history)
        sources = ours.sources == theirs.sources or is_of_others
        if not sources or behind < len(ours.history):
            raise ValueError(
                "Expected presets that were trained from base, to see what each has learned. "
                f"Received: {preset.name!r}, of {_told(theirs, behind)}, and base {base.name!r}, "
                f"of {_told(ours, behind)}. Give what training began from, saved before it began; "
                "or leave base out."
            )


def shared_past(records: Sequence[Provenance]) -> int:
    """How many entries all histories begin with."""
    lengths = range(min(len(record.history) for record in records))
    same = (len({_identity(record.history[i]) for record in records}) == 1 for i in lengths)
    return next((i for i, is_same in enumerate(same) if not is_same), len(lengths))


def _identity(entry: dict[str, Any]) -> str:
    """An entry as text; a conversion that left nothing to chance gives the same on any day."""
    if entry.get("fresh") == 0:
        entry = {name: entry[name] for name in ("what", "plan", "options")}
    return json.dumps(entry, sort_keys=True)


def _told(record: Provenance, place: int) -> str:
    """An ancestor: its sources, and what was done to it where another history parts."""
    names = dict.fromkeys(str(source.get("name")) for source in record.sources.values())
    said = " and ".join(names) or "no known source"
    if place < len(record.history):
        entry = record.history[place]
        said += f" ({entry['what']} {entry.get('date')})"
    return said
