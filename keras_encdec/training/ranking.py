"""Losses that rank: of the documents of a query, those that answer it are to score higher.

Knows formulas with their sources. Leaves scores to the model; a row's loss depends on its own
documents alone, whatever the batch.
"""

import dataclasses
from typing import NamedTuple

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor
from keras_encdec.training.contrastive import ByFields

_FAR = -1e9  # in place of the score of a document that is not there


class Judged(NamedTuple):
    """A batch; each row has a query's documents, 1 + K of them, the positive first.

    Args:
        scores: (B, 1 + K) float32 log-odds that a document answers.
        relevance: (B, 1 + K) float32, from 0 to 1, how well it does.
        there: (B, 1 + K) bool: False where a row is there to fill the batch, or has fewer
            documents than others.
    """

    scores: Tensor
    relevance: Tensor
    there: Tensor


class Ranking(ByFields):
    """A loss of `Judged`, one number for each row; a subclass says which."""

    reads_scores = True  # whether a document may answer in part
    compares = True  # whether a row needs documents to compare

    def __call__(self, judged: Judged) -> Tensor:
        """(B,) float32; a row that is not there has a number that means nothing."""
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class RankNet(Ranking):
    """Logistic loss of the difference between the positive's score and each negative's.

    With o that difference and P = (1 + the difference of their relevance) / 2, the loss of a pair
    is log(1 + exp(o)) - P o (Burges et al. 2005, "Learning to rank using gradient descent",
    equation 3), without the column `score` log(1 + exp(-o)). A row's is the mean over its pairs.

    Example:
        >>> reranker.compile(loss=keras_encdec.training.RankNet())
    """

    def __call__(self, judged: Judged) -> Tensor:
        difference = judged.scores[:, :1] - judged.scores[:, 1:]
        target = (1 + judged.relevance[:, :1] - judged.relevance[:, 1:]) / 2
        losses = ops.softplus(difference) - target * difference
        return _mean(losses, judged.there[:, 1:])


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class ListwiseSoftmax(Ranking):
    """Cross-entropy of the positive among the documents of its query.

    -log(exp(s_0) / sum over documents j of exp(s_j)), with the positive's score s_0: `ListNet`
    where all of the probability is the positive's.

    Example:
        >>> reranker.compile(loss=keras_encdec.training.ListwiseSoftmax())
    """

    reads_scores = False

    def __call__(self, judged: Judged) -> Tensor:
        return -_log_softmax(judged.scores, judged.there)[:, 0]


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class ListNet(Ranking):
    """Cross-entropy between the top-one probabilities of relevance and of scores.

    -sum over documents j of softmax(relevance / temperature)_j log softmax(s)_j (Cao et al.
    2007, "Learning to rank: from pairwise approach to listwise approach"). The column `score`
    says how well the positive answers; negatives do not.

    Args:
        temperature: of the relevance: the smaller, the more of the probability is the positive's.

    Raises:
        ValueError: if it is no number above 0.

    Example:
        >>> reranker.compile(loss=keras_encdec.training.ListNet(temperature=0.2))
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check.real("temperature", self.temperature, above=0)

    def __call__(self, judged: Judged) -> Tensor:
        wanted = ops.exp(_log_softmax(judged.relevance / self.temperature, judged.there))
        found = _log_softmax(judged.scores, judged.there)
        return -ops.sum(ops.where(judged.there, wanted * found, 0.0), axis=1)


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class PointwiseCrossEntropy(Ranking):
    """Binary cross-entropy of each document's score by itself.

    -z log sigmoid(s) - (1 - z) log(1 - sigmoid(s)), with the label or relevance z; a row's is the
    mean over its documents.

    Example:
        >>> reranker.compile(loss=keras_encdec.training.PointwiseCrossEntropy())
        >>> reranker.fit({"query": queries, "document": documents, "label": labels})
    """

    compares = False

    def __call__(self, judged: Judged) -> Tensor:
        losses = ops.softplus(judged.scores) - judged.relevance * judged.scores
        return _mean(losses, judged.there)


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class ByData(Ranking):
    """`PointwiseCrossEntropy` where each row is one document, else `ListwiseSoftmax`."""

    def of(self, documents: int) -> Ranking:
        """The loss of rows of so many documents."""
        return ListwiseSoftmax() if documents > 1 else PointwiseCrossEntropy()

    def __call__(self, judged: Judged) -> Tensor:
        return self.of(judged.scores.shape[1])(judged)


def ranks_right(judged: Judged) -> Tensor:
    """(B,) float32: 1 where the positive scores above all negatives of its row, else 0.

    Of a row of one document, 1 where score and label are on the same side of 1/2.
    """
    scores, first = judged.scores, judged.scores[:, 0]
    if scores.shape[1] == 1:
        return ops.cast((first > 0) == (judged.relevance[:, 0] > 0.5), "float32")
    others = ops.where(judged.there[:, 1:], scores[:, 1:], _FAR)
    return ops.cast(first > ops.max(others, axis=1), "float32")


def _mean(losses: Tensor, there: Tensor) -> Tensor:
    """(B,) means of those of (B, N) that are there."""
    count = ops.maximum(ops.sum(ops.cast(there, "float32"), axis=1), 1.0)
    return ops.sum(ops.where(there, losses, 0.0), axis=1) / count


def _log_softmax(scores: Tensor, there: Tensor) -> Tensor:
    """(B, N) over those that are there."""
    return ops.log_softmax(ops.where(there, scores, _FAR), axis=1)
