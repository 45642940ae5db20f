"""Documents as one stream of tokens, in memory or in shards on disk.

Knows where documents begin and end. Leaves what is tokenised to
`keras_encdec.data.tokenizing`, windows and examples to `keras_encdec.objectives`, and their
order to `keras_encdec.data.pipeline`.
"""

import copy
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from keras_encdec.data.shards import Shards
from keras_encdec.files import readable

KIND = "tokens"


class Chunk(Protocol):
    """A stretch of a stream of tokens."""

    def __call__(self) -> np.ndarray: ...

    def digest(self) -> bytes: ...


class Tokens:
    """A stream of tokenised documents, each with its end token.

    `tokens[start:stop]` reads a stretch of it, across documents and shards.

    Args:
        chunks: callables that return consecutive stretches of the stream.
        lengths: (d,) tokens of each document.
        chunk_sizes: tokens of each chunk.
        skipped: how many documents were left out, by reason.
        vocabulary: digest of the tokenizer's tokens, where it is known.
        weights: (d,) what each document counts in the loss, or None.
    """

    single = False

    def __init__(
        self,
        chunks: Iterable[Chunk],
        lengths: Any,
        chunk_sizes: Sequence[int],
        skipped: Mapping[str, int] | None = None,
        vocabulary: str | None = None,
        weights: np.ndarray | None = None,
    ):
        self.lengths = np.asarray(lengths, "int64")
        self.skipped = dict(skipped or {})
        self.vocabulary = vocabulary
        self.weights = weights
        self._chunks = list(chunks)
        self._ends = np.cumsum(np.asarray(chunk_sizes, "int64"))
        self._offset = 0

    @classmethod
    def from_documents(cls, arrays: Iterable, vocabulary_size: int | None = None) -> "Tokens":
        """Wraps documents that are tokenised already, end tokens included.

        Args:
            arrays: 1-D integer arrays or lists.
            vocabulary_size: ids must be below it, if given.

        Raises:
            ValueError: if an array is not of that kind; the message says which.
        """
        checked = [_check_ids(i, array, vocabulary_size) for i, array in enumerate(arrays)]
        stream = np.concatenate(checked) if checked else np.zeros(0, "int32")
        return cls([InMemory(stream)], [len(array) for array in checked], [len(stream)])

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Tokens":
        """Opens a folder that `tokenize` has written; a shard is checked when first read.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is unfinished or, when read, damaged.
        """
        with readable("folder of tokens", folder):
            shards = Shards(folder, KIND)
            count = range(len(shards))
            lengths = [shards.array(i, "lengths") for i in count]
            return cls(
                [_OnDisk(shards, i) for i in count],
                np.concatenate([*lengths, np.zeros(0, "int64")]),
                [int(part.sum()) for part in lengths],
                shards.finished["skipped"],
                shards.about["vocabulary"],
            )

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def part(self, first: int, last: int) -> "Tokens":
        """The documents from number `first` to before `last`."""
        found = copy.copy(self)
        found._offset = self._offset + int(self.lengths[:first].sum())
        found.lengths = self.lengths[first:last]
        found.weights = None if self.weights is None else self.weights[first:last]
        return found

    def weighted(self, weights: np.ndarray) -> "Tokens":
        """The same with weights, one a document.

        Raises:
            ValueError: if there are not as many.
        """
        if weights.shape != self.lengths.shape:
            raise ValueError(
                f"Expected a sample_weight for each of {len(self.lengths)} documents. "
                f"Received: shape {weights.shape}."
            )
        found = copy.copy(self)
        found.weights = weights
        return found

    def digests(self) -> Iterator[bytes]:
        """What tells these tokens from others; of shards it is the index's."""
        yield np.array([self._offset, len(self)]).tobytes()
        yield self.lengths.tobytes()
        yield from (chunk.digest() for chunk in self._chunks)

    def document_at(self, position: int) -> int:
        """The number of the document that holds a position of the stream."""
        return int(np.searchsorted(np.cumsum(self.lengths), position, side="right"))

    def check_ids(self, vocabulary_size: int) -> None:
        """Refuses ids that a vocabulary does not have.

        Raises:
            ValueError: naming the document of the first.
        """
        start = -self._offset
        for chunk in self._chunks:
            bad = np.flatnonzero(chunk() >= vocabulary_size)
            if len(bad):
                number, token = self.document_at(start + int(bad[0])), chunk()[bad[0]]
                raise ValueError(
                    f"Expected token ids below {vocabulary_size}, the tokenizer's tokens. "
                    f"Received: {token} in document {number}. Was it tokenised by another?"
                )
            start += len(chunk())

    def __getitem__(self, stretch: slice) -> np.ndarray:
        start, stop, _ = stretch.indices(len(self))
        start, stop = start + self._offset, stop + self._offset
        parts, chunk = [], int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = int(self._ends[chunk - 1]) if chunk else 0
            end = min(stop, int(self._ends[chunk]))
            parts.append(self._chunks[chunk]()[start - begin : end - begin])
            start, chunk = end, chunk + 1
        joined = parts[0] if len(parts) == 1 else np.concatenate([*parts, np.zeros(0, "int32")])
        return joined.astype("int32", copy=False)


class InMemory:
    """A stretch of the stream as an array."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __call__(self) -> np.ndarray:
        return self.array

    def digest(self) -> bytes:
        """Of the ids, as int32."""
        return hashlib.blake2b(np.ascontiguousarray(self.array, "int32").tobytes()).digest()


class _OnDisk:
    def __init__(self, shards: Shards, number: int):
        self.shards, self.number = shards, number

    def __call__(self) -> np.ndarray:
        return self.shards.array(self.number, "tokens")

    def digest(self) -> bytes:
        return self.shards.digest(self.number, "tokens").encode()


def vocabulary_digest(tokenizer: Any) -> str:
    """Tells tokenizers apart by their tokens."""
    pieces = "\n".join(map(str, tokenizer.get_vocabulary()))
    return hashlib.sha256(pieces.encode()).hexdigest()


def _check_ids(number: int, array: Any, vocabulary_size: int | None) -> np.ndarray:
    ids = np.asarray(array)
    top = np.iinfo("int32").max if vocabulary_size is None else vocabulary_size
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(
            f"Expected document {number} to be a 1-D array of integers. "
            f"Received: {ids.dtype} of shape {ids.shape}."
        )
    if ids.size and not 0 <= ids.min() <= ids.max() < top:
        bad = int(ids.min() if ids.min() < 0 else ids.max())
        raise ValueError(
            f"Expected token ids from 0 to {top - 1} in document {number}. Received: {bad}. "
            "Was it tokenised with another tokenizer?"
        )
    return ids.astype("int32")
