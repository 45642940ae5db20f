"""Many prompts: which ones go together, and outputs that outlive a kill.

Knows the order of batches and the file. Leaves writing to what it is given.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_encdec import disk, hosts, progress


def run(
    write: Callable[[list[int]], Iterable[dict[int, Any]]],
    lengths: Sequence[int],
    path: str | os.PathLike | None = None,
    identity: str = "",
) -> list:
    """Outputs of all prompts, in their order, the longest prompts first.

    Args:
        write: numbers of prompts to their outputs by number, some at a time, which JSON can
            hold.
        lengths: of each prompt.
        path: a file of JSON lines to make, `{"index", "output"}` in order. Until all are
            there, they are kept in `path + ".partial"`, where the same call goes on.
        identity: of model, prompts and options, to know the same call by.

    Raises:
        ValueError: if there is a file at `path`, or the partial one is of another call.
        BlockingIOError: if another call writes to `path`, with the name of its process.
    """
    with contextlib.ExitStack() as ends:
        kept = None if path is None else _Kept(path, identity, ends)
        outputs = dict(hosts.of_first(kept.read)) if kept else {}
        order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
        todo = [i for i in order if i not in outputs]

        def items() -> Iterator[tuple[int, Any]]:
            for found in write(todo):
                if kept:
                    hosts.of_first(functools.partial(kept.add, found))
                yield from found.items()

        outputs |= progress.track(items(), "Rows", len(todo))
        in_order = [outputs[i] for i in range(len(order))]
        if kept:
            hosts.of_first(functools.partial(kept.finish, in_order))
        return in_order


def identity(variables: Iterable[Any], *what: Any) -> str:
    """A digest of what a call is asked, and of a few values of each of the variables."""
    digest = hashlib.sha256(json.dumps(what, default=str, sort_keys=True).encode())
    for variable in variables:
        first = functools.reduce(lambda x, _: x[0], variable.shape[1:], variable.value)
        digest.update(np.ascontiguousarray(hosts.whole(first)).tobytes())
    return digest.hexdigest()


def in_batches(
    write: Callable[[list[int]], list], batch_size: int
) -> Callable[[list[int]], Iterator[dict[int, Any]]]:
    """For `run`: so many prompts at a time.

    Args:
        write: numbers of prompts to the outputs of all.
        batch_size: prompts at a time.
    """

    def each(numbers: list[int]) -> Iterator[dict[int, Any]]:
        for at in range(0, len(numbers), batch_size):
            some = numbers[at : at + batch_size]
            yield dict(zip(some, write(some), strict=True))

    return each


class _Kept:
    """Outputs on disk: appended as they are made, in order when all are there."""

    def __init__(self, path: str | os.PathLike, identity: str, ends: contextlib.ExitStack):
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"Expected path as the name of a file. Received: {path!r}.")
        self.path, self._ends = Path(path), ends
        self._head = json.dumps({"identity": identity})

    @property
    def partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    def read(self) -> list[tuple[int, Any]]:
        """What was kept behind a line of identity, up to a line that broke off; locks the file."""
        self._check_new()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._ends.enter_context(disk.owned(self.path))
        self._check_new()  # what the last owner has finished
        text = self.partial.read_bytes() if self.partial.exists() else b""
        head, *lines = text.splitlines(keepends=True) or [b""]
        if not head.endswith(b"\n"):
            self.partial.write_text(f"{self._head}\n")
            return []
        if head.decode(errors="replace").rstrip() != self._head:
            raise ValueError(
                f"Expected {self.partial} to be of this call. Received: one of another model, "
                "other prompts or options. Choose another path or remove it."
            )
        kept: list[Any] = list(itertools.takewhile(bool, map(_kept, lines)))
        os.truncate(self.partial, len(head) + sum(map(len, lines[: len(kept)])))
        return kept

    def _check_new(self) -> None:
        if self.path.exists():
            raise ValueError(
                f"Expected a new file for outputs. Received: {self.path}, which is there. "
                "Choose another name or remove it."
            )

    def add(self, outputs: dict[int, Any]) -> None:
        disk.append(self.partial, _lines(outputs.items()))

    def finish(self, outputs: Iterable[Any]) -> None:
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(_lines(enumerate(outputs)), encoding="utf-8")
        os.replace(new, self.path)
        self.partial.unlink()


def _kept(line: bytes) -> tuple[int, Any] | None:
    """A line of `_lines`; None for one that broke off."""
    try:
        found = json.loads(line)
        return (found["index"], found["output"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _lines(outputs: Iterable[tuple[int, Any]]) -> str:
    return "".join(
        json.dumps({"index": i, "output": output}, ensure_ascii=False) + "\n"
        for i, output in outputs
    )
