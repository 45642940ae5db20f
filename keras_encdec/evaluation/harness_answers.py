"""Answers on disk: each is appended as it is found, so that a kill costs the last few.

Knows the file. What an answer is and what it is known by, the caller says.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_encdec import disk, formats, hosts
from keras_encdec.files import atomic_file
from keras_encdec.warn import warn

_WHAT = "answers"


class Answers:
    """Answers by key; those of a file, and those that were added since.

    A line holds one, `{"key", "answer", "check"}`, with a checksum of the others; the first line
    says what wrote it.

    Args:
        path: of the file, new or of an earlier call; None to keep them in memory.

    Raises:
        ValueError: if `path` is no name, or the file is something else.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"Expected answers as the name of a file. Received: {path!r}.")
        self.path = None if path is None else Path(path)
        self._found: dict[str, Any] = {}
        if self.path is not None:
            hosts.of_first(self._check)

    def _check(self) -> None:
        if self.path is not None and self.path.exists():
            _read(self.path)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    @contextlib.contextmanager
    def open(self) -> Iterator["Answers"]:
        """Reads what others have added; while it is open, no other call writes to the file.

        Raises:
            BlockingIOError: if another call does.
        """
        if self.path is None:
            yield self
            return
        with contextlib.ExitStack() as ends:
            self._found |= hosts.of_first(lambda: self._begin(ends))
            yield self

    def _begin(self, ends: contextlib.ExitStack) -> dict[str, Any]:
        path = self.path
        assert path is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        ends.enter_context(disk.owned(path))
        if not path.exists():
            with atomic_file(path) as new:
                new.write_text(json.dumps(formats.mark(_WHAT)) + "\n", encoding="utf-8")
            return {}
        found, size = _read(path)
        if (lost := path.stat().st_size - size) > 0:
            warn(f"Left out the last {lost} bytes of {path}: a line that broke off or is damaged.")
            os.truncate(path, size)
        return found

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keeps answers, of JSON types; when it returns, those of a file outlive a kill."""
        self._found |= answers
        path = self.path
        if path is not None:
            text = "".join(map(_line, answers.items()))
            hosts.of_first(lambda: disk.append(path, text))


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """The answers of a file up to the first damaged line, and the bytes that they take."""
    head, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
    try:
        mark = json.loads(head)
        written = mark if isinstance(mark, dict) and set(mark) == {formats.KEY} else None
    except ValueError:
        written = None
    if written is None:
        raise ValueError(
            f"Expected a file of answers at {path}, or none. Received: something else. Choose "
            "another name."
        )
    formats.check_known(_WHAT, written, path)
    found, size = {}, len(head)
    for line in lines:
        answer = _answer(line)
        if answer is None:
            break
        found[answer[0]] = answer[1]
        size += len(line)
    return found, size


def _line(answer: tuple[str, Any]) -> str:
    return (
        json.dumps(dict(zip(("key", "answer", "check"), (*answer, _sum(answer)), strict=True)))
        + "\n"
    )


def _sum(answer: tuple[str, Any]) -> int:
    return zlib.crc32(json.dumps(answer).encode())


def _answer(line: bytes) -> tuple[str, Any] | None:
    """Key and answer of a line; None for one that broke off or is damaged."""
    try:
        kept = json.loads(line)
        answer = kept["key"], kept["answer"]
        return answer if line.endswith(b"\n") and kept["check"] == _sum(answer) else None
    except (ValueError, KeyError, TypeError):
        return None
