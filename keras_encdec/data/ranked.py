"""Queries with the documents that answer them, for tasks that learn by comparing.

Knows what users hand over and how it is laid into arrays. Leaves streams and arrays that come in to
`keras_encdec.data.recognize`, and tokens to `keras_encdec.objectives.reader`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from keras_encdec.data.images import refuse_images
from keras_encdec.data.labelled import columns_of_rows, elements, numbers_of, together
from keras_encdec.data.recognize import (
    is_single_text,
    is_texts,
    listed,
    names_of_columns,
    refuse_beside,
    stream_of,
    strings,
    weights_of,
)
from keras_encdec.objectives.rows import Inputs

_NEGATIVES = "negative", "negatives"
_COLUMNS = ("query", "positive", *_NEGATIVES, "score")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Queries, each with a document that answers it.

    Args:
        queries: n texts.
        positives: n documents, one for each query.
        negatives: for each query documents that do not answer it, as many as there are; or None.
        scores: (n,) how well the positive answers, from 0 to 1; or None.
        weights: (n,) what each row counts, or None.

    Raises:
        ValueError: if there are not as many of each, none at all, an empty text, a score out of
            range, or a negative that is its row's own positive.
    """

    queries: Sequence[str]
    positives: Sequence[str]
    negatives: Sequence[tuple[str, ...]] | None = None
    scores: np.ndarray | None = None
    weights: np.ndarray | None = None
    kind: ClassVar[str] = "queries and documents"

    def __post_init__(self) -> None:
        if not len(self.queries):
            raise ValueError("Expected at least one query. Received: an empty batch.")
        some = {"positive": self.positives, "negatives": self.negatives, "score": self.scores}
        for name, column in some.items():
            if column is not None and len(column) != len(self):
                raise ValueError(
                    f"Expected a {name} for each of {len(self)} queries. Received: {len(column)}."
                )
        for number in range(len(self)):
            self._check_row(number)
        for number, score in enumerate([] if self.scores is None else self.scores):
            if not 0 <= score <= 1:  # nor NaN
                raise ValueError(
                    f"Expected a score from 0 to 1. Received: {score} in row {number}."
                )

    def _check_row(self, number: int) -> None:
        negatives = self.negatives[number] if self.negatives is not None else ()
        texts = {"query": (self.queries[number],), "positive": (self.positives[number],)}
        for name, column in {**texts, "negative": negatives}.items():
            if not all(text.strip() for text in column):
                raise ValueError(
                    f"Expected text as {name} of row {number}. Received: an empty one. Leave such "
                    "rows out."
                )
        if self.positives[number] in negatives:
            raise ValueError(
                f"Expected negatives other than the positive. Received: "
                f"{self.positives[number][:60]!r} as both in row {number}."
            )

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, part: slice) -> "Ranked":
        given: tuple[Any, ...] = self.negatives, self.scores, self.weights
        some: list[Any] = [None if x is None else x[part] for x in given]
        return Ranked(self.queries[part], self.positives[part], *some)

    @property
    def documents(self) -> list[tuple[str, ...]]:
        """Of each row, the positive first."""
        negatives = self.negatives or [()] * len(self)
        return [(one, *some) for one, some in zip(self.positives, negatives, strict=True)]


def as_ranked(x: Any, y: Any = None, sample_weight: Any = None) -> Ranked:
    """What `x`, with documents and weights if there are any, is.

    Args:
        x: queries, where `y` has their documents; a dict, frame or dataset with the columns
            `query` and `positive` and, where there are some, `negative` or `negatives` (a text or
            several for each row) and `score`; a tuple of columns `(queries, positives)` or
            `(queries, positives, negatives)`; rows of either kind; or a dataset, loader or
            generator of any of these, which must have an end.
        y: a document for each query.
        sample_weight: what each row counts in the loss.

    Raises:
        ValueError: if it is none of these, or the parts do not belong together.
    """
    if isinstance(x, Ranked):
        refuse_beside(x, y=y, sample_weight=sample_weight)
        return x
    if (names := names_of_columns(x)) is not None:
        refuse_images(names)
        return _of_columns({name: x[name] for name in _known(names)}, y, sample_weight)
    if y is not None:
        return _of_columns({"query": x, "positive": y}, None, sample_weight)
    if isinstance(x, tuple) and len(x) in (2, 3) and all(map(is_texts, x[:2])):
        return _of_tuple(x, sample_weight)
    if (stream := stream_of(x, as_ranked)) is not None:
        refuse_beside(x, sample_weight=sample_weight)
        return _joined(elements(stream))
    rows = listed(x)
    first = rows[0] if len(rows) else ""
    if isinstance(first, Mapping):
        names = _known(list(first))
        return _of_columns(columns_of_rows(rows, names), None, sample_weight)
    if isinstance(first, (tuple, list)) and len({len(row) for row in rows}) == 1:
        return _of_tuple(tuple([row[i] for row in rows] for i in range(len(first))), sample_weight)
    raise ValueError(
        "Expected queries and the documents that answer them, such as fit(queries, documents) or "
        f"columns query and positive. Received: {type(x).__name__} of {type(first).__name__}."
    )


def as_judged(x: Any, y: Any = None, sample_weight: Any = None) -> Ranked:
    """As `as_ranked`; or documents that come one by one, each with a label.

    Args:
        x: what `as_ranked` takes; or a dict, frame or dataset with the columns `query`,
            `document` and, unless `y` has them, `label`; `(queries, documents)`, where `y` has
            labels; a list of `(query, document, label)` or of such dicts; or a dataset, loader or
            generator of any of these, which must have an end, and whose tuples are Keras'
            `(x, y, sample_weight)`.
        y: labels, one for each document, where `x` has it; else as of `as_ranked`.
        sample_weight: what each row counts in the loss.

    Returns:
        `Ranked`; labels, from 0 for a document that does not answer to 1, are its `scores`.

    Raises:
        ValueError: as `as_ranked`.
    """
    columns = None if isinstance(x, Ranked) else _judged_columns(x, y)
    if columns is not None:
        return _of_columns(columns, None, sample_weight)
    if y is None and names_of_columns(x) is None and not isinstance(x, tuple):
        stream = stream_of(x, as_judged)
        if stream is not None:
            refuse_beside(x, sample_weight=sample_weight)
            return _joined(elements(stream))
    return as_ranked(x, y, sample_weight)


def _judged_columns(x: Any, y: Any) -> dict[str, Any] | None:
    """Columns as of `as_ranked` of what has documents with labels; None for all else."""
    names = names_of_columns(x)
    refuse_images(names or ())
    if names is not None:
        columns = {name: x[name] for name in names} if "document" in names else None
    elif isinstance(x, tuple) and len(x) == 2 and y is not None and all(map(is_texts, x)):
        columns = {"query": x[0], "document": x[1]}
    else:
        columns = _columns_of_judged_rows(x)
    if columns is None:
        return None
    if y is not None and "label" in columns:
        raise ValueError("Expected labels in label or in y. Received: both.")
    if "query" not in columns or "positive" in columns:
        raise ValueError(
            "Expected columns query, document and label, or query, positive and negatives. "
            f"Received: {list(columns)}."
        )
    label = columns.get("label", y)
    scores = {} if label is None else {"score": label}
    return {"query": columns["query"], "positive": columns["document"], **scores}


def _columns_of_judged_rows(x: Any) -> dict[str, Any] | None:
    if not isinstance(x, (list, tuple)) or not len(x):
        return None
    if isinstance(x[0], Mapping) and "document" in x[0]:
        names = [name for name in ("query", "document", "label") if name in x[0]]
        return columns_of_rows(x, names)
    if isinstance(x[0], (list, tuple)) and len(x[0]) == 3 and np.isreal(x[0][2]) is True:
        return dict(zip(("query", "document", "label"), zip(*x, strict=True), strict=True))
    return None


def _known(names: Sequence[str]) -> list[str]:
    known = [name for name in _COLUMNS if name in names]
    if "query" not in known:
        raise ValueError(
            "Expected columns query and positive (with negatives and score, where there are "
            f"some). Received: columns {list(names)}. Rename them, or pass columns: "
            "fit(data['question'], data['answer'])."
        )
    return known


def _of_tuple(columns: tuple, weight: Any) -> Ranked:
    if len(columns) not in (2, 3):
        raise ValueError(
            "Expected (query, positive) or (query, positive, negatives). Received: rows of "
            f"{len(columns)}."
        )
    return _of_columns(
        dict(zip(("query", "positive", "negatives"), columns, strict=False)), None, weight
    )


def _of_columns(columns: Mapping[str, Any], y: Any, weight: Any) -> Ranked:
    if y is not None and "positive" in columns:
        raise ValueError("Expected documents in positive or in y. Received: both.")
    positive = columns.get("positive", y)
    given = [name for name in _NEGATIVES if name in columns]
    if positive is None or len(given) > 1:
        raise ValueError(
            "Expected a column positive, or documents as y, and negatives under one name. "
            f"Received: columns {list(columns)}."
        )
    single = is_single_text(columns["query"])
    queries = strings(columns["query"], "query")
    negatives = None
    if given:
        column = columns[given[0]]
        several = [column] if single else listed(column)
        negatives = [
            tuple(strings(some, f"negatives of row {i}")) for i, some in enumerate(several)
        ]
    scores = columns.get("score")
    if scores is not None:
        scores = numbers_of("score", scores)
    texts = strings(positive, "positive")
    return Ranked(queries, texts, negatives, scores, weights_of(weight, len(queries)))


def _joined(parts: Iterable[Any]) -> Ranked:
    every: list[Ranked] = list(parts)
    if not every:
        raise ValueError("Expected at least one query. Received: data of nothing.")
    scores = together([part.scores for part in every], "a score")
    weights = together([part.weights for part in every], "a sample_weight")
    negatives = [some for part in every for some in part.negatives or [()] * len(part)]
    return Ranked(
        [text for part in every for text in part.queries],
        [text for part in every for text in part.positives],
        negatives if any(negatives) else None,
        scores,
        weights,
    )


@dataclasses.dataclass(frozen=True)
class Distinct:
    """The different texts among some, each with a number.

    Args:
        texts: each once, in the order in which they come first.
        numbers: of each text that was given.
    """

    texts: list[str]
    numbers: list[int]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Distinct":
        """Those of all texts."""
        found: dict[str, int] = {}
        numbers = [found.setdefault(text, len(found)) for text in texts]
        return cls(list(found), numbers)


class SidedReader(Protocol):
    """What lays queries and documents into rows: a reader of `keras_encdec.objectives.reader`."""

    def laid(self, texts: Sequence[str], side: str) -> Inputs: ...


def ranked_inputs(source: Ranked, reader: SidedReader) -> Inputs:
    """Queries and documents as arrays; each different text is tokenised once.

    Args:
        source: n rows; K negatives at most.
        reader: of the sides `"query"` and `"document"`.

    Returns:
        `query_token_ids`, `query_padding_mask` (n, T) and `query_ids` (n,), which tells texts
        apart; of documents, the positive first, likewise (n, 1 + K, S) and (n, 1 + K). Documents
        of a row that has fewer negatives than others are padding alone.
    """
    documents = source.documents
    each = max(map(len, documents))
    sizes = np.array([len(row) for row in documents])
    there = np.arange(each) < sizes[:, None]
    found = _laid(Distinct.of(source.queries), reader, "query")
    flat = Distinct.of(text for row in documents for text in row)
    for name, array in _laid(flat, reader, "document").items():
        whole = np.zeros((*there.shape, *array.shape[1:]), "int32")
        whole[there] = array
        found[name] = whole
    return found


def _laid(texts: Distinct, reader: SidedReader, side: str) -> Inputs:
    laid = reader.laid(texts.texts, side).items()
    found = {f"{side}_{name}": array[texts.numbers] for name, array in laid}
    return {**found, f"{side}_ids": np.array(texts.numbers, "int32")}
