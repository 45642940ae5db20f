"""Text out of files, each with the place it came from.

Knows file formats. Reads lazily and in a fixed order, so that the n-th document is
always the same. Leaves tokens to `keras_encdec.data.tokenizing`.
"""

import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from keras_encdec import check
from keras_encdec.data.conversations import Conversations
from keras_encdec.data.kinds import Document, Documents

SUFFIXES = (".txt", ".jsonl", ".parquet")


def read(
    paths: str | os.PathLike | Iterable[str | os.PathLike], field: str = "text", lines: bool = False
) -> Documents | Conversations:
    """Opens files as documents, to iterate over, to tokenise or to `lm.fit` on.

    Args:
        paths: files, patterns such as `"corpus/*.jsonl"`, or a list of them. The files
            of a pattern come in the order of their names.
        field: the field of a `.jsonl` object, or the column of a `.parquet` file; `"messages"`
            for conversations, which are read at once; images in them are named by their path.
        lines: whether each line of a `.txt` file is a document, rather than each file.

    Raises:
        ValueError: if a file's format is not known, or, when it is read, a record is
            not as expected; the message names the file and the record.
        FileNotFoundError: if there is no such file.
        ImportError: if there is a `.parquet` file, and no pyarrow.
    """
    check.flag("lines", lines)
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: list[Path] = []
    for path in map(str, paths):
        matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
        if not matches or not os.path.isfile(matches[0]):
            raise FileNotFoundError(f"Expected files at {path}. Received: a name of none.")
        found += map(Path, matches)
    for file in found:
        if file.suffix not in SUFFIXES:
            raise ValueError(f"Expected one of {SUFFIXES}. Received: {file}.")
    if not found:
        raise ValueError(f"Expected at least one file. Received: {paths!r}.")
    files = tuple(found)
    if field == "messages":
        every = list(_documents(files, field, lines))
        lists: Any = [document.text for document in every]
        return Conversations(lists, places=[document.where for document in every])
    return Documents(lambda: _documents(files, field, lines), paths=files)


def _documents(paths: tuple[Path, ...], field: str, lines: bool) -> Iterator[Document]:
    for path in paths:
        try:
            if path.suffix == ".txt":
                yield from _txt(path, lines)
            else:
                yield from (_parquet if path.suffix == ".parquet" else _jsonl)(path, field)
        except UnicodeDecodeError:
            _refuse(path)
            raise
        except OSError as error:
            raise OSError(
                f"Expected to read {path}. Received: {error}. It was there when reading began: "
                "put it back, and go on from the step or shard reached."
            ) from error


# Windows writes a byte order mark before a file's text, which is none of it.
_UTF_8 = "utf-8-sig"


def _refuse(path: Path) -> None:
    """Raises ValueError naming the first line that is no UTF-8."""
    with open(path, encoding=_UTF_8, errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            check.text(f"{path}:{number}", line.encode("utf-8", "surrogateescape"))


def _txt(path: Path, lines: bool) -> Iterator[Document]:
    with open(path, encoding=_UTF_8) as file:
        if not lines:
            yield Document(str(path), file.read())
            return
        for number, line in enumerate(file, start=1):
            yield Document(f"{path}:{number}", line.rstrip("\n"))


def _jsonl(path: Path, field: str) -> Iterator[Document]:
    with open(path, encoding=_UTF_8) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # also of huge numbers
                raise ValueError(f"Expected JSON in {where}. Received: {error}.") from error
            if not isinstance(record, dict) or field not in record:
                raise ValueError(
                    f"Expected an object with {field!r} in {where}. Received: "
                    f"{list(record) if isinstance(record, dict) else record!r}. Choose field=."
                )
            yield Document(where, record[field])


def _parquet(path: Path, field: str) -> Iterator[Document]:
    try:
        from pyarrow import lib, parquet
    except ImportError as error:
        raise ImportError(
            f"Expected pyarrow, to read {path}. `pip install keras-encdec[parquet]`."
        ) from error
    try:
        file = parquet.ParquetFile(path)
    except lib.ArrowInvalid as error:
        raise ValueError(f"Expected Parquet in {path}. Received: {error}.") from error
    if field not in file.schema_arrow.names:
        raise ValueError(
            f"Expected a column {field!r} in {path}. Received: {file.schema_arrow.names}. "
            "Choose field=."
        )
    number = 0
    for batch in file.iter_batches(columns=[field]):
        for scalar in batch.column(0):
            number += 1
            where = f"{path}:{number}"
            try:
                yield Document(where, scalar.as_py())
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"Expected text in UTF-8 in {where}. Received: {error}."
                ) from error
