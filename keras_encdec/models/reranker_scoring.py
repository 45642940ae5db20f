"""Which documents and queries a reranker reads together, and what it makes of them.

Knows batches, padding and programs; numbers depend on none of them. Leaves what is computed to
`keras_encdec.models.reranker` and files to `keras_encdec.data.encoded`.
"""

import abc
import operator
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_encdec import check, hosts, layout
from keras_encdec.data.encoded import EncodedDocuments
from keras_encdec.data.facts import digest
from keras_encdec.data.labelled import Labelled
from keras_encdec.data.tokens import vocabulary_digest
from keras_encdec.generation import buckets, jobs
from keras_encdec.generation.compiled import Compiled
from keras_encdec.generation.session import distributed
from keras_encdec.models.finite import check_finite
from keras_encdec.objectives.reader import PairReader, Reader
from keras_encdec.objectives.rows import Inputs
from keras_encdec.progress import track
from keras_encdec.spec import Tensor

_SMALLEST = 16  # tokens; rows are this long, or twice, four times, ...: few programs

Pooled = tuple[Tensor, Tensor]  # states (B, G, D) and their mask (B, G)

_vocabularies: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


class Programs:
    """The two halves of a reranker, compiled.

    Args:
        task: `EncDecReranker`.
    """

    def __init__(self, task: Any):
        if hosts.count() > 1:
            raise ValueError(f"Expected one process for scores. Received: {hosts.count()}.")
        self._backbone, self._task = task.backbone, task
        self.pooling = task.pooling
        self._variables = task.backbone.variables
        options = {"eager": task.run_eagerly, "xla": not task.backbone.has_experts}
        self._read, self._judge = (
            Compiled(function, self._variables, **options)
            for function in (task.documents, self._judged)
        )

    @property
    def is_current(self) -> bool:
        """Whether the backbone still has the variables that programs were made for."""
        now = self._backbone.variables
        return len(now) == len(self._variables) and all(map(operator.is_, now, self._variables))

    def read(self, x: Inputs) -> Pooled:
        """Pooled states of documents."""
        return self._read(*map(distributed, (x["token_ids"], x["padding_mask"])))

    def judge(self, places: np.ndarray, pooled: Pooled, x: Inputs) -> np.ndarray:
        """(B,) log-odds of queries, each on the states in its place of `pooled`."""
        query = distributed(x["token_ids"]), distributed(x["padding_mask"])
        return hosts.whole(self._judge(distributed(places), *pooled, *query))

    def _judged(self, places: Tensor, states: Tensor, mask: Tensor, *query: Tensor) -> Tensor:
        return self._task.log_odds(*query, *(ops.take(x, places, axis=0) for x in (states, mask)))


class Source(abc.ABC):
    """Documents, as states.

    Args:
        programs: `Programs`.
        reader: of the preprocessor.
        batch_size: documents, and queries, at a time.

    Attributes:
        texts: what the documents say, where it is at hand, or None.
    """

    texts: Any = None

    def __init__(self, programs: Programs, reader: PairReader, batch_size: int):
        self.programs, self.reader = programs, reader
        self.batch_size = check.whole("batch_size", batch_size)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def parts(self) -> Iterator[tuple[list[int], Pooled]]:
        """Numbers of some documents and their states, until there were all."""

    def log_odds(self, queries: Sequence[Sequence[int]], documents: Sequence[int]) -> np.ndarray:
        """(N,) float32.

        Args:
            queries: N rows of tokens.
            documents: N numbers, the document that each is asked of.
        """
        asked = defaultdict(list)
        for row, number in enumerate(documents):
            asked[number].append(row)
        found = np.zeros(len(queries), "float32")
        for numbers, pooled in self.parts():
            place = {row: i for i, number in enumerate(numbers) for row in asked[number]}
            for rows in self._together(list(place), [len(queries[row]) for row in place]):
                x = _laid(self.reader.reader("query"), [queries[row] for row in rows])
                places = np.zeros(len(x["token_ids"]), "int32")
                places[: len(rows)] = [place[row] for row in rows]
                found[rows] = self.programs.judge(places, pooled, x)[: len(rows)]
        return found

    def _together(self, numbers: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """Those of a length, some at a time."""
        order = [numbers[i] for i in np.argsort(lengths, kind="stable")]
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]


class Texts(Source):
    """Documents that are read.

    Args:
        programs: `Programs`.
        reader: of the preprocessor.
        batch_size: of them at a time.
        texts: for messages.
        rows: their tokens.
    """

    def __init__(
        self,
        programs: Programs,
        reader: PairReader,
        batch_size: int,
        texts: Sequence[str],
        rows: Sequence[Sequence[int]],
    ):
        super().__init__(programs, reader, batch_size)
        self.texts, self.rows = texts, rows

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self) -> Iterator[tuple[list[int], Pooled]]:
        return (
            (part, self._read(part)) for part in track(self._parts(range(len(self))), "Scoring")
        )

    def encoded(self, numbers: range) -> list[np.ndarray]:
        """(g, D) states of these documents.

        Raises:
            FloatingPointError: if one is not finite, naming its document.
        """
        found: dict[int, np.ndarray] = {}
        for part in self._parts(numbers):
            states = hosts.whole(self._read(part)[0])
            for number, row in zip(part, states, strict=False):
                found[number] = row[: -(-len(self.rows[number]) // self.programs.pooling)]
        texts = self.texts[numbers.start : numbers.stop]
        finite = [np.isfinite(found[i].astype("float32")).all() for i in numbers]
        check_finite("states", np.array(finite), texts, numbers.start)
        return [found[i] for i in numbers]

    def _parts(self, numbers: range) -> list[list[int]]:
        return self._together(numbers, [len(self.rows[i]) for i in numbers])

    def _read(self, part: Sequence[int]) -> Pooled:
        return self.programs.read(
            _laid(self.reader.reader("document"), [self.rows[i] for i in part])
        )


class Stored(Source):
    """Documents that were read before.

    Args:
        programs: `Programs`.
        reader: of the preprocessor.
        batch_size: of them at a time.
        store: `EncodedDocuments`.
    """

    def __init__(
        self, programs: Programs, reader: PairReader, batch_size: int, store: EncodedDocuments
    ):
        super().__init__(programs, reader, batch_size)
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def parts(self) -> Iterator[tuple[list[int], Pooled]]:
        for shard, numbers in enumerate(track(self.store.shards, "Scoring")):
            sizes = self.store.sizes(shard).tolist()
            for part in self._together(range(len(numbers)), sizes):
                pooled = self._filled(self.store.states(shard, part))
                yield [numbers[i] for i in part], pooled

    def _filled(self, states: Sequence[np.ndarray]) -> Pooled:
        longest = max(map(len, states))
        length = buckets.length(longest, smallest=-(-_SMALLEST // self.programs.pooling))
        rows = buckets.rows(len(states), layout.replicas())
        filled = np.zeros((rows, length, states[0].shape[1]), states[0].dtype)
        mask = np.zeros((rows, length), "int32")
        for i, row in enumerate(states):
            filled[i, : len(row)], mask[i, : len(row)] = row, 1
        return distributed(filled), distributed(mask)


def _laid(reader: Reader, rows: Sequence[Sequence[int]]) -> Inputs:
    """Rows of tokens as arrays of one of the few sizes; rows are added that hold none."""
    size = buckets.length(max(map(len, rows)), reader.sequence_length, _SMALLEST)
    count = buckets.rows(len(rows), layout.replicas())
    return reader.lay([*rows, *([[]] * (count - len(rows)))], size)


def probabilities(odds: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
    """(N,) float32 sigmoids.

    Args:
        odds: (N,) log-odds.
        texts: of the documents, for messages; None where they are not at hand.

    Raises:
        FloatingPointError: if one is not finite, naming the first.
    """
    check_finite("scores", np.isfinite(odds), texts)
    return np.exp(-np.logaddexp(0, -odds.astype("float64"))).astype("float32")


def digest_of(texts: Sequence[str]) -> str:
    """Tells documents apart by all of their texts."""
    return digest(Labelled([(text,) for text in texts]))


def about(encoder: Any, reader: Reader, pooling: int) -> dict[str, Any]:
    """What states of documents depend on, beside their text, as JSON types.

    Weights by a few values of each: any step of training that moves a weight moves these.

    Args:
        encoder: `keras_encdec.layers.encoder.Encoder`.
        reader: of documents.
        pooling: r.
    """
    return {
        "weights": jobs.identity(encoder.variables),
        "vocabulary": _vocabulary(reader.tokenizer),
        "causal": encoder.causal,
        "pooling": pooling,
        "sequence_length": reader.sequence_length,
        "allow_special": reader.allow_special,
        "dtype": encoder.compute_dtype,
    }


def _vocabulary(tokenizer: Any) -> str:
    """Its digest, made once: each call of `rank` on a folder asks for it."""
    if tokenizer not in _vocabularies:
        _vocabularies[tokenizer] = vocabulary_digest(tokenizer)
    return _vocabularies[tokenizer]
