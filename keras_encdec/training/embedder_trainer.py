"""How an embedder trains: queries and documents as vectors, compared within the batch.

Leaves formulas to `keras_encdec.training.contrastive`, and losses of vectors that are given to
`keras_encdec.training.encoder_trainer`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor
from keras_encdec.training.contrastive import Contrastive, Vectors, ranks_first
from keras_encdec.training.encoder_trainer import EncoderTrainer
from keras_encdec.training.parts import check_backend, in_parts


class EmbedderTrainer(EncoderTrainer):
    """Trains and evaluates a task whose output is one vector for each row."""

    _texts_at_once: int | None = None

    def compile_vectors(
        self, optimizer: Any, loss: Any, texts_at_once: int | None = None, **kwargs: Any
    ) -> None:
        """Takes what `compile` got.

        Args:
            optimizer: as in Keras.
            loss: a `Contrastive`, or what `compile_rows` takes.
            texts_at_once: of `keras_encdec.training.parts`, or None for all.
            **kwargs: of `compile_rows`.

        Raises:
            ValueError: if there is no such loss, it compares and there are metrics, or it does
                not and there are parts, or there are experts and parts.
        """
        if texts_at_once is not None:
            check.whole("texts_at_once", texts_at_once)
            check_backend()
            if self._with_experts():
                raise ValueError(
                    "Expected no texts_at_once with experts, whose balance is that of a whole "
                    f"batch. Received: {texts_at_once}. Use a smaller batch_size, or set "
                    "backbone.remat = True for memory."
                )
        if not isinstance(loss, Contrastive):
            if texts_at_once is not None:
                raise ValueError(
                    "Expected a loss that compares, with texts_at_once. Received: a loss of "
                    "Keras, which takes each row for itself. Use a smaller batch_size."
                )
            self.compile_rows(optimizer, loss, **kwargs)
            return
        if kwargs.get("metrics"):
            raise ValueError(
                f"Expected no metrics with {type(loss).__name__}, which reports accuracy, the "
                f"share of queries whose positive is nearest. Received: {kwargs['metrics']!r}."
            )
        loss.check_width(self.output_shape[-1])
        means = keras.metrics.Mean("loss"), keras.metrics.Mean("accuracy")
        self.compile_rows(optimizer, loss, reported=means, **kwargs)
        self._texts_at_once = texts_at_once

    @property
    def compares(self) -> bool:
        """Whether it is compiled to learn from queries and documents."""
        return isinstance(self._row_loss, Contrastive)

    def batch_loss(
        self,
        x: dict[str, Tensor],
        y: Any,
        sample_weight: Tensor | None,
        training: bool,
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """As of `EncoderTrainer`; or, where it compares, the mean over queries by weight.

        Args:
            x: model inputs; or `query_token_ids`, `query_padding_mask` (B, S) and `query_ids`
                (B,), `document_token_ids`, `document_padding_mask` (B, 1 + K, T) and
                `document_ids` (B, 1 + K).
            y: labels; or scores (B,), or None.
            sample_weight: (B,), or None.
            training: whether it is a step.
            total_weight: as of `EncoderTrainer`.
        """
        if not self.compares:
            return super().batch_loss(x, y, sample_weight, training, total_weight)
        vectors = self._vectors(x, y, training)
        found = self._row_loss(vectors), ranks_first(vectors)
        return self._compared(*found, vectors.there[:, 0], sample_weight, total_weight)

    def _vectors(self, x: Mapping[str, Tensor], y: Any, training: bool) -> Vectors:
        masks = x["query_padding_mask"], x["document_padding_mask"]
        if training:
            for mask in masks:
                self.token_counter.update_state(mask, ops.zeros_like(mask[..., :1]))
        queries = self._encoded(x["query_token_ids"], masks[0], training)
        documents = self._encoded(x["document_token_ids"], masks[1], training)
        there = ops.any(masks[1] != 0, axis=-1)
        return Vectors(queries, documents, x["query_ids"], x["document_ids"], there, y)

    def _encoded(self, token_ids: Tensor, padding_mask: Tensor, training: bool) -> Tensor:
        """(..., S) to (..., D)."""
        model: Any = self
        shape = ops.shape(token_ids)
        rows = {"token_ids": token_ids, "padding_mask": padding_mask}
        rows = {name: ops.reshape(array, (-1, shape[-1])) for name, array in rows.items()}
        if training and self._texts_at_once is not None:
            vectors = in_parts(partial(model, training=True), rows, self._texts_at_once)
        else:
            vectors = model(rows, training=training)
        return ops.reshape(vectors, (*shape[:-1], vectors.shape[-1]))
