"""Documents as one stream of tokens, in memory or in shards on disk.

Knows what is tokenised, what is left out and where documents end. Leaves windows and
examples to `keras_encdec.objectives`, their order to `keras_encdec.data.pipeline`.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from keras_encdec.data.read import Document, documents
from keras_encdec.data.shards import Shards, ShardWriter
from keras_encdec.objectives.sentinels import sentinel_ids
from keras_encdec.objectives.tokenizer import encode
from keras_encdec.progress import say, track

KIND = "tokens"
_TOGETHER = 512  # documents given to the tokenizer at once


class Tokens:
    """A stream of tokenised documents, each with its end token.

    `tokens[start:stop]` reads a stretch of it, across documents and shards.

    Args:
        chunks: callables that return consecutive stretches of the stream.
        lengths: (d,) tokens of each document.
        chunk_sizes: tokens of each chunk.
        skipped: how many documents were left out, by reason.
        vocabulary: digest of the tokenizer's pieces, where it is known.
    """

    def __init__(self, chunks, lengths, chunk_sizes, skipped=None, vocabulary=None):
        self.lengths = np.asarray(lengths, "int64")
        self.skipped = dict(skipped or {})
        self.vocabulary = vocabulary
        self._chunks = list(chunks)
        self._ends = np.cumsum(np.asarray(chunk_sizes, "int64"))

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
        return cls([_Kept(stream)], [len(array) for array in checked], [len(stream)])

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Tokens":
        """Opens a folder that `tokenize` has written; a shard is checked when first read.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is unfinished or, when read, damaged.
        """
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

    def document_at(self, position: int) -> int:
        """The number of the document that holds a position of the stream."""
        return int(np.searchsorted(np.cumsum(self.lengths), position, side="right"))

    def check_ids(self, vocabulary_size: int) -> None:
        """Refuses ids that a vocabulary does not have.

        Raises:
            ValueError: naming the document of the first.
        """
        start = 0
        for chunk in self._chunks:
            bad = np.flatnonzero(chunk() >= vocabulary_size)
            if len(bad):
                number, token = self.document_at(start + int(bad[0])), chunk()[bad[0]]
                raise ValueError(
                    f"Expected token ids below {vocabulary_size}, the tokenizer's pieces. "
                    f"Received: {token} in document {number}. Was it tokenised by another?"
                )
            start += len(chunk())

    def __getitem__(self, stretch: slice) -> np.ndarray:
        start, stop, _ = stretch.indices(len(self))
        parts, chunk = [], int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = int(self._ends[chunk - 1]) if chunk else 0
            end = min(stop, int(self._ends[chunk]))
            parts.append(self._chunks[chunk]()[start - begin : end - begin])
            start, chunk = end, chunk + 1
        joined = parts[0] if len(parts) == 1 else np.concatenate([*parts, np.zeros(0, "int32")])
        return joined.astype("int32", copy=False)


class _Kept:
    def __init__(self, array):
        self.array = array

    def __call__(self):
        return self.array


class _OnDisk:
    def __init__(self, shards, number):
        self.shards, self.number = shards, number

    def __call__(self):
        return self.shards.array(self.number, "tokens")


def tokenize(
    texts,
    tokenizer,
    folder: str | os.PathLike | None = None,
    *,
    field: str = "text",
    shard_size: int = 2**24,
) -> Tokens:
    """Tokenises documents once, for many epochs or many runs.

    Documents that are empty, or hold one of the tokenizer's sentinels, are left out;
    how many, and the first of them, is printed at the end and kept in `skipped`.

    Args:
        texts: `read(...)`, a list, a Hugging Face or tf.data dataset of strings.
        tokenizer: `keras_hub.tokenizers.Tokenizer`.
        folder: where shards are written; None keeps the tokens in memory. After a kill,
            the same call goes on behind the last whole shard.
        field: the column of a dataset.
        shard_size: a shard is written when it has this many tokens.

    Returns:
        `Tokens`.

    Raises:
        ValueError: if something is not text; or if the folder was begun with another
            tokenizer or other texts, is finished, or holds something else.
    """
    source, log = documents(texts, field), _Log()
    if folder is None:
        tokens, lengths = [], []
        for part in _parts(source, tokenizer, shard_size, log):
            tokens.append(part["tokens"])
            lengths.append(part["lengths"])
        log.report()
        joined = np.concatenate([*lengths, np.zeros(0, "int64")])
        sizes = [len(part) for part in tokens]
        return Tokens([_Kept(part) for part in tokens], joined, sizes, log.skipped)
    about = {"vocabulary": vocabulary_digest(tokenizer), "shard_size": shard_size}
    writer = ShardWriter(folder, KIND, about)
    if writer.shards:
        log.replay(source, writer.shards[-1])
    for part in _parts(source, tokenizer, shard_size, log):
        writer.write(part, log.facts())
    writer.finish(log.facts())
    log.report()
    return Tokens.load(folder)


def vocabulary_digest(tokenizer) -> str:
    """Tells tokenizers apart by their pieces."""
    pieces = "\n".join(map(str, tokenizer.get_vocabulary()))
    return hashlib.sha256(pieces.encode()).hexdigest()


class _Log:
    """What has been read: how many documents, which text, and what was left out."""

    def __init__(self):
        self.read, self.hash = 0, hashlib.sha256()
        self.skipped: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def see(self, document: Document) -> None:
        self.read += 1
        self.hash.update(document.text.encode() + b"\0")

    def skip(self, document: Document, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        self.first.setdefault(reason, document.where)

    def facts(self) -> dict:
        return {
            "read": self.read,
            "text": self.hash.hexdigest(),
            "skipped": dict(self.skipped),
            "first": dict(self.first),
        }

    def replay(self, source: Iterator[Document], facts: dict) -> None:
        """Reads again, without tokenising, what is in shards already."""
        for document in itertools.islice(source, facts["read"]):
            self.see(document)
        self.skipped, self.first = dict(facts["skipped"]), dict(facts["first"])
        if self.facts() != facts:
            raise ValueError(
                f"Expected the texts that the folder was begun with. Received: others among the "
                f"first {facts['read']}. Choose another folder."
            )

    def report(self) -> None:
        for reason, count in self.skipped.items():
            say(f"Left out {count} of {self.read} documents: {reason}, first {self.first[reason]}")


def _parts(source, tokenizer, size, log) -> Iterator[dict[str, np.ndarray]]:
    """Token ids and document lengths, in parts of at least `size` tokens save the last."""
    reserved = _reserved(tokenizer)
    dtype = "uint16" if tokenizer.vocabulary_size() <= 2**16 else "int32"
    end, rows, total = tokenizer.end_token_id, [], 0
    for together in track(_batched(source, _TOGETHER), "Tokenising"):
        for document, ids in _encoded(together, tokenizer, log):
            row = np.array([*ids, end], dtype)
            if np.isin(row, reserved).any():
                log.skip(document, "they hold a sentinel")
                continue
            rows.append(row)
            total += len(row)
        if total >= size:
            yield _part(rows)
            rows, total = [], 0
    if rows:
        yield _part(rows)


def _encoded(together, tokenizer, log):
    kept = []
    for document in together:
        log.see(document)
        if document.text.strip():
            kept.append(document)
        else:
            log.skip(document, "they are empty")
    return zip(kept, encode(tokenizer, [d.text for d in kept]) if kept else [], strict=True)


def _part(rows):
    lengths = np.array([len(row) for row in rows], "int64")
    return {"tokens": np.concatenate(rows), "lengths": lengths}


def _batched(source: Iterable, size: int) -> Iterator[Sequence]:
    source = iter(source)
    while batch := list(itertools.islice(source, size)):
        yield batch


def _reserved(tokenizer) -> np.ndarray:
    try:
        return np.array(sentinel_ids(tokenizer))
    except ValueError:  # has none, and needs none for PrefixLM
        return np.zeros(0, "int64")


def _check_ids(number, array, vocabulary_size):
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
