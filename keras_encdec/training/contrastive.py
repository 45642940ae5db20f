"""Losses that compare: a query is to lie near its document and far from the other documents.

Knows similarities, which documents of a batch are negatives, and formulas with their sources.
Leaves vectors to the model. The documents of the other rows of a batch are negatives too, so a
row's loss depends on its batch by design: a larger one is a harder task.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor

_FAR = -1e9  # in place of the logit of a document that is not compared
_NO_LENGTH = 1e-24  # squared: shorter vectors stay as they are


def unit(vectors: Tensor) -> Tensor:
    """(..., D) float32 of length 1; zeros stay zeros, with a gradient that is finite.

    `keras.ops.normalize` has NaN for a gradient there, as rows that fill a batch would give it.
    """
    vectors = ops.cast(vectors, "float32")
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, _NO_LENGTH))


class Vectors(NamedTuple):
    """A batch as vectors; each row has one query, its positive and K hard negatives.

    Args:
        queries: (B, D).
        documents: (B, 1 + K, D), the positive first.
        query_ids: (B,) int32: rows with one id have the same query.
        document_ids: (B, 1 + K) int32, likewise.
        there: (B, 1 + K) bool: False where a row is there to fill the batch, or has fewer
            negatives than others.
        scores: (B,) from 0 to 1, how well the positive answers; None for 1.
    """

    queries: Tensor
    documents: Tensor
    query_ids: Tensor
    document_ids: Tensor
    there: Tensor
    scores: Tensor | None = None

    def cut(self, size: int) -> "Vectors":
        """The first `size` numbers of each vector."""
        queries, documents = self.queries[..., :size], self.documents[..., :size]
        return self._replace(queries=queries, documents=documents)

    def unit(self) -> "Vectors":
        """All of length 1, in float32."""
        return self._replace(queries=unit(self.queries), documents=unit(self.documents))


class Compared(NamedTuple):
    """What is known of each query and each document of a batch; M = B (1 + K).

    Args:
        cosines: (B, M) similarities.
        negative: (B, M) bool: the document is there and no known answer to the query.
        hard: (M,) bool: it came as a negative of some row.
        own: (B, M) bool: it came with the query's own row.
    """

    cosines: Tensor
    negative: Tensor
    hard: Tensor
    own: Tensor


def compare(vectors: Vectors) -> Compared:
    """All queries with all documents.

    A document is a known answer to a query if it is the positive of any row of the batch with
    that query, by the text of both: neither a duplicate of a positive nor another positive of
    the same query is ever a negative.

    Args:
        vectors: of length 1.
    """
    rows, each, width = ops.shape(vectors.documents)
    documents = ops.reshape(vectors.documents, (-1, width))
    ids = ops.reshape(vectors.document_ids, (-1,))
    same_query = vectors.query_ids[:, None] == vectors.query_ids[None]
    same_document = vectors.document_ids[:, 0, None] == ids[None]
    row_is_there = vectors.there[:, 0]
    related = ops.cast(same_query & row_is_there[None], "float32")
    answers = ops.matmul(related, ops.cast(same_document, "float32")) > 0
    places = ops.arange(0, rows * each, dtype="int32")
    own = ops.arange(0, rows, dtype="int32")[:, None] == (places // each)[None]
    return Compared(
        ops.matmul(vectors.queries, ops.transpose(documents)),
        ops.reshape(vectors.there, (1, -1)) & ~answers,
        places % each > 0,
        own,
    )


class ByFields:
    """Gives a dataclass the config that Keras keeps of it."""

    def get_config(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)


class Contrastive(ByFields):
    """A loss of `Vectors`, one number for each row; a subclass says which.

    Args:
        dimensions: sizes to which vectors are cut, each with its weight, as Matryoshka
            (arXiv 2205.13147) has it: the loss is the sum over them, each vector cut and made of
            length 1 again. None for the whole vectors alone.
    """

    dimensions: Mapping[int, float] | None
    reads_scores = False  # whether a positive may answer in part

    def of_rows(self, vectors: Vectors) -> Tensor:
        """(B,) float32, for vectors of length 1."""
        raise NotImplementedError

    def __call__(self, vectors: Vectors) -> Tensor:
        """(B,) float32; a row that is not there has a number that means nothing."""
        if self.dimensions is None:
            return self.of_rows(vectors.unit())
        each = self.dimensions.items()
        return sum(weight * self.of_rows(vectors.cut(size).unit()) for size, weight in each)

    def check_width(self, width: int) -> None:
        """Raises ValueError if vectors of that many numbers cannot be cut so."""
        for size in self.dimensions or ():
            check.whole("dimensions", size, most=width)


def _checked(dimensions: Mapping[Any, float] | None) -> dict[int, float] | None:
    """Sizes and weights, of which JSON has made names."""
    if dimensions is None:
        return None
    if not isinstance(dimensions, Mapping) or not dimensions:
        raise ValueError(
            "Expected dimensions as a dict of sizes and weights, such as {768: 1.0, 256: 1.0}. "
            f"Received: {dimensions!r}."
        )
    return {
        check.whole("dimensions", int(size) if isinstance(size, str) else size): check.real(
            "weights of dimensions", weight, above=0
        )
        for size, weight in dimensions.items()
    }


def ranks_first(vectors: Vectors) -> Tensor:
    """(B,) float32: 1 where the positive is nearer than every negative, else 0."""
    found = compare(vectors.unit())
    nearest = ops.max(ops.where(found.negative, found.cosines, _FAR), axis=1)
    return ops.cast(_positive(found, vectors) > nearest, "float32")


def _positive(found: Compared, vectors: Vectors) -> Tensor:
    """(B,) cosines of each query and its positive."""
    own = found.own & ~found.hard[None]
    return ops.sum(ops.where(own, found.cosines, 0.0), axis=1)


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class InBatchNCE(Contrastive):
    """Cross-entropy of each query's positive among the documents of the batch.

    With s the cosine and t the temperature, a row's loss is
    -log(exp(s(q, p) / t) / (exp(s(q, p) / t) + sum over negatives n of w exp(s(q, n) / t))):
    InfoNCE (arXiv 1807.03748) with the positives and hard negatives of all rows as negatives
    (arXiv 2004.04906), less those that are known answers. As in EmbeddingGemma
    (arXiv 2509.20354, section 2.2), w is exp(hardness * s(q, n)), without a gradient, for a hard
    negative, and 1 for others.

    Args:
        temperature: t; 0.05 as in SimCSE (arXiv 2104.08821).
        symmetric: whether documents choose among queries too, and the mean of both counts, as in
            CLIP (arXiv 2103.00020).
        others_hard: whether a row's hard negatives are negatives of the other rows too;
            EmbeddingGemma's are of their own row alone.
        hardness: 5 in EmbeddingGemma; 0 weighs all alike.
        spread_out: what the spread-out term counts: for each query, and for each positive, the
            mean of its squared cosines with the others of the batch, which for random directions
            is 1 / D (arXiv 1708.06320; EmbeddingGemma).
        dimensions: of `Contrastive`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> embedder.compile(loss=keras_encdec.training.InBatchNCE(dimensions={768: 1, 256: 1}))
    """

    temperature: float = 0.05
    symmetric: bool = False
    others_hard: bool = True
    hardness: float = 0.0
    spread_out: float = 0.0
    dimensions: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        check.real("temperature", self.temperature, above=0)
        check.flag("symmetric", self.symmetric)
        check.flag("others_hard", self.others_hard)
        for name in ("hardness", "spread_out"):
            check.real(name, getattr(self, name), least=0)
        object.__setattr__(self, "dimensions", _checked(self.dimensions))

    def of_rows(self, vectors: Vectors) -> Tensor:
        found = compare(vectors)
        losses = self._forward(found, vectors)
        if self.symmetric:
            losses = (losses + self._backward(found, vectors)) / 2
        if self.spread_out:
            there = vectors.there[:, 0]
            terms = _spread(vectors.queries, vectors.query_ids, there)
            terms += _spread(vectors.documents[:, 0], vectors.document_ids[:, 0], there)
            losses += self.spread_out * terms
        return losses

    def _forward(self, found: Compared, vectors: Vectors) -> Tensor:
        negative = found.negative
        if not self.others_hard:
            negative = negative & (found.own | ~found.hard[None])
        logits = found.cosines / self.temperature
        if self.hardness:
            harder = self.hardness * ops.stop_gradient(found.cosines)
            logits += ops.where(found.hard[None], harder, 0.0)
        return _chosen(_positive(found, vectors) / self.temperature, logits, negative)

    def _backward(self, found: Compared, vectors: Vectors) -> Tensor:
        """Each positive among the queries."""
        each = vectors.documents.shape[1]
        row_is_there = vectors.there[:, 0]
        cosines, negative = (ops.transpose(x[:, ::each]) for x in (found.cosines, found.negative))
        logits = cosines / self.temperature
        positive = _positive(found, vectors) / self.temperature
        return _chosen(positive, logits, negative & row_is_there[None])


def _chosen(positive: Tensor, logits: Tensor, negative: Tensor) -> Tensor:
    """(B,) -log softmax of the positive, (B,), beside those logits, (B, M), that are negatives."""
    every = ops.concatenate([positive[:, None], ops.where(negative, logits, _FAR)], axis=1)
    return ops.logsumexp(every, axis=1) - positive


def _spread(vectors: Tensor, ids: Tensor, there: Tensor) -> Tensor:
    """(B,) mean squared cosines of (B, D) vectors with those of other texts."""
    others = ops.cast((ids[:, None] != ids[None]) & there[None], "float32")
    squares = ops.square(ops.matmul(vectors, ops.transpose(vectors)))
    return ops.sum(squares * others, axis=1) / ops.maximum(ops.sum(others, axis=1), 1.0)


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class BiXSE(Contrastive):
    """Binary cross-entropy of each query with each document of the batch, by graded relevance.

    A logit is cosine / temperature + bias. The positive's target is its score, that of all
    other documents 0, but for known answers, which are left out (arXiv 2508.06781). Summed over
    the documents of a query, and as a mean over queries, as SigLIP sums it
    (arXiv 2303.15343, equation 1). Data may have the column `score`; without it each is 1.

    Args:
        temperature: of the logits.
        bias: of the logits. SigLIP learns both; here they stay, and a probability of 1/2 lies at
            a cosine of -bias * temperature.
        dimensions: of `Contrastive`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> embedder.compile(loss=keras_encdec.training.BiXSE())
    """

    temperature: float = 0.05
    bias: float = -10.0
    dimensions: Mapping[int, float] | None = None
    reads_scores = True

    def __post_init__(self) -> None:
        check.real("temperature", self.temperature, above=0)
        check.real("bias", self.bias)
        object.__setattr__(self, "dimensions", _checked(self.dimensions))

    def of_rows(self, vectors: Vectors) -> Tensor:
        found = compare(vectors)
        logits = found.cosines / self.temperature + self.bias
        positive = _positive(found, vectors) / self.temperature + self.bias
        others = ops.sum(ops.where(found.negative, ops.softplus(logits), 0.0), axis=1)
        score = 1.0 if vectors.scores is None else vectors.scores
        # -z log sigmoid(x) - (1 - z) log(1 - sigmoid(x))
        return ops.softplus(positive) - score * positive + others
