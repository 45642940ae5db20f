"""Texts to tokens, once for many epochs or many runs.

Knows what is left out, and how to go on after a kill. Leaves the stream of tokens to
`keras_encdec.data.tokens`, and what a text is to `keras_encdec.data.recognize`.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.data.kinds import Document, Documents, Stream
from keras_encdec.data.recognize import as_source
from keras_encdec.data.shards import ShardWriter
from keras_encdec.data.tokens import KIND, InMemory, Tokens, vocabulary_digest
from keras_encdec.objectives.control import SENTINELS, plain
from keras_encdec.objectives.sentinels import sentinel_ids
from keras_encdec.objectives.tokenizer import encode
from keras_encdec.progress import say, track

_TOGETHER = 512  # documents given to the tokenizer at once


def tokenize(
    texts: Any,
    tokenizer: Any,
    folder: str | os.PathLike | None = None,
    *,
    field: str = "text",
    shard_size: int = 2**24,
    allow_special: bool = False,
) -> Tokens:
    """Tokenises documents once, for many epochs or many runs.

    Documents that are empty, or hold one of the tokenizer's sentinels, are left out;
    how many, and the first of them, is printed at the end and kept in `skipped`.

    Args:
        texts: `read(...)`, a list, a column, a dataset or a generator of strings.
        tokenizer: `keras_hub.tokenizers.Tokenizer`.
        folder: where shards are written; None keeps the tokens in memory. After a kill,
            the same call goes on behind the last whole shard.
        field: the column of a dataset.
        shard_size: a shard is written when it has this many tokens.
        allow_special: whether control tokens that texts spell are those tokens; else they
            are plain text.

    Returns:
        `Tokens`.

    Raises:
        ValueError: if something is not text; or if the folder was begun with another
            tokenizer or other texts, is finished, or holds something else.
    """
    shard_size = check.whole("shard_size", shard_size)
    if not hasattr(tokenizer, "get_vocabulary"):
        raise ValueError(f"Expected a tokenizer of KerasHub. Received: {tokenizer!r}.")
    found, log = _documents(texts, field), Log()
    source = iter(found)
    if folder is None:
        parts = list(_parts(source, tokenizer, shard_size, log, allow_special))
        log.report()
        chunks = [InMemory(part["tokens"]) for part in parts]
        lengths = np.concatenate([*(part["lengths"] for part in parts), np.zeros(0, "int64")])
        sizes = [len(part["tokens"]) for part in parts]
        return Tokens(chunks, lengths, sizes, log.skipped, weights=log.kept(found.weights))
    if found.weights is not None:
        raise ValueError("Expected texts alone for a folder of tokens. Received: sample_weight.")
    about = {"vocabulary": vocabulary_digest(tokenizer), "shard_size": shard_size}
    if check.flag("allow_special", allow_special):
        about["allow_special"] = True
    with ShardWriter(folder, KIND, about) as writer:
        if writer.shards:
            log.replay(source, writer.shards[-1])
        for part in _parts(source, tokenizer, shard_size, log, allow_special):
            writer.write(part, log.facts())
        writer.finish(log.facts())
    log.report()
    return Tokens.load(folder)


def _documents(texts: Any, field: str) -> Documents:
    source = as_source(texts, field=field)
    if isinstance(source, Stream):
        source = source.collected()
    if isinstance(source, Documents):
        return source
    raise ValueError(f"Expected plain texts. Received: {type(texts).__name__} of other data.")


class Log:
    """What has been read: how many documents, which text, and what was left out."""

    def __init__(self) -> None:
        self.read, self.hash = 0, hashlib.sha256()
        self.skipped: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self.left_out: list[int] = []

    def see(self, document: Document) -> None:
        self.read += 1
        self.hash.update(document.text.encode() + b"\0")

    def skip(self, document: Document, reason: str, number: int) -> None:
        self.left_out.append(number)
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

    def kept(self, weights: np.ndarray | None) -> np.ndarray | None:
        """The weights of the documents that were not left out."""
        if weights is not None and weights.shape != (self.read,):
            raise ValueError(
                f"Expected a sample_weight for each of {self.read} texts. "
                f"Received: shape {weights.shape}."
            )
        return None if weights is None else np.delete(weights, self.left_out)

    def report(self) -> None:
        for reason, count in self.skipped.items():
            say(f"Left out {count} of {self.read} documents: {reason}, first {self.first[reason]}")


def _parts(
    source: Iterator[Document], tokenizer: Any, size: int, log: Log, allow_special: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Token ids and document lengths, in parts of at least `size` tokens save the last."""
    rows: list[np.ndarray] = []
    total = 0
    for together in track(_batched(source, _TOGETHER), "Tokenising"):
        some = [row for _, row in encoded(together, tokenizer, log, allow_special)]
        rows += some
        total += sum(map(len, some))
        if total >= size:
            yield _part(rows)
            rows, total = [], 0
    if rows:
        yield _part(rows)


def encoded(
    documents: Iterable[Document], tokenizer: Any, log: Log, allow_special: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """The tokens of documents, each with its end token and its number in `log`.

    Those that are empty, or hold a sentinel, are left out and counted.
    """
    reserved = _reserved(tokenizer)
    dtype = "uint16" if tokenizer.vocabulary_size() <= 2**16 else "int32"
    kept: list[tuple[int, Document]] = []
    for document in documents:
        number = log.read
        log.see(document)
        if document.text.strip():
            kept.append((number, document))
        else:
            log.skip(document, "they are empty", number)
    said = [document.text for _, document in kept]
    said = said if allow_special else plain(tokenizer, said, SENTINELS)
    ids = encode(tokenizer, said) if kept else []
    for (number, document), some in zip(kept, ids, strict=True):
        row = np.array([*some, tokenizer.end_token_id], dtype)
        if np.isin(row, reserved).any():
            log.skip(document, "they hold a sentinel", number)
        else:
            yield number, row


def _part(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    lengths = np.array([len(row) for row in rows], "int64")
    return {"tokens": np.concatenate(rows), "lengths": lengths}


def _batched(source: Iterable[Document], size: int) -> Iterator[Sequence[Document]]:
    source = iter(source)
    while batch := list(itertools.islice(source, size)):
        yield batch


def _reserved(tokenizer: Any) -> np.ndarray:
    try:
        return np.array(sentinel_ids(tokenizer))
    except ValueError:  # has none, and needs none for PrefixLM
        return np.zeros(0, "int64")
