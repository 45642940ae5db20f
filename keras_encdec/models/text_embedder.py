"""The encoder as an embedder: one vector of each text, to search and compare by.

Knows heads, prompts and similarities. Leaves training to `keras_encdec.models.encoder_task` and
`keras_encdec.training.embedder_trainer`.
"""

import types
from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_encdec import check, hosts, layout
from keras_encdec.data.batching import Batching, BatchSource, of_rows
from keras_encdec.data.labelled import Labelled, ReadyRows, as_labelled
from keras_encdec.data.ranked import Ranked, as_ranked, ranked_inputs
from keras_encdec.data.ready import Rows
from keras_encdec.generation.buckets import length
from keras_encdec.layers.pooling import Pool, Pooling
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.models.encoder_preprocessor import OPTIONS
from keras_encdec.models.encoder_task import EncoderTask
from keras_encdec.models.exports import exported
from keras_encdec.models.finite import check_finite
from keras_encdec.models.text_embedder_preprocessor import EncDecTextEmbedderPreprocessor
from keras_encdec.progress import track
from keras_encdec.spec import Tensor
from keras_encdec.training.contrastive import InBatchNCE, unit
from keras_encdec.training.embedder_trainer import EmbedderTrainer

_SMALLEST = 16  # tokens; rows are this long, or twice, four times, ...: few programs


@keras.saving.register_keras_serializable(package="keras_encdec")
class UnitLength(keras.layers.Layer):
    """(B, D) to vectors of length 1."""

    def call(self, x: Tensor) -> Tensor:
        return unit(x)


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecTextEmbedder(EmbedderTrainer, EncoderTask, keras_hub.models.TextEmbedder):
    """Makes vectors of texts, by the encoder of a pair.

    Called on model inputs it returns vectors (B, E). `fit` takes queries and the documents that
    answer them: `fit(queries, documents)`, or a dict, frame, dataset, or rows with `query`,
    `positive` and, where there are some, `negatives` and `score`. Each batch is a task of its own:
    the documents of its other rows are negatives, also those of rows with a `sample_weight` of 0,
    so losses depend on `batch_size` and on which rows come together, by design. A text that is a
    known answer of the batch, and rows that fill a batch up, are negatives of none. Compiled with a
    loss of Keras it learns from given vectors: `fit(texts, vectors)`.

    Args:
        backbone: `EncoderBackbone`.
        preprocessor: `EncDecTextEmbedderPreprocessor`, or None to work on tokens.
        pooling: how states become a vector: their `"mean"`, or that of the `"last"` or
            `"first"` token.
        projection: widths of dense layers behind it, without bias and without an activation;
            EmbeddingGemma has (3072, 768). None for none.
        normalize: whether vectors are made of length 1.
        **kwargs: of `keras_hub.models.TextEmbedder`.

    Raises:
        ValueError: if there is no such pooling, or a width is no number of 1 or more.

    Example:
        >>> embedder = EncDecTextEmbedder.from_preset("./my_pair", projection=(3072, 768))
        >>> embedder.compile(loss=keras_encdec.training.InBatchNCE())
        >>> embedder.fit(questions, passages)
        >>> found = embedder.similarity(
        ...     embedder.encode_text(["Who?"], prompt="query"),
        ...     embedder.encode_text(passages, prompt="document"),
        ... )

    Reference:
        [EmbeddingGemma](https://arxiv.org/abs/2509.20354), section 2
    """

    preprocessor_cls = EncDecTextEmbedderPreprocessor
    preprocessor_options = ("prompts", *OPTIONS)

    def __init__(
        self,
        backbone: EncoderBackbone,
        preprocessor: Any = None,
        pooling: Pooling = "mean",
        projection: Sequence[int] | None = None,
        normalize: bool = True,
        **kwargs: Any,
    ):
        self.backbone, self.preprocessor = backbone, preprocessor
        self.pooling, self.normalize = pooling, check.flag("normalize", normalize)
        self.projection = tuple(check.whole("projection", width) for width in projection or ())
        policy = {"dtype": backbone.encoder.dtype_policy}
        self.pool = Pool(pooling, name="pool", **policy)
        self.dense = [
            keras.layers.Dense(width, use_bias=False, name=f"dense_{number}", **policy)
            for number, width in enumerate(self.projection)
        ]
        vector = self.pool(backbone(backbone.input), backbone.input["padding_mask"])
        for layer in self.dense:
            vector = layer(vector)
        if normalize:
            vector = UnitLength(name="unit", dtype="float32")(vector)
        super().__init__(inputs=backbone.input, outputs=vector, **kwargs)

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        metrics: Any = None,
        texts_at_once: int | None = None,
        **kwargs: Any,
    ) -> None:
        """As in `keras_hub.models.TextEmbedder`.

        Args:
            optimizer: by default AdamW at 5e-5 with gradients clipped at norm 1; a number is
                another rate for it.
            loss: `InBatchNCE()` by default, or `BiXSE`: see `keras_encdec.training`. Another loss
                of Keras compares vectors with given ones.
            metrics: as in Keras, for such a loss; the others report accuracy, the share of
                queries whose positive is the nearest document of the batch.
            texts_at_once: for batches that do not fit: texts whose states a step holds at once,
                each of them computed twice (gradient caching, arXiv 2101.06983; on JAX). Losses
                and gradients stay the same. None for all at once.
            **kwargs: `logs`, as of `EncDecSeq2SeqLM.compile`, and those of `keras.Model.compile`.

        Raises:
            ValueError: if a loss cuts vectors to more numbers than they have, or something is
                asked for that it does not do.
        """
        kwargs["texts_at_once"] = texts_at_once
        given = {"loss": loss, "metrics": metrics, **kwargs}
        found = InBatchNCE() if isinstance(loss, str) and loss == "auto" else loss
        self.compile_vectors(optimizer, found, metrics=metrics, **kwargs)
        self._compiled_with = types.MappingProxyType(given)  # Keras would keep metrics of a dict

    def encode_text(
        self,
        text: Any,
        prompt: str | None = None,
        batch_size: int = 32,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order, whatever the batches are.

        Args:
            text: a text or texts.
            prompt: name of what is put in front of each: `"query"`, `"document"`, or another of
                the preprocessor's `prompts`; None for the texts as they are.
            batch_size: texts at a time.
            dimensions: numbers of each vector that are kept, after which it is made of length 1
                again: for a model trained with `dimensions` in its loss. None for all.

        Returns:
            (N, E) float32.

        Raises:
            FloatingPointError: if a vector is not finite, naming the first text.
            ValueError: if a text is empty, or there is no such prompt or that many numbers.
        """
        width = self.output_shape[-1]
        dimensions = check.whole("dimensions", width if dimensions is None else dimensions)
        check.whole("dimensions", dimensions, most=width)
        size = layout.replicas() * -(-check.whole("batch_size", batch_size) // layout.replicas())
        if self._converter is None:
            raise ValueError("Expected a preprocessor to encode text. Received: none.")
        source = as_labelled(text)
        if not isinstance(source, Labelled) or source.choices or len(source.rows[0]) > 1:
            raise ValueError(f"Expected texts. Received: {type(text).__name__} of other data.")
        texts = [row[0] for row in source.rows]
        vectors = self._encoded_rows(self._converter.rows_of(self._prompted(texts, prompt)), size)
        if dimensions < width:
            vectors = _unit(vectors[:, :dimensions])
        check_finite("vectors", np.isfinite(vectors).all(axis=1), texts)
        return vectors

    def _prompted(self, texts: Sequence[str], prompt: str | None) -> list[tuple[str]]:
        reader: Any = self._converter
        return reader.prompted(texts, prompt)

    def _encoded_rows(self, rows: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
        """(N, E) of rows of tokens; those of a length are read together."""
        if hosts.count() > 1:
            raise ValueError(f"Expected one process for vectors. Received: {hosts.count()}.")
        most = self.preprocessor.sequence_length
        vectors = np.zeros((len(rows), self.output_shape[-1]), "float32")
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        for part in track(parts, "Encoding"):
            longest = max(len(rows[number]) for number in part)
            size = length(longest, most, _SMALLEST)
            count = batch_size if len(parts) > 1 else len(part)
            filled = [rows[number] for number in part] + [[]] * (count - len(part))
            x = self.preprocessor.reader.lay(filled, size)
            found = keras.ops.convert_to_numpy(self.predict_on_batch(ReadyRows(x)))
            vectors[part] = found[: len(part)]
        return vectors

    def similarity(self, one: Any, other: Any) -> np.ndarray:
        """(N, M) float32 cosines of vectors (N, E) and (M, E), as `encode_text` gives them.

        Raises:
            ValueError: if they are no such vectors, or of different widths.
        """
        arrays = []
        for vectors in (one, other):
            array = np.asarray(vectors)
            if array.dtype.kind != "f" or array.ndim != 2:
                raise ValueError(
                    f"Expected vectors (N, E) of encode_text. Received: {array.dtype} of shape "
                    f"{array.shape}."
                )
            arrays.append(_unit(array.astype("float32")))
        if arrays[0].shape[1] != arrays[1].shape[1]:
            raise ValueError(
                f"Expected vectors of one width. Received: {[a.shape[1] for a in arrays]}. Encode "
                "both with the same dimensions."
            )
        return arrays[0] @ arrays[1].T

    def export_to_sentence_transformers(
        self, path: Any, max_shard_size: float = 5.0, **options: Any
    ) -> None:
        """Writes the embedder as sentence-transformers loads it to a folder, or uploads it.

        Encoder, pooling, projection, normalisation, prompts, and how texts are cut: `encode` gives
        there what `encode_text` gives here.

        Args:
            path: a folder, as of
                `keras_encdec.sharing.export_encoder.export_to_sentence_transformers`, or a handle.
            max_shard_size: of one file of the encoder, in GiB.
            **options: as of `export_to_transformers`.

        Raises:
            ValueError: as `export_to_transformers`, or if there is no preprocessor.

        Example:
            >>> embedder.export_to_sentence_transformers("./st_model")
            >>> SentenceTransformer("./st_model").encode(["Who?"], prompt_name="query")
        """
        from keras_encdec.sharing.export_encoder import export_to_sentence_transformers

        def write(folder: Any) -> None:
            export_to_sentence_transformers(self, folder, max_shard_size)

        exported(write, path, options)

    # What `fit` and the others read.

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Vectors (N, E) of texts as they are, without a prompt; as in `keras.Model.predict`."""
        return super().predict(as_labelled(x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """As `predict`, of all rows at once."""
        return super().predict_on_batch(as_labelled(x))

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if self.compares and not isinstance(x, (Labelled, ReadyRows)):
            return as_ranked(x, y, sample_weight)
        return as_labelled(x, y, sample_weight)

    def _check_ranked(self, source: Ranked) -> None:
        if source.scores is not None and not self._row_loss.reads_scores:
            raise ValueError(
                f"Expected no scores with {type(self._row_loss).__name__}, which takes every "
                "positive for one. Received: the column score. Use BiXSE, or leave it out."
            )
        if len(source) < 2 and source.negatives is None:
            raise ValueError(
                "Expected two rows or more, as the documents of others are the negatives of a "
                "row. Received: one, without negatives."
            )

    def _batch_source(self, source: Any, batching: Batching) -> BatchSource:
        if not isinstance(source, Ranked):
            return super()._batch_source(source, batching)
        self._check_ranked(source)
        if self._converter is None:
            raise ValueError("Expected a preprocessor to learn from text. Received: none.")
        reader: Any = self._converter
        # Keras drops the weights of batches that have no labels.
        ones = np.ones(len(source), "float32")
        scores, weights = (ones if x is None else x for x in (source.scores, source.weights))
        rows = Rows(ranked_inputs(source, reader), scores, weights)
        return of_rows(rows, batching.order(reader, len(source)), batching.steps)

    def get_config(self) -> dict[str, Any]:
        own = {"pooling": self.pooling, "normalize": self.normalize}
        return {**super().get_config(), **own, "projection": list(self.projection) or None}


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)
