"""How a reranker trains: the documents of a query, each with a score, compared within the row.

Leaves formulas to `keras_encdec.training.ranking`.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_encdec.spec import Tensor
from keras_encdec.training.encoder_trainer import EncoderTrainer
from keras_encdec.training.ranking import ByData, Judged, Ranking, ranks_right


class RerankerTrainer(EncoderTrainer):
    """Trains and evaluates a task whose output is a score for each query and document."""

    def compile_ranking(self, optimizer: Any, loss: Any, **kwargs: Any) -> None:
        """Takes what `compile` got.

        Args:
            optimizer: of `compile_rows`.
            loss: a `Ranking`; `"auto"` for `ByData`.
            **kwargs: of `compile_rows`.

        Raises:
            ValueError: if the loss is something else, or there are metrics.
        """
        found = ByData() if isinstance(loss, str) and loss == "auto" else loss
        if not isinstance(found, Ranking):
            raise ValueError(
                "Expected a loss that ranks: RankNet, ListwiseSoftmax, ListNet or "
                f"PointwiseCrossEntropy of keras_encdec.training. Received: {loss!r}."
            )
        if kwargs.get("metrics"):
            raise ValueError(
                "Expected no metrics: accuracy, the share of rows whose positive scores highest, "
                f"is reported. Received: {kwargs['metrics']!r}."
            )
        means = keras.metrics.Mean("loss"), keras.metrics.Mean("accuracy")
        self.compile_rows(optimizer, found, reported=means, **kwargs)

    def batch_loss(
        self,
        x: dict[str, Tensor],
        y: Any,
        sample_weight: Tensor | None,
        training: bool,
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """The mean over queries by weight, a scalar; metrics are updated.

        Args:
            x: `query_token_ids`, `query_padding_mask` (B, T) and `document_token_ids`,
                `document_padding_mask` (B, 1 + K, S).
            y: (B, 1 + K) float32 relevance.
            sample_weight: as of `EncoderTrainer`.
            training: whether it is a step.
            total_weight: as of `EncoderTrainer`.
        """
        there = ops.any(x["document_padding_mask"] != 0, axis=-1)
        if training:
            self.token_counter.update_state(x["document_padding_mask"], x["query_padding_mask"])
        judged = Judged(self._scores(x, training), y, there)
        found = self._row_loss(judged), ranks_right(judged)
        return self._compared(*found, there[:, 0], sample_weight, total_weight)

    def _scores(self, x: Mapping[str, Tensor], training: bool) -> Tensor:
        """(B, 1 + K): each document is read once, and its query once for each of them."""
        model: Any = self
        rows, each, _ = ops.shape(x["document_token_ids"])
        inputs = {}
        for name in ("token_ids", "padding_mask"):
            documents, queries = x[f"document_{name}"], x[f"query_{name}"]
            inputs[f"encoder_{name}"] = ops.reshape(documents, (-1, ops.shape(documents)[-1]))
            inputs[f"decoder_{name}"] = ops.repeat(queries, each, axis=0)
        return ops.reshape(model(inputs, training=training), (rows, each))
