"""A folder of array shards with checksums, which grows shard by shard.

Knows files, digests and how to go on after a kill. Leaves what the arrays mean to
`tokens` and `teacher`.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_encdec import disk, formats
from keras_encdec.files import check_inside, read_json, readable
from keras_encdec.warn import warn

_INDEX = "shards.json"
_OF_A_FILE = "file", "sha256"
_OWN = re.compile(r"\.lock|shards\.json(\.incomplete)?|\d{5}\.\w+\.npy")

# Data is read in threads: a file is checked once, and NumPy reads the header of one file
# at a time, as Python 3.11's parser, which it uses for that, breaks in several threads.
_OPENING = threading.Lock()


class ShardWriter:
    """Appends shards to a folder. A shard is in the index when all of it is on disk.

    A context: until it ends no other process writes there. After a kill, or where a shard was
    damaged since, the next writer goes on behind the last one that is whole.

    Args:
        folder: new, empty, or begun by a writer with the same `kind` and `about`.
        kind: what the shards hold.
        about: JSON types; settings that every shard depends on.

    Raises:
        ValueError: if the folder holds something else, or is finished and whole.
        BlockingIOError: if another process writes there.
    """

    def __init__(self, folder: str | os.PathLike, kind: str, about: dict):
        self.folder = Path(folder)
        self.index: dict[str, Any] = {**formats.mark(kind), "kind": kind, "about": about}
        self.index |= {"shards": [], "finished": None}
        _check_own(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(disk.owned(self.folder))
        try:
            if (self.folder / _INDEX).exists():
                self._go_on(kind, about)
            self._write_index()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def _go_on(self, kind: str, about: dict) -> None:
        begun = read_json(self.folder / _INDEX)
        if (begun.get("kind"), begun.get("about")) != (kind, about):
            raise ValueError(
                f"Expected {self.folder} to be begun with {kind} {about}. "
                f"Received: {begun.get('kind')} {begun.get('about')}. Choose another name."
            )
        formats.check_known(kind, begun, self.folder / _INDEX)
        with readable(f"index of {kind}", self.folder / _INDEX):
            whole = list(itertools.takewhile(self._is_whole, begun["shards"]))
        lost = len(begun["shards"]) - len(whole)
        if lost:
            warn(f"Shard {len(whole)} of {self.folder} is damaged: it and what follows is redone.")
        elif begun.get("finished") is not None:
            raise ValueError(
                f"Expected a new folder or one to go on with. Received: {self.folder}, which is "
                "finished. Load it, or choose another name."
            )
        self.index = {**begun, "shards": whole, "finished": None}

    def _is_whole(self, shard: dict[str, Any]) -> bool:
        return all(_problem(self.folder, entry) is None for entry in shard["files"].values())

    @property
    def shards(self) -> list[dict]:
        """The facts given with each shard that is written."""
        return [shard["facts"] for shard in self.index["shards"]]

    def write(self, arrays: dict[str, np.ndarray], facts: dict) -> None:
        """Adds a shard of named arrays, with JSON facts about it."""
        files = {}
        for name, array in arrays.items():
            file = f"{len(self.index['shards']):05d}.{name}.npy"
            with open(self.folder / file, "wb") as stream:
                np.save(stream, array)
                stream.flush()
                os.fsync(stream.fileno())
            files[name] = {"file": file, "sha256": _digest(self.folder / file)}
        self.index["shards"].append({"files": files, "facts": facts})
        self._write_index()

    def finish(self, facts: dict) -> None:
        """Marks the folder as whole."""
        self.index["finished"] = facts
        self._write_index()

    def _write_index(self) -> None:
        unfinished = self.folder / f"{_INDEX}.incomplete"
        unfinished.write_text(json.dumps(self.index, indent=1))
        os.replace(unfinished, self.folder / _INDEX)


def is_finished(folder: str | os.PathLike) -> bool:
    """Whether a `ShardWriter` has come to its end there."""
    index = Path(folder) / _INDEX
    return index.is_file() and read_json(index).get("finished") is not None


class Shards:
    """Reads what a `ShardWriter` has finished; arrays stay on disk.

    Args:
        folder: of a `ShardWriter`.
        kind: what it must hold.

    Raises:
        ValueError: if it is of another kind or not finished.
        FileNotFoundError: if there is none.
    """

    def __init__(self, folder: str | os.PathLike, kind: str):
        self.folder = Path(folder)
        if not (self.folder / _INDEX).is_file():
            raise FileNotFoundError(f"Expected shards at {folder}. Received: no {_INDEX} in it.")
        with readable(f"index of {kind}", self.folder / _INDEX):
            self.about, self.finished, self._shards = self._read(kind)
        self._arrays: dict[tuple[int, str], np.ndarray] = {}

    def _read(self, kind: str) -> tuple[dict, dict, list[dict]]:
        index = read_json(self.folder / _INDEX)
        if index.get("kind") != kind or index.get("finished") is None:
            state = "finished" if index.get("finished") is not None else "unfinished"
            raise ValueError(
                f"Expected a finished folder of {kind}. Received: {self.folder}, {state}, of "
                f"{index.get('kind')}. Write it to its end first."
            )
        formats.check_known(kind, index, self.folder / _INDEX)
        shards = [
            {
                "files": {n: {k: str(f[k]) for k in _OF_A_FILE} for n, f in s["files"].items()},
                "facts": dict(s["facts"]),
            }
            for s in index["shards"]
        ]
        return dict(index["about"]), dict(index["finished"]), shards

    def __len__(self) -> int:
        return len(self._shards)

    def facts(self, shard: int) -> dict:
        """What the writer said of a shard."""
        return self._shards[shard]["facts"]

    def digest(self, shard: int, name: str) -> str:
        """The checksum of an array of a shard, as the index has it."""
        return self._shards[shard]["files"][name]["sha256"]

    def array(self, shard: int, name: str) -> np.ndarray:
        """An array of a shard, memory-mapped; its checksum is compared at the first use.

        Raises:
            ValueError: if the file is missing or not as it was written.
        """
        with _OPENING:
            if (shard, name) not in self._arrays:
                with readable(f"shard {shard} of {name}", self.folder):
                    self._arrays[shard, name] = self._checked(self._shards[shard]["files"][name])
        return self._arrays[shard, name]

    def _checked(self, entry: dict[str, str]) -> np.ndarray:
        if problem := _problem(self.folder, entry):
            raise ValueError(problem)
        return np.load(self.folder / entry["file"], mmap_mode="r", allow_pickle=False)

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: they open the files themselves."""
        return {**self.__dict__, "_arrays": {}}


def _check_own(folder: Path) -> None:
    """Raises ValueError where something else than a writer's files is."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Expected the name of a folder. Received: {folder}, a file.")
    for path in folder.iterdir() if folder.exists() else ():
        if not _OWN.fullmatch(path.name):
            raise ValueError(
                f"Expected an empty folder, or one that was begun. Received: {folder}, with "
                f"{path.name} in it."
            )


def _problem(folder: Path, entry: dict[str, str]) -> str | None:
    """What is wrong with a file that the index names; None if it is as it was written.

    Raises:
        ValueError: if it would lie outside the folder.
    """
    check_inside(entry["file"], str(folder))
    path = folder / entry["file"]
    if not path.is_file():
        return f"Expected the shard {path}. Received: no such file. Copy it again."
    if _digest(path) != entry["sha256"]:
        return (
            f"Expected {path} as it was written. Received: a file with another checksum. "
            "Copy it again, or write the folder anew."
        )
    return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
