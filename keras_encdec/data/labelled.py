"""Texts with labels, for tasks on an encoder: one text, several in a row, or one with choices.

Knows what users hand over and what a label may be. Leaves streams and arrays to
`keras_encdec.data.recognize`, and tokens to `keras_encdec.objectives.reader`.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_encdec import check
from keras_encdec.data.images import refuse_images
from keras_encdec.data.kinds import Stream
from keras_encdec.data.recognize import (
    array_of,
    is_single_text,
    is_texts,
    listed,
    names_of_columns,
    refuse_beside,
    stream_of,
    strings,
    weights_of,
)
from keras_encdec.progress import track

_TEXTS, _LABELS = ("text", "text_pair", "choices"), ("label", "labels")
READY = "token_ids", "padding_mask"
Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Texts and what is said of them.

    Args:
        rows: n rows, each one or several texts that are read one after another.
        choices: for each row its choices, as many everywhere, each read behind the row's own
            texts; or None.
        labels: (n, ...) as they were given, or None.
        weights: (n,) what each row counts, or None.
        single: whether it was one row rather than several.

    Raises:
        ValueError: if there are not as many of each, none at all, or an empty text.
    """

    rows: Sequence[Row]
    choices: Sequence[Row] | None = None
    labels: np.ndarray | None = None
    weights: np.ndarray | None = None
    single: bool = False
    kind: ClassVar[str] = "labelled texts"

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise ValueError("Expected at least one text. Received: an empty batch.")
        for number, row in enumerate(self.rows):
            if not any(text.strip() for text in row):
                raise ValueError(
                    f"Expected text in row {number}. Received: {row[0]!r}, which is empty. Leave "
                    "such rows out."
                )
        if self.labels is not None and len(self.labels) != len(self):
            raise ValueError(
                f"Expected a label for each of {len(self)} texts. Received: {len(self.labels)}."
            )
        for number, choices in enumerate(self.choices or ()):
            if len(choices) != self.num_choices or not all(c.strip() for c in choices):
                raise ValueError(
                    f"Expected {self.num_choices} choices, none of them empty, in each row. "
                    f"Received: {list(choices)} in row {number}."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> "Labelled":
        given: tuple[Any, ...] = self.choices, self.labels, self.weights
        some: list[Any] = [None if x is None else x[part] for x in given]
        return Labelled(self.rows[part], *some)

    @property
    def num_choices(self) -> int:
        """Choices of a row, 0 if there are none."""
        return len(self.choices[0]) if self.choices else 0

    def read(self) -> list[Row]:
        """What the encoder reads: n rows, or each of its choices behind each row."""
        if self.choices is None:
            return list(self.rows)
        return [
            (*row, choice)
            for row, some in zip(self.rows, self.choices, strict=True)
            for choice in some
        ]


@dataclasses.dataclass(frozen=True)
class ReadyRows:
    """Arrays that are ready for an encoder.

    Args:
        x: `token_ids` and `padding_mask`, (N, S), or (N, C, S) with choices.
        labels: (N, ...) or None.
        weights: (N,) or None.
    """

    x: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    weights: np.ndarray | None = None
    single: bool = False
    kind: ClassVar[str] = "ready rows"

    def __post_init__(self) -> None:
        if missing := set(READY) - set(self.x):
            raise ValueError(
                f"Expected token_ids and padding_mask. Received: {sorted(self.x)}, without "
                f"{sorted(missing)}."
            )
        rows = {name: len(array) for name, array in self.x.items()}
        rows |= {} if self.labels is None else {"labels": len(self.labels)}
        if len(set(rows.values())) != 1 or not len(self):
            raise ValueError(f"Expected as many rows, one at least, of each. Received: {rows}.")

    def __len__(self) -> int:
        return len(self.x["token_ids"])

    def __getitem__(self, part: slice) -> "ReadyRows":
        given: list[Any] = [None if x is None else x[part] for x in (self.labels, self.weights)]
        return ReadyRows({name: array[part] for name, array in self.x.items()}, *given)


def as_labelled(x: Any, y: Any = None, sample_weight: Any = None) -> Labelled | ReadyRows:
    """What `x`, with labels and weights if there are any, is.

    Args:
        x: a text or texts; a tuple of columns, `(first, second)`, read one after another; a dict,
            frame or dataset with the columns `text`, `text_pair`, `choices` and `label`, or with
            `token_ids` and `padding_mask`; rows of `(text, label)`; a dataset, loader or
            generator of any of these, which must have an end.
        y: labels, one for each text.
        sample_weight: what each text counts in the loss.

    Raises:
        ValueError: if it is none of these, or the parts do not belong together.
    """
    if isinstance(x, (Labelled, ReadyRows)):
        refuse_beside(x, y=y, sample_weight=sample_weight)
        return x
    names = _column_names(x)
    if names is not None:
        return _of_columns({name: x[name] for name in names}, y, sample_weight)
    if isinstance(x, tuple) and len(x) in (2, 3) and all(map(is_texts, x)):
        return _of_texts(x, None, y, sample_weight)
    if is_single_text(x):
        return _of_texts((x,), None, y, sample_weight)
    if (stream := stream_of(x, as_labelled)) is not None:
        refuse_beside(x, y=y, sample_weight=sample_weight)
        return joined(elements(stream))
    rows = listed(x)
    first = rows[0] if len(rows) else ""
    if isinstance(first, Mapping):
        refuse_images(first)
        return _of_columns({n: [row[n] for row in rows] for n in first}, y, sample_weight)
    if isinstance(first, (tuple, list)) and y is None and not all(map(is_single_text, first)):
        return joined([as_labelled(*row) for row in rows])
    if isinstance(first, (tuple, list)):
        columns = tuple([row[i] for row in rows] for i in range(len(first)))
        return _of_texts(columns, None, y, sample_weight)
    return _of_texts((rows,), None, y, sample_weight)


def joined(parts: Iterable[Labelled | ReadyRows]) -> Labelled | ReadyRows:
    """Many as one.

    Raises:
        ValueError: if they are not all of one kind, or some of them have labels and some none.
    """
    every = list(parts)
    if not every:
        raise ValueError("Expected at least one text. Received: data of nothing.")
    if len({type(part) for part in every}) > 1:
        raise ValueError("Expected texts, or ready arrays, throughout. Received: both.")
    labels = together([part.labels for part in every], "a label")
    weights = together([part.weights for part in every], "a sample_weight")
    if isinstance(every[0], ReadyRows):
        arrays = {n: np.concatenate([part.x[n] for part in every]) for n in READY}  # type: ignore[union-attr]
        return ReadyRows(arrays, labels, weights)
    texts: list[Any] = every
    rows = [row for part in texts for row in part.rows]
    choices = [some for part in texts for some in part.choices or ()]
    return Labelled(rows, choices or None, labels, weights)


def together(arrays: Sequence[np.ndarray | None], what: str) -> np.ndarray | None:
    """Arrays of all elements as one, or None where none has any.

    Raises:
        ValueError: if some have one and others do not.
    """
    there = [array for array in arrays if array is not None]
    if len(there) not in (0, len(arrays)):
        raise ValueError(f"Expected {what} in all elements or in none. Received: some without.")
    return np.concatenate(there) if there else None


def names_of_fields(x: Any) -> list[str] | None:
    """Of a dict, a frame, a dataset or rows that are dicts; None for what has none."""
    if isinstance(x, (list, tuple)) and len(x) and isinstance(x[0], Mapping):
        return list(map(str, x[0]))
    return names_of_columns(x)


def columns_of(x: Any, names: Sequence[str]) -> dict[str, Any]:
    """What such data holds in those of its fields.

    Raises:
        ValueError: if a row lacks one.
    """
    refuse_images(names)
    if isinstance(x, (list, tuple)):
        return columns_of_rows(x, names)
    return {name: x[name] for name in names}


def columns_of_rows(rows: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    """A list of dicts as columns.

    Raises:
        ValueError: if a row lacks one.
    """
    refuse_images(rows[0] if len(rows) and isinstance(rows[0], Mapping) else ())
    for number, row in enumerate(rows):
        if missing := [n for n in names if not isinstance(row, Mapping) or n not in row]:
            raise ValueError(
                f"Expected {names} in each row. Received: row {number} without {missing}."
            )
    return {name: [row[name] for row in rows] for name in names}


def numbers_of(name: str, column: Any) -> np.ndarray:
    """(n,) float32 of a column.

    Raises:
        ValueError: if it holds something else than a number for each row.
    """
    array = np.atleast_1d(np.asarray(array_of(column)))
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise ValueError(
            f"Expected a number as the {name} of each row. Received: {array.dtype} of shape "
            f"{array.shape}."
        )
    return array.astype("float32")


def elements(stream: Stream) -> Iterator[Any]:
    """All that a stream holds.

    Raises:
        ValueError: if it has no end.
    """
    if stream.length == math.inf:
        raise ValueError(
            f"Expected data with an end. Received: a {stream.name} without one. Take some of it, "
            "such as data.take(1000)."
        )
    return track(stream.begin(0), "Reading")


def _column_names(x: Any) -> list[str] | None:
    """Those that mean something here of what has columns; None for all else."""
    names = names_of_columns(x)
    if names is None:
        return None
    refuse_images(names)
    known = [name for name in (*_TEXTS, *_LABELS, *READY) if name in names]
    if not {"text", "token_ids"} & set(known):
        raise ValueError(
            "Expected a column text (with text_pair, choices and label, where there are some), or "
            f"token_ids and padding_mask. Received: columns {list(names)}. Pass columns: "
            "fit((data['premise'], data['hypothesis']), data['label'])."
        )
    return known


def _of_columns(columns: Mapping[str, Any], y: Any, weight: Any) -> Labelled | ReadyRows:
    beside = [name for name in _LABELS if name in columns]
    if beside and y is not None:
        raise ValueError(f"Expected labels in {beside[0]} or in y. Received: both.")
    labels = columns[beside[0]] if beside else y
    if "token_ids" in columns:
        x = {name: array_of(columns[name]) for name in READY if name in columns}
        count = len(x["token_ids"])
        return ReadyRows(x, _labels(labels), weights_of(weight, count))
    texts = tuple(columns[name] for name in ("text", "text_pair") if name in columns)
    return _of_texts(texts, columns.get("choices"), labels, weight)


def _of_texts(columns: tuple, choices: Any, y: Any, weight: Any) -> Labelled:
    single = is_single_text(columns[0])
    every = [strings(column, "text") for column in columns]
    if len({len(column) for column in every}) > 1:
        raise ValueError(
            f"Expected as many texts in each column. Received: {[len(c) for c in every]}."
        )
    rows = list(zip(*every, strict=True))
    if choices is not None:
        choices = [choices] if single else listed(choices)
        choices = [tuple(strings(some, f"choices of row {i}")) for i, some in enumerate(choices)]
        if len(choices) != len(rows):
            raise ValueError(
                f"Expected choices for each of {len(rows)} texts. Received: {len(choices)}."
            )
    return Labelled(rows, choices, _labels(y), weights_of(weight, len(rows)), single)


def _labels(y: Any) -> np.ndarray | None:
    if y is None:
        return None
    labels = np.array([y]) if isinstance(y, str) else np.asarray(array_of(y))
    return labels[None] if labels.ndim == 0 else labels


@dataclasses.dataclass(frozen=True)
class Classes:
    """What a label may be.

    Args:
        count: of classes.
        names: one for each, or None where labels are numbers.
        class_weight: what rows of a class count, by number; 1 for the others.

    Raises:
        ValueError: if `class_weight` is no such mapping.
    """

    count: int
    names: tuple[str, ...] | None = None
    class_weight: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.class_weight or {}, Mapping):
            raise ValueError(
                f"Expected class_weight as a dict by number. Received: {self.class_weight!r}."
            )
        for number, weight in (self.class_weight or {}).items():
            check.whole("numbers of class_weight", number, least=0, most=self.count - 1)
            check.real("weights of class_weight", weight, least=0)

    def reweighted(self, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(n,) what each row counts, its class considered.

        Args:
            ids: (n,) of classes.
            weights: (n,) what it counts without it.
        """
        if self.class_weight is None:
            return weights
        each = np.array([self.class_weight.get(int(i), 1.0) for i in ids], "float32")
        return each * weights

    def ids(self, labels: np.ndarray) -> np.ndarray:
        """(n,) int32.

        Args:
            labels: (n,) numbers or, where there are names, names.

        Raises:
            ValueError: naming the row of a label that is none.
        """
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dtype.kind == "O":  # of pandas
            labels = np.array(labels.tolist())
        if labels.dtype.kind == "b":
            labels = labels.astype("int32")
        if labels.dtype.kind in "UST":
            return self._by_name(
                [x.decode() if isinstance(x, bytes) else x for x in labels.tolist()]
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"Expected an integer or a name for each text. Received: labels of "
                f"{labels.dtype}, shape {labels.shape}."
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= self.count))
        if wrong.size:
            raise ValueError(
                f"Expected labels from 0 to {self.count - 1}. Received: {labels[wrong[0]]} in row "
                f"{wrong[0]}."
            )
        return labels.astype("int32")

    def _by_name(self, labels: Iterable[Any]) -> np.ndarray:
        if self.names is None:
            raise ValueError(
                f"Expected labels from 0 to {self.count - 1}. Received: names, such as "
                f"{next(iter(labels), '')!r}. Give their order: label_names=['no', 'yes']."
            )
        numbers = {name: i for i, name in enumerate(self.names)}
        found = []
        for row, label in enumerate(labels):
            if label not in numbers:
                hint = check.nearest(str(label), self.names)
                raise ValueError(
                    f"Expected one of {list(self.names)} as a label. Received: {label!r} in row "
                    f"{row}.{hint}"
                )
            found.append(numbers[label])
        return np.array(found, "int32")
