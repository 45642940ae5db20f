"""Tells what data is, once and for all: `as_source`.

Knows how Python, NumPy, pandas, Hugging Face, tf.data, Grain, PyTorch and Keras hand data
over, by what their objects can do: none of these libraries is imported for it. Leaves what
a kind holds to `keras_encdec.data.kinds`.
"""

import dataclasses
import itertools
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import grain
import keras
import numpy as np

from keras_encdec import check
from keras_encdec.data.arrays import array_of, short, weights_of
from keras_encdec.data.conversations import of_columns, of_messages
from keras_encdec.data.images import OF_IMAGES, image_column, images_of
from keras_encdec.data.kinds import (
    INPUTS,
    Conversations,
    Document,
    Documents,
    ModelInputs,
    Pairs,
    Source,
    Stream,
    Tokens,
)
from keras_encdec.objectives.images import IMAGES

# Batches are made in one thread, a few ahead: NumPy holds the interpreter either way.
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)

_COMPLETED = "prompt", "completion"
_READ = "encoder_text", "inputs", "text", "prompt"  # what a row with images may read, and write
_WRITTEN = "decoder_text", "targets", "completion"
_COLUMNS = tuple(dict.fromkeys(("text", *_READ, *_WRITTEN, "messages", *OF_IMAGES, *INPUTS)))
_NOT_ALONE = {"prompt"}, {"completion"}, {"targets"}
_TEXT = (str, bytes)

Make = Callable[..., Any]  # what an element of a stream is


def as_source(x: Any, y: Any = None, sample_weight: Any = None, field: str = "text") -> Source:
    """What `x`, with targets and weights if there are any, is.

    Args:
        x: a text or texts; pairs as a dict or a tuple of columns, as rows or with `y`;
            conversations as `messages`, or `prompt` and `completion`; model inputs;
            `keras_encdec.data.read(...)`, `Tokens`; a frame, dataset, loader or generator of any
            of these. See README's table.
        y: targets: texts to write where `x` is text to read, or labels of model inputs.
        sample_weight: what each row, or each of its targets, counts in the loss.
        field: the column that holds plain text.

    Returns:
        `Documents`, `Pairs`, `Conversations`, `Tokens`, `ModelInputs` or `Stream`.

    Raises:
        ValueError: if it is none of these, or the parts do not belong together; the
            message says what was expected.
    """
    if isinstance(x, Conversations) and x.images is None:
        x = of_messages(x)  # of a file, whose messages may have parts
    if isinstance(x, (Documents, Tokens, Pairs, Conversations, ModelInputs, Stream)):
        return _as_it_is(x, y, sample_weight)
    columns = _columns(x, field)
    if columns is not None:
        return _of_columns(columns, y, sample_weight, field)
    if is_single_text(x):
        return _of_text(x, y, sample_weight)
    if (stream := stream_of(x, partial(as_source, field=field))) is not None:
        refuse_beside(x, y=y, sample_weight=sample_weight)
        return stream
    if y is None and _are_columns(x):
        inputs, targets, *weights = x
        if weights:
            refuse_beside(x, sample_weight=sample_weight)
        return as_source(inputs, targets, weights[0] if weights else sample_weight, field)
    return _of_sequence(listed(x), y, sample_weight, field)


def unpacked(data: Any) -> tuple[Any, Any, Any]:
    """`validation_data` as `(x, y, sample_weight)`, as in Keras.

    Raises:
        ValueError: for a tuple of strings, which could be texts or a pair.
    """
    if not isinstance(data, tuple) or len(data) > 3:
        return data, None, None
    if data and all(isinstance(part, _TEXT) for part in data):
        raise ValueError(
            "Expected (inputs, targets) of lists, or a list of texts. Received: a tuple of "
            f"{len(data)} strings, which could be either."
        )
    x, y, weight = (*data, None, None)[:3]
    return x, y, weight


def documents(texts: Any, field: str = "text") -> Iterator[Document]:
    """Any kind of plain text as documents.

    Raises:
        ValueError: if something among them is not text; the message names it.
    """
    source = as_source(texts, field=field)
    if isinstance(source, Stream):
        source = source.collected()
    if not isinstance(source, Documents):
        raise ValueError(f"Expected plain texts. Received: {type(texts).__name__} of other data.")
    return iter(source)


# Columns: dicts, frames and datasets.


def _columns(x: Any, field: str) -> dict[str, Any] | None:
    """The columns that are known of something that has columns; None for all else."""
    names = names_of_columns(x)
    return None if names is None else {name: x[name] for name in _known(names, field)}


def names_of_columns(x: Any) -> list[str] | None:
    """Of a dict, frame or dataset; None for what has no columns.

    Raises:
        ValueError: for a dict of datasets.
    """
    names = getattr(x, "column_names", None)
    if isinstance(x, Mapping):
        if isinstance(names, Mapping):
            raise ValueError(
                f"Expected one dataset. Received: a dict of {sorted(x)}. Choose one, such as "
                f"data[{next(iter(sorted(x)))!r}]."
            )
        names = list(x)
    elif hasattr(x, "columns") and not callable(x.columns) and not isinstance(x, np.ndarray):
        names = list(x.columns)  # pandas, polars
    return None if names is None or not isinstance(x, Sized) else list(map(str, names))


def _known(names: Sequence[str], field: str) -> list[str]:
    """Those of the columns that mean something here.

    Raises:
        ValueError: if there are none.
    """
    wanted = _COLUMNS if field == "text" else (field,)
    known = [name for name in wanted if name in names]
    if set(known).difference(OF_IMAGES) and set(known) not in _NOT_ALONE:
        return known
    if field != "text":
        raise ValueError(f"Expected a column {field!r}. Received: a dataset with columns {names}.")
    hint = next(filter(None, (check.nearest(name, _COLUMNS, cutoff=0.8) for name in names)), "")
    if {"role", "content"} <= set(names):
        hint = " Messages of conversations are a column: {'messages': [...]}."
    if "prompts" in names:
        hint = " KerasHub's prompts and responses are inputs and targets here."
    raise ValueError(
        "Expected columns encoder_text and decoder_text (pairs), text (plain text), messages or "
        "prompt and completion (conversations), or the four model inputs. Received: columns "
        f"{names}.{hint} Rename them, or pass two columns: fit(data['document'], data['summary'])."
    )


def _of_columns(columns: dict[str, Any], y: Any, weight: Any, field: str) -> Source:
    seen = image_column(columns)
    if any(name in columns for name in INPUTS):
        x = {name: array_of(columns[name]) for name in INPUTS if name in columns}
        x |= {IMAGES: array_of(columns[seen])} if seen else {}
        labels = {k: array_of(v) for k, v in y.items()} if isinstance(y, Mapping) else array_of(y)
        return ModelInputs(x, labels, array_of(weight))
    are_pairs = "encoder_text" in columns or "decoder_text" in columns
    if are_pairs and not seen:
        return _of_pairs(columns, y, weight)
    said = {name: listed(columns[name]) for name in ("messages", *_COMPLETED) if name in columns}
    beside = columns[seen] if seen else None
    if not are_pairs and (found := of_columns(said, beside)) is not None:
        return _as_it_is(found, y, weight)
    if seen:
        return _of_images(columns, beside, y, weight)
    if set(_COMPLETED) <= set(said):
        prompt, completion = (columns[name] for name in _COMPLETED)
        return _of_pairs({"encoder_text": prompt, "decoder_text": completion}, y, weight)
    if "inputs" in columns and "text" not in columns:
        return _of_pairs(_as_pairs(columns), y, weight)
    return as_source(columns[field], y, weight)


def _as_pairs(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns that are read and written, by the names of those of pairs."""
    sides = {"encoder_text": _READ, "decoder_text": _WRITTEN}
    there = {side: [n for n in names if n in columns] for side, names in sides.items()}
    return {side: columns[names[0]] for side, names in there.items() if names}


def _of_images(columns: dict[str, Any], images: Any, y: Any, weight: Any) -> Pairs:
    pairs = _of_pairs(_as_pairs(columns), y, weight)
    return dataclasses.replace(pairs, images=images_of(images, len(pairs), pairs.single))


def _of_pairs(columns: dict[str, Any], y: Any, weight: Any) -> Pairs:
    if "encoder_text" not in columns:
        raise ValueError(
            "Expected encoder_text beside decoder_text. "
            f"Received: keys {sorted(columns)}, without ['encoder_text']."
        )
    if y is not None and "decoder_text" in columns:
        raise ValueError("Expected targets in decoder_text or in y. Received: both.")
    read, written = columns["encoder_text"], columns.get("decoder_text", y)
    single = is_single_text(read)
    if written is not None and is_single_text(written) != single:
        raise ValueError(
            "Expected as many encoder_text as decoder_text. Received: one text, and several."
        )
    texts = strings(read, "encoder_text")
    targets = None if written is None else strings(written, "decoder_text")
    return Pairs(texts, targets, weights_of(weight, len(texts)), single)


# Texts and sequences.


def _of_text(x: Any, y: Any, weight: Any) -> Documents | Pairs:
    if y is not None:
        return _of_pairs({"encoder_text": x}, y, weight)
    return Documents(lambda: _numbered([x]), weights_of(weight, 1), single=True)


def _of_sequence(x: Sequence[Any], y: Any, weight: Any, field: str) -> Source:
    """A list, by what its first element is."""
    first = x[0] if len(x) else ""
    if isinstance(first, Mapping):
        return _of_rows(x, y, weight, field)
    if isinstance(first, (tuple, list)) and y is None:
        make = partial(as_source, field=field)
        whole = Stream(lambda skip: _elements(x[skip:], make), type(x).__name__, len(x))
        return _as_it_is(whole.collected(), None, weight)
    if _is_numeric(first):
        raise ValueError(
            "Expected text, pairs of texts, or a dict of the four model inputs. Received: "
            f"{short(first)} of type {type(first).__name__} in a {type(x).__name__}."
        )
    if y is not None:
        return _of_pairs({"encoder_text": x}, y, weight)
    return Documents(lambda: _numbered(x), weights_of(weight, len(x)))


def _are_columns(x: Any) -> bool:
    """Whether it is `(inputs, targets)` or `(inputs, targets, weights)`, as Keras has data."""
    return isinstance(x, tuple) and len(x) in (2, 3) and all(map(_is_column, x[:2]))


def _is_column(x: Any) -> bool:
    """Whether it is texts; a tuple of them is a row."""
    return not isinstance(x, tuple) and not is_single_text(x) and is_texts(x)


def _of_rows(rows: Sequence[Mapping], y: Any, weight: Any, field: str) -> Source:
    """A list of dicts, as the columns that all of them have; images may be of some alone."""
    every = itertools.chain.from_iterable(row for row in rows if isinstance(row, Mapping))
    seen = set(every).intersection(OF_IMAGES)
    names = _known([*map(str, rows[0]), *sorted(seen.difference(rows[0]))], field)
    needed = [name for name in names if name not in seen]
    for number, row in enumerate(rows):
        if missing := [n for n in needed if not isinstance(row, Mapping) or n not in row]:
            raise ValueError(
                f"Expected {needed} in each row. Received: row {number} without {missing}."
            )
    return _of_columns({n: [row.get(n) for row in rows] for n in names}, y, weight, field)


def _numbered(texts: Iterable[Any]) -> Iterator[Document]:
    for number, text in enumerate(texts):
        yield Document(f"text {number}", _scalar(text))


def strings(texts: Any, what: str) -> list[str]:
    """Texts of a column, checked one by one."""
    if is_single_text(texts):
        texts = [texts]
    every = enumerate(listed(texts))
    return [check.text(f"{what} of row {n}", _scalar(text)) for n, text in every]


# Streams.


def stream_of(x: Any, make: Make) -> Stream | None:
    """What can only be gone through; None for what can be indexed.

    Args:
        x: data.
        make: what each of its elements is, of `(x)`, `(x, y)` or `(x, y, sample_weight)`.
    """
    name = type(x).__name__
    if hasattr(x, "element_spec") and hasattr(x, "as_numpy_iterator"):  # tf.data
        length: float | None = int(x.cardinality())
        length = {-1: math.inf, -2: None}.get(int(length or 0), length)
        return Stream(lambda skip: _elements(x.skip(skip).as_numpy_iterator(), make), name, length)
    if isinstance(x, grain.MapDataset):
        length = math.inf if len(x) >= sys.maxsize else len(x)
        return Stream(
            lambda skip: _elements(x[skip:].to_iter_dataset(READ_AHEAD), make), name, length
        )
    if isinstance(x, keras.utils.PyDataset):
        count = x.num_batches
        return Stream(
            lambda skip: _elements(_of_py_dataset(x, skip), make),
            name,
            math.inf if count is None else count,
        )
    if isinstance(x, Iterator):
        return _once(_elements(x, make), name)
    if isinstance(x, Iterable) and not isinstance(x, (Sequence, np.ndarray)) and _is_lazy(x):
        count = len(x) if isinstance(x, Sized) else None
        return Stream(lambda skip: itertools.islice(_elements(x, make), skip, None), name, count)
    return None


def _once(elements: Iterator[Source], name: str) -> Stream:
    """A stream that cannot be begun again: a second pass goes on where the first one ended."""
    head = next(elements, None)
    rest = itertools.chain([] if head is None else [head], elements)
    return Stream(lambda skip: itertools.islice(rest, skip, None), name, again=False, head=head)


def _is_lazy(x: Any) -> bool:
    """Whether it is a dataset or loader rather than something that lies in memory."""
    return not hasattr(x, "__array__") and not hasattr(x, "to_numpy")


def _of_py_dataset(data: Any, skip: int) -> Iterator[Any]:
    data.on_epoch_begin()
    numbers: Iterator[int] = itertools.count(skip)
    if data.num_batches is not None:
        numbers = itertools.takewhile(lambda n: n < data.num_batches, numbers)
    for number in numbers:
        yield data[number]
    data.on_epoch_end()


def _elements(elements: Iterable[Any], make: Make) -> Iterator[Source]:
    """Each element as a source: tuples are `(x, y)` or `(x, y, sample_weight)`."""
    for element in elements:
        if isinstance(element, list) and element and isinstance(element[0], (tuple, Mapping)):
            # PyTorch's loaders give [inputs, targets] for a batch of pairs.
            is_columns = len(element) <= 3 and not isinstance(element[-1], Mapping)
            element = tuple(element) if is_columns else element
        if isinstance(element, tuple):
            yield make(*element[:3])
        else:
            yield make(element)


# Arrays of any framework.


def listed(x: Any) -> Sequence[Any]:
    """Something in memory as a sequence of its first axis."""
    x = array_of(x) if hasattr(x, "numpy") or hasattr(x, "__array__") else x
    if isinstance(x, np.ndarray):
        if x.ndim == 2 and x.shape[1] == 1 and x.dtype.kind in "USOT":
            x = x[:, 0]
        return x.tolist() if x.ndim == 1 and x.dtype.kind in "USOT" else x
    if isinstance(x, Sequence):
        return x
    if isinstance(x, Sized) and hasattr(x, "__getitem__"):  # PyTorch's datasets
        return [x[i] for i in range(len(x))]
    raise ValueError(
        "Expected text, pairs, model inputs, a dataset or a generator. "
        f"Received: {short(x)} of type {type(x).__name__}."
    )


def is_single_text(x: Any) -> bool:
    """Whether it is one string rather than several: also as an array or tensor of no axis."""
    if isinstance(x, _TEXT):
        return True
    return getattr(x, "shape", None) == () and isinstance(_scalar(x), _TEXT)


def is_texts(x: Any) -> bool:
    """Whether it is a text, or texts."""
    if is_single_text(x):
        return True
    first = next(_first(x), None)
    return first is not None and is_single_text(first)


def _first(x: Any) -> Iterator[Any]:
    if isinstance(x, (list, tuple, np.ndarray)) or hasattr(x, "__array__"):
        yield from listed(x)[:1]
    elif isinstance(x, Sequence) and len(x):
        yield x[0]


def _scalar(x: Any) -> Any:
    """An array or tensor of no axis as what it holds."""
    if getattr(x, "shape", None) != () or isinstance(x, _TEXT):
        return x
    return array_of(x).item()


def _is_numeric(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "biufc"
    return isinstance(x, numbers.Number)


def _as_it_is(x: Source, y: Any, weight: Any) -> Source:
    refuse_beside(x, y=y)
    if isinstance(x, (Documents, Pairs, Conversations, Tokens)) and weight is not None:
        weights = weights_of(weight, np.shape(array_of(weight))[0])
        return x if weights is None else x.weighted(weights)
    refuse_beside(x, sample_weight=weight)
    return x


def refuse_beside(x: Any, **given: Any) -> None:
    if names := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f"Expected {' and '.join(names)} inside the data. Received: {' and '.join(names)} "
            f"beside a {type(x).__name__}. Let its elements be (x, y) or (x, y, sample_weight)."
        )
