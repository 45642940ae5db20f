"""What data is: one small class for each kind that `fit`, `generate` and the others take.

Knows what a record of each kind holds and what is wrong with one. Leaves telling the kinds
apart to `keras_encdec.data.recognize`, tokens to `keras_encdec.data.tokens`, and batches to
`keras_encdec.data.batching`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_encdec import check
from keras_encdec.data import conversations
from keras_encdec.data.conversations import Conversations
from keras_encdec.data.images import joined_images
from keras_encdec.data.tokens import Tokens
from keras_encdec.objectives.images import parts_of
from keras_encdec.objectives.rows import Inputs
from keras_encdec.progress import track

INPUTS = (
    "encoder_token_ids",
    "encoder_padding_mask",
    "decoder_token_ids",
    "decoder_padding_mask",
)


class Document(NamedTuple):
    """A text, and where it is from: `corpus.jsonl:17`, or `text 17` of a list."""

    where: str
    text: str


@dataclasses.dataclass(frozen=True)
class Documents:
    """Plain texts in a fixed order, read anew in each pass.

    Args:
        begin: begins a pass.
        weights: what each counts in the loss, or None.
        single: whether it was one text rather than several.
        paths: the files they come from, if they do.
    """

    begin: Callable[[], Iterator[Document]]
    weights: np.ndarray | None = None
    single: bool = False
    paths: tuple[Path, ...] = ()

    def __iter__(self) -> Iterator[Document]:
        for where, text in self.begin():
            yield Document(where, check.text(where, text))

    def weighted(self, weights: np.ndarray) -> "Documents":
        """The same with weights, one a text."""
        return dataclasses.replace(self, weights=weights)

    def texts(self, name: str = "text") -> list[str]:
        """All of them; `name` is what they are called in messages.

        Raises:
            ValueError: if there is none, or one is empty.
        """
        found = [document.text for document in self]
        _check_some(found, name)
        for number, text in enumerate(found):
            _check_not_empty(text, name, number)
        return found


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What the encoder reads, and what the decoder writes or begins with.

    Args:
        encoder_text: n texts.
        decoder_text: as many, or None where only prompts are asked for.
        weights: (n,) or (n, T), what each pair or each of its targets counts; or None.
        single: whether it was one pair rather than several.
        images: of each text to read its images, as of `keras_encdec.data.images.images_of`; None
            where there are none.

    Raises:
        ValueError: if there are not as many of each, none at all, or an empty one to read; or
            not as many images as their text has places for.
    """

    encoder_text: Sequence[str]
    decoder_text: Sequence[str] | None = None
    weights: np.ndarray | None = None
    single: bool = False
    images: Sequence[Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        _check_some(self.encoder_text, "encoder_text")
        if self.decoder_text is not None and len(self.decoder_text) != len(self.encoder_text):
            raise ValueError(
                "Expected as many encoder_text as decoder_text. "
                f"Received: {len(self.encoder_text)} and {len(self.decoder_text)}."
            )
        for number, text in enumerate(self.encoder_text):
            _check_not_empty(text, "encoder_text", number)
        for number, images in enumerate(self.images or ()):
            parts_of(self.encoder_text[number], len(images))

    def __len__(self) -> int:
        return len(self.encoder_text)

    def targets(self) -> Sequence[str]:
        """`decoder_text`, each with something to write.

        Raises:
            ValueError: if there are none, or an empty one; the message names its row.
        """
        if self.decoder_text is None:
            raise ValueError(
                "Expected pairs: a dict with encoder_text and decoder_text, or inputs and targets. "
                "Received: encoder_text alone, without ['decoder_text']."
            )
        for number, text in enumerate(self.decoder_text):
            _check_not_empty(text, "decoder_text", number)
        return self.decoder_text

    def weighted(self, weights: np.ndarray) -> "Pairs":
        """The same with weights.

        Raises:
            ValueError: if there are not as many.
        """
        if len(weights) != len(self):
            raise ValueError(
                f"Expected a sample_weight for each of {len(self)} pairs. Received: shape "
                f"{weights.shape}."
            )
        return dataclasses.replace(self, weights=weights)

    def __getitem__(self, part: slice) -> "Pairs":
        written = self.decoder_text
        return Pairs(
            self.encoder_text[part],
            None if written is None else written[part],
            None if self.weights is None else self.weights[part],
            images=None if self.images is None else self.images[part],
        )


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """Arrays that are ready for the model, N rows each.

    Args:
        x: the four model inputs, (N, S) and (N, T); and `images` where there are some.
        y: (N, T) labels; or a dict of `labels`, `teacher_ids` and `teacher_log_probs`; or None.
        weights: (N,) or (N, T), what labels count, or None.
    """

    x: Inputs
    y: Any = None
    weights: np.ndarray | None = None
    single: bool = False

    def __post_init__(self) -> None:
        if missing := set(INPUTS) - set(self.x):
            raise ValueError(
                f"Expected model inputs with keys {list(INPUTS)}. "
                f"Received: {sorted(self.x)}, without {sorted(missing)}."
            )
        parts = {**self.x, **as_dict(self.y, "y"), **as_dict(self.weights, "sample_weight")}
        rows = {name: len(array) if array.ndim else 0 for name, array in parts.items()}
        if len(set(rows.values())) != 1 or not len(self):
            raise ValueError(f"Expected as many rows, one at least, of each. Received: {rows}.")
        for name in INPUTS:
            if self.x[name].ndim != 2:
                raise ValueError(
                    f"Expected {name} of shape (rows, tokens). Received: {self.x[name].shape}. "
                    "Batch single rows first."
                )

    def __len__(self) -> int:
        array = self.x[INPUTS[0]]
        return len(array) if array.ndim else 0

    def __getitem__(self, part: slice) -> "ModelInputs":
        y = self.y
        if y is not None:
            y = {k: v[part] for k, v in y.items()} if isinstance(y, dict) else y[part]
        weights = None if self.weights is None else self.weights[part]
        return ModelInputs({name: array[part] for name, array in self.x.items()}, y, weights)


@dataclasses.dataclass(frozen=True)
class Stream:
    """What can only be gone through: generators, tf.data, Grain, loaders of batches.

    Args:
        begin: begins a pass behind that many elements, each of which is a source itself.
        name: of its type, for messages.
        length: elements of a pass; None where only the end tells, `math.inf` where there is
            no end.
        again: whether a second pass can be begun.
        head: the first element, where it was taken already.
    """

    begin: Callable[[int], Iterator["Source"]]
    name: str
    length: float | None = None
    again: bool = True
    head: "Source | None" = None
    single: bool = False

    @property
    def is_bounded(self) -> bool:
        """Whether it is known to have an end."""
        return self.length is not None and self.length < math.inf

    def first(self) -> "Source":
        """What the first element is; nothing is lost."""
        found = self.head or next(self.begin(0), None) if self.again else self.head
        if found is None:
            raise ValueError(f"Expected data. Received: a {self.name} of nothing.")
        return found

    def collected(self) -> "Documents | Pairs | Conversations | Stream":
        """Texts, pairs and conversations as if they stood in memory; ready batches as they are.

        Raises:
            ValueError: if there is no end, or not all elements are of one kind.
        """
        first = self.first()
        if isinstance(first, ModelInputs):
            return self
        if self.length == math.inf:
            raise ValueError(
                f"Expected steps_per_epoch with a {self.name} that has no end. Received: none."
            )
        if not isinstance(first, Documents):
            return joined(track(self.begin(0), "Reading"))
        if first.weights is None:
            return Documents(lambda: documents_of(self.begin(0)))
        parts = list(track(self.begin(0), "Reading"))
        weights: list[Any] = [getattr(part, "weights", None) for part in parts]
        if any(weight is None for weight in weights):
            raise ValueError("Expected a sample_weight in each element. Received: some without.")
        return Documents(lambda: documents_of(parts), np.concatenate(weights))


def documents_of(sources: Iterable["Source"]) -> Iterator[Document]:
    """The texts of many sources, numbered through."""
    number = 0
    for source in sources:
        if not isinstance(source, Documents):
            raise ValueError(f"Expected texts throughout. Received: {kind_of(source)} too.")
        for document in source:
            numbered = document.where.startswith("text ")
            yield Document(f"text {number}", document.text) if numbered else document
            number += 1


def joined(sources: Iterable["Source"]) -> Pairs | Conversations:
    """Pairs, or conversations, of many sources as one."""
    parts: list[Any] = []
    for number, part in enumerate(sources):
        kind = type(parts[0] if parts else part)
        if kind not in (Pairs, Conversations) or type(part) is not kind:
            first = kind_of(parts[0]) if parts else "pairs"
            raise ValueError(
                f"Expected {first} throughout. Received: {kind_of(part)} in element {number}."
            )
        parts.append(part)
    return _joined_pairs(parts) if isinstance(parts[0], Pairs) else conversations.joined(parts)


def _joined_pairs(parts: Sequence[Pairs]) -> Pairs:
    written = [part.decoder_text for part in parts]
    some = [texts for texts in written if texts is not None]
    weights = [part.weights for part in parts if part.weights is not None]
    if not {len(some), len(weights)} <= {0, len(parts)}:
        raise ValueError("Expected decoder_text and sample_weight in all elements or in none.")
    return Pairs(
        list(itertools.chain.from_iterable(part.encoder_text for part in parts)),
        list(itertools.chain.from_iterable(some)) if some else None,
        np.concatenate(weights) if weights else None,
        images=joined_images(parts),
    )


Source = Documents | Pairs | Conversations | Tokens | ModelInputs | Stream


def kind_of(source: Any) -> str:
    """What a source is, in a message."""
    names = {Documents: "texts", Pairs: "pairs", Tokens: "tokens", ModelInputs: "model inputs"}
    names |= {Conversations: "conversations"}
    return names.get(type(source), getattr(source, "kind", "a stream"))


def as_dict(value: Any, name: str) -> dict[str, Any]:
    """A dict as it is, None as an empty one, anything else under a name."""
    if value is None:
        return {}
    return value if isinstance(value, dict) else {name: value}


def _check_some(texts: Sequence[str], what: str) -> None:
    if not len(texts):
        raise ValueError(f"Expected at least one string for {what}. Received: an empty batch.")


def _check_not_empty(text: str, what: str, number: int) -> None:
    if not text.strip():
        raise ValueError(
            f"Expected text in {what} of row {number}. Received: {text!r}, which is empty. "
            "Leave such rows out."
        )
