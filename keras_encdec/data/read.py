"""Text out of files, lists and datasets, each with the place it came from.

Knows file formats. Reads lazily and in a fixed order, so that the n-th document is
always the same. Leaves tokens to `keras_encdec.data.tokens`.
"""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".txt", ".jsonl", ".parquet")


class Document(NamedTuple):
    """A text, and where it is from: `corpus.jsonl:17`, or `text 17` of a list."""

    where: str
    text: str


class Documents:
    """The documents of files, read anew in each pass. See `read`."""

    def __init__(self, paths: Sequence[Path], field: str, lines: bool):
        self.paths, self.field, self.lines = tuple(paths), field, lines

    def __iter__(self) -> Iterator[Document]:
        for path in self.paths:
            try:
                yield from self._file(path)
            except UnicodeDecodeError as error:
                raise ValueError(f"Expected UTF-8 in {path}. Received: {error}.") from error
            except OSError as error:
                raise OSError(
                    f"Expected to read {path}. Received: {error}. It was there when reading began: "
                    "put it back, and go on from the step or shard reached."
                ) from error

    def _file(self, path: Path) -> Iterator[Document]:
        if path.suffix == ".parquet":
            return self._parquet(path)
        return self._jsonl(path) if path.suffix == ".jsonl" else self._txt(path)

    def _txt(self, path):
        with open(path, encoding="utf-8") as file:
            if not self.lines:
                yield Document(str(path), file.read())
                return
            for number, line in enumerate(file, start=1):
                yield Document(f"{path}:{number}", line.rstrip("\n"))

    def _jsonl(self, path):
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"Expected JSON in {where}. Received: {error}.") from error
                if not isinstance(record, dict) or self.field not in record:
                    raise ValueError(
                        f"Expected an object with {self.field!r} in {where}. Received: "
                        f"{list(record) if isinstance(record, dict) else record!r}. Choose field=."
                    )
                yield Document(where, record[self.field])

    def _parquet(self, path):
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
        if self.field not in file.schema_arrow.names:
            raise ValueError(
                f"Expected a column {self.field!r} in {path}. Received: {file.schema_arrow.names}. "
                "Choose field=."
            )
        number = 0
        for batch in file.iter_batches(columns=[self.field]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield Document(f"{path}:{number}", value)


def read(
    paths: str | os.PathLike | Iterable[str | os.PathLike], field: str = "text", lines: bool = False
) -> Documents:
    """Opens files as documents, to iterate over, to tokenise or to `lm.fit` on.

    Args:
        paths: files, patterns such as `"corpus/*.jsonl"`, or a list of them. The files
            of a pattern come in the order of their names.
        field: the field of a `.jsonl` object, or the column of a `.parquet` file.
        lines: whether each line of a `.txt` file is a document, rather than each file.

    Raises:
        ValueError: if a file's format is not known, or, when it is read, a record is
            not as expected; the message names the file and the record.
        FileNotFoundError: if there is no such file.
        ImportError: if there is a `.parquet` file, and no pyarrow.
    """
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
    return Documents(found, field, lines)


def documents(texts, field: str = "text") -> Iterator[Document]:
    """Any kind of text as documents: `read(...)`, lists, Hugging Face and tf.data datasets.

    Raises:
        ValueError: if something among them is not text; the message names it.
    """
    if isinstance(texts, (str, bytes)):
        texts = [texts]
    names = getattr(texts, "column_names", None)  # of a Hugging Face dataset, if it knows
    if names is not None and field not in names:
        raise ValueError(f"Expected a column {field!r}. Received: a dataset with columns {names}.")
    if hasattr(texts, "as_numpy_iterator"):  # of tf.data
        texts = texts.as_numpy_iterator()
    for number, item in enumerate(texts):
        if isinstance(item, Mapping) and field in item:
            item = item[field]
        where, text = item if isinstance(item, Document) else (f"text {number}", item)
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        if not isinstance(text, str):
            raise ValueError(
                f"Expected text (str) in {where}. Received: {text!r} of type "
                f"{type(text).__name__}. Convert it to a string or leave it out."
            )
        yield Document(where, text)
