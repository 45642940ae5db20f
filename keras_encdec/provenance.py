"""How a model was made: its sources, and all that was done to it, in order.

Knows the record that a model carries and its file, `provenance.json`. Leaves what a run of `fit`
says of itself to `keras_encdec.training.recording`, and the card that a person reads to
`keras_encdec.sharing.card`. Standard library only.
"""

import copy
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_encdec import formats
from keras_encdec.files import read_json

FILE = "provenance.json"
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"  # states of a run


class Provenance:
    """What is known of a model's past, as JSON types.

    `sources` holds, for `"encoder"` and `"decoder"`, or for `"pair"` where both came as one,
    `name`, `parameters`, `license` and others, as far as they are known. `history` is a list of
    what was done, each a dict of `what` (`"converted"`, `"fit"`, `"lora"`, ...), `date` and more.

    An object rather than a dict, of which Keras would keep a copy of its own.
    """

    def __init__(self) -> None:
        self.sources: dict[str, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []
        self.goes_on = False  # whether the next run goes on with the one that stands last

    def add(self, what: str, **facts: Any) -> dict[str, Any]:
        """Adds something that was done now, and returns its entry, which may be changed."""
        entry = json.loads(json.dumps({"what": what, "date": now(), **facts}, default=str))
        self.history.append(entry)
        return entry

    def count(self, what: str) -> None:
        """Adds something that was done once, or once more if it was the last."""
        if not self.history or self.history[-1]["what"] != what:
            self.add(what, times=0)
        self.history[-1]["times"] += 1

    def to_json(self) -> dict[str, Any]:
        """All of it, with the number of its format; a copy."""
        return {
            **formats.mark("provenance"),
            "sources": copy.deepcopy(self.sources),
            "history": copy.deepcopy(self.history),
        }

    def take(self, record: Mapping[str, Any], where: Any, goes_on: bool = False) -> None:
        """Takes over what `to_json` gave, in place of what was known.

        Args:
            record: from `to_json`.
            where: it is from, for messages.
            goes_on: whether a run that went on when it was written goes on now; else it was
                stopped there.

        Raises:
            ValueError: if it is none, or of a later format.
        """
        formats.check_known("provenance", record, where)
        sources: Any = record.get("sources")
        history: Any = record.get("history")
        whole = isinstance(sources, dict) and isinstance(history, list)
        if not whole or not all(isinstance(item, dict) for item in [*sources.values(), *history]):
            raise ValueError(
                f"Expected sources and a history in {where}. Received: {str(record)[:80]!r}. "
                f"Download or save it again, or delete {FILE}."
            )
        self.sources, self.history = copy.deepcopy(sources), copy.deepcopy(history)
        self.goes_on = goes_on
        for entry in [] if goes_on else self.history:
            if entry.get("state") == RUNNING:
                entry["state"] = STOPPED

    def write(self, folder: Path, *more: dict[str, Any]) -> None:
        """Writes the file, with what is true of it and not of the model in memory.

        Args:
            folder: that the model is written to.
            *more: `what` and other facts, such as of LoRA that is merged in the files.
        """
        written = self.to_json()
        written["history"] += [{"what": "", "date": now(), **facts} for facts in more]
        (folder / FILE).write_text(json.dumps(written, indent=1) + "\n")

    def read(self, folder: Path) -> None:
        """Takes over the record in a folder; where there is none, says so.

        Raises:
            ValueError: as `take`.
        """
        try:
            self.take(read_json(folder / FILE), folder / FILE)
        except FileNotFoundError:
            self.sources, self.history = {}, []
            self.add("loaded", name=folder.name, record=None)


def now() -> str:
    """Date and time in UTC, such as `"2026-01-31T12:00:00Z"`."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
