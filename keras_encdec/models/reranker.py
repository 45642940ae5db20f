"""A pair as a reranker: how well documents answer a query, each read once.

Knows the two words, what a score is, and what training data it takes. Leaves which rows go
together to `keras_encdec.models.reranker_scoring`, a step to
`keras_encdec.training.reranker_trainer` and states on disk to `keras_encdec.data.encoded`.
"""

import os
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_encdec import check
from keras_encdec.data.batching import Batching, BatchSource, of_rows
from keras_encdec.data.encoded import EncodedDocuments, write_encoded
from keras_encdec.data.ranked import Distinct, Ranked, as_judged, ranked_inputs
from keras_encdec.data.ready import Rows
from keras_encdec.data.recognize import strings
from keras_encdec.layers.pooling import Pool, PoolGroups
from keras_encdec.models import reranker_scoring as scoring
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.learner import Learner
from keras_encdec.models.reranker_preprocessor import (
    OPTIONS,
    EncDecRerankerPreprocessor,
    model_inputs,
)
from keras_encdec.models.task_files import TaskFiles
from keras_encdec.objectives.reader import PairReader
from keras_encdec.spec import Tensor
from keras_encdec.training.loss import output_matrix
from keras_encdec.training.ranking import ByData
from keras_encdec.training.reranker_trainer import RerankerTrainer

_SHARD_BATCHES = 8  # that a shard on disk holds
_LEARNT = "query_token_ids", "query_padding_mask", "document_token_ids", "document_padding_mask"


class RankedDocument(NamedTuple):
    """A document and how well it answers.

    Args:
        index: its number among those that were ranked.
        score: probability of "yes", from 0 to 1.
    """

    index: int  # type: ignore[assignment]  # in place of tuple.index
    score: float


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecReranker(RerankerTrainer, TaskFiles, Learner, keras_hub.models.Task):
    """Ranks documents by how well they answer a query.

    The encoder reads a document, once for all queries: its states are pooled, groups of `pooling`
    tokens to their mean, and can be kept on disk. The decoder reads an instruction and the query
    and looks at the pooled states. A score is the softmax of two words' logits at the decoder's
    last token: the probability of "yes" against "no".

    Cross-attention has no positions of its own, so pooled states need none: what the encoder knows
    of the order of a document is in its states. They take the place of the encoder's states, with a
    mask of one for each group; where self- and cross-attention share one softmax (merged
    attention), there are as many keys fewer in it.

    Called on model inputs it returns log-odds (B,), whose sigmoid is the score. `fit` takes
    queries with documents that answer them and others that do not: a dict, frame, dataset or rows
    with `query`, `positive`, `negatives` and, where there are some, `score`; or documents one by
    one, with `query`, `document` and `label`.

    Args:
        backbone: `EncDecBackbone`.
        preprocessor: `EncDecRerankerPreprocessor`, or None to work on tokens.
        pooling: r, tokens of a document for one state that the decoder sees; 1 for each its own.
        word_ids: ids of the word that says that a document answers, and of the one that says
            that it does not; None for those of the preprocessor's `words`.
        **kwargs: of `keras_hub.models.Task`.

    Raises:
        ValueError: if `pooling` is no number of 1 or more, or the ids are not two of the
            vocabulary.

    Example:
        >>> reranker = EncDecReranker.from_preset("./my_pair")
        >>> reranker.fit({"query": queries, "positive": right, "negatives": wrong})
        >>> reranker.rank("Which one adds?", documents, top=3)
        >>> store = reranker.encode_documents(documents, "./documents")
        >>> reranker.rank("Which one adds?", store)

    Reference:
        KaLM-Reranker-V1 (arXiv 2606.22807)
    """

    backbone_cls = EncDecBackbone
    preprocessor_cls = EncDecRerankerPreprocessor
    _programs: scoring.Programs | None = None

    def __init__(
        self,
        backbone: EncDecBackbone,
        preprocessor: Any = None,
        pooling: int = 4,
        word_ids: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        self.backbone, self.preprocessor, self.pooling = backbone, preprocessor, pooling
        self.word_ids = _word_ids(word_ids, preprocessor, backbone)
        policy = {"dtype": backbone.decoder.dtype_policy}
        self.pool_groups = PoolGroups(pooling, name="pool_groups", **policy)
        self.pool_last = Pool("last", name="pool_last", **policy)
        inputs = backbone.input
        query = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
        documents = self.documents(inputs["encoder_token_ids"], inputs["encoder_padding_mask"])
        state = self.pool_last(backbone.decoder(*query, *documents), query[1])
        logits = ops.cast(backbone.decoder.embedding(state, reverse=True), "float32")
        yes, no = self.word_ids
        super().__init__(inputs=inputs, outputs=logits[:, yes] - logits[:, no], **kwargs)

    @classmethod
    def from_preset(cls, preset: Any, load_weights: bool = True, **kwargs: Any) -> Any:
        """The reranker that was saved, or a new one on a pair.

        Args:
            preset: a preset of this task, which comes back whole; or what
                `keras_encdec.from_preset` takes.
            load_weights: as in KerasHub.
            **kwargs: of the task; `dtype`; and with a pair settings of the preprocessor, such as
                `instruction` and `words`, and options of `keras_encdec.from_preset`.

        Raises:
            TypeError: if there is no such option.
            ValueError: if there is no such pair, or it has no tokenizer and no `word_ids` are
                given.
        """
        from keras_encdec.sharing.encoders import is_task
        from keras_encdec.sharing.load import from_preset

        if is_task(preset, cls):
            return super().from_preset(str(preset), load_weights, **kwargs)
        settings = {n: kwargs.pop(n) for n in OPTIONS if n in kwargs}
        own = ("preprocessor", "pooling", "word_ids", "name", "compile")
        given = {n: kwargs.pop(n) for n in own if n in kwargs}
        check.settings(settings, "preprocessor" in given)
        lm = from_preset(preset, **kwargs)
        if "preprocessor" not in given and lm.preprocessor is not None:
            second = lm.preprocessor.encoder_tokenizer
            settings["encoder_tokenizer"] = second if lm.preprocessor.has_two_vocabularies else None
            given["preprocessor"] = cls.preprocessor_cls(lm.preprocessor.tokenizer, **settings)
        return cls(lm.backbone, **given)

    def compile(
        self, optimizer: Any = "auto", loss: Any = "auto", *, metrics: Any = None, **kwargs: Any
    ) -> None:
        """As in `keras.Model`.

        Args:
            optimizer: by default AdamW at 5e-5 with gradients clipped at norm 1; a number is
                another rate for it.
            loss: `RankNet`, `ListwiseSoftmax`, `ListNet` or `PointwiseCrossEntropy` of
                `keras_encdec.training`; by default the second where rows have negatives, and
                the last where they have one document with a label.
            metrics: none; accuracy is reported, the share of rows whose positive scores highest.
            **kwargs: `logs`, as of `EncDecSeq2SeqLM.compile`, and those of `keras.Model.compile`.

        Raises:
            ValueError: if there is no such loss, or something is asked for that it does not do.
        """
        given = {"loss": loss, "metrics": metrics, **kwargs}
        self.compile_ranking(optimizer, loss, metrics=metrics, **kwargs)
        self._compiled_with = types.MappingProxyType(given)  # Keras would keep metrics of a dict

    # What is computed.

    def documents(
        self, token_ids: Tensor, padding_mask: Tensor, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Documents (B, S) to pooled states (B, G, D) and their mask (B, G)."""
        states = self.backbone.encoder(token_ids, padding_mask, training=training)
        return self.pool_groups(states, padding_mask)

    def log_odds(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        states: Tensor,
        states_mask: Tensor,
        training: bool | None = None,
    ) -> Tensor:
        """Of queries (B, T) on states of `documents`: (B,).

        In float32, whatever the policy, and of the two words alone: in bfloat16 logits near 10
        are 1/16 apart, and documents would tie.
        """
        decoder = self.backbone.decoder
        found = decoder(token_ids, padding_mask, states, states_mask, training=training)
        words = ops.take(output_matrix(decoder.embedding), np.array(self.word_ids), axis=0)
        sides = ops.cast(self.pool_last(found, padding_mask), "float32"), ops.cast(words, "float32")
        logits = ops.matmul(sides[0], ops.transpose(sides[1]))
        if (cap := decoder.embedding.logit_soft_cap) is not None:
            logits = cap * ops.tanh(logits / cap)
        return logits[:, 0] - logits[:, 1]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Tensor:
        """Model inputs to log-odds (B,)."""
        document, query = (
            (inputs[f"{side}_token_ids"], inputs[f"{side}_padding_mask"])
            for side in ("encoder", "decoder")
        )
        return self.log_odds(*query, *self.documents(*document, training), training)

    # What it is asked.

    def score(self, queries: Any, documents: Any, batch_size: int = 32) -> np.ndarray:
        """How well each document answers its query.

        Args:
            queries: a text or texts.
            documents: as many; each different one is read once.
            batch_size: documents, and queries, at a time.

        Returns:
            (N,) float32 probabilities, whatever the batches, the order and the padding are.

        Raises:
            FloatingPointError: if a score is not finite, naming the first.
            ValueError: if a text is empty, or there are not as many of both.
        """
        source = Ranked(strings(queries, "queries"), strings(documents, "documents"))
        different = Distinct.of(source.positives)
        asked = Distinct.of(source.queries)
        rows = self._reader.rows_of(asked.texts, "query")
        texts = self._texts(different.texts, batch_size)
        odds = texts.log_odds([rows[i] for i in asked.numbers], different.numbers)
        return scoring.probabilities(odds, source.positives)

    def rank(
        self, query: str, documents: Any, top: int | None = None, batch_size: int = 32
    ) -> list[RankedDocument]:
        """Documents by how well they answer a query, the best first.

        Args:
            query: a text.
            documents: texts; or what `encode_documents` left, as `EncodedDocuments` or the
                name of its folder, whose files are then checked in each call.
            top: how many are returned; None for all.
            batch_size: documents at a time.

        Returns:
            `(index, score)` each; of those that score alike the first comes first.

        Raises:
            FileNotFoundError: if there is no such folder.
            FloatingPointError: if a score is not finite, naming the first.
            ValueError: if a text is empty, or the folder is damaged, or of other weights or
                settings.
        """
        if top is not None:
            check.whole("top", top)
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"Expected a query, a text that is not empty. Received: {query!r}.")
        (row,) = self._reader.rows_of([query], "query")
        source = self._opened(documents, batch_size)
        odds = source.log_odds([row] * len(source), range(len(source)))
        scores = scoring.probabilities(odds, source.texts)
        best = np.argsort(-odds, kind="stable")[:top]
        return [RankedDocument(int(i), float(scores[i])) for i in best]

    def encode_documents(
        self, documents: Any, path: str | os.PathLike, batch_size: int = 32
    ) -> EncodedDocuments:
        """Reads documents once and keeps their pooled states on disk.

        After a kill, the same call goes on behind the last whole shard. States are kept in the
        dtype that the encoder computes in, G = tokens / `pooling` of its width for each document.

        Args:
            documents: texts.
            path: of the folder: new, empty, or begun by the same call.
            batch_size: documents at a time.

        Returns:
            `EncodedDocuments`, for `rank`.

        Raises:
            FloatingPointError: if a state is not finite, naming the first document.
            ValueError: if a text is empty, or the folder is finished, or begun with other
                texts, weights or settings.
        """
        texts = _documents(documents)
        source = self._texts(texts, batch_size)
        about = {**self._about(), "texts": scoring.digest_of(texts)}
        size = _SHARD_BATCHES * source.batch_size
        return write_encoded(path, about, len(texts), source.encoded, size)

    def _opened(self, documents: Any, batch_size: int) -> scoring.Source:
        """Documents to rank: texts, or states on disk."""
        if isinstance(documents, (str, os.PathLike)):
            documents = EncodedDocuments(documents)
        if not isinstance(documents, EncodedDocuments):
            return self._texts(_documents(documents), batch_size)
        self._check_current(documents)
        return scoring.Stored(self._made_programs(), self._reader, batch_size, documents)

    def _check_current(self, store: EncodedDocuments) -> None:
        made_by = {name: store.about.get(name) for name in self._about()}
        if made_by != self._about():
            where, *both = check.difference(made_by, self._about())
            theirs, ours = map(str, both)
            raise ValueError(
                f"Expected documents that this reranker has encoded. Received: {store.folder}, of "
                f"other {where} ({theirs:.12}, here {ours:.12}). Encode them again."
            )

    def _about(self) -> dict[str, Any]:
        """What states of documents depend on, beside their text."""
        backbone, reader = self.backbone, self._reader
        return scoring.about(backbone.encoder, reader.reader("document"), self.pooling)

    def _texts(self, texts: Sequence[str], batch_size: int) -> scoring.Texts:
        rows = self._reader.rows_of(texts, "document")
        return scoring.Texts(self._made_programs(), self._reader, batch_size, texts, rows)

    def _made_programs(self) -> scoring.Programs:
        """Anew after `compile`, `quantize` and `enable_lora`."""
        if hasattr(self, "jax_state_sync"):
            self.jax_state_sync()  # in the middle of an epoch, `fit` holds the weights
        if self._programs is None or not self._programs.is_current:
            self._programs = scoring.Programs(self)
        return self._programs

    @property
    def _reader(self) -> PairReader:
        if self.preprocessor is None:
            raise ValueError("Expected a preprocessor to read text. Received: none.")
        return self.preprocessor.reader

    # What `fit` and the others read.

    @property
    def _converter(self) -> PairReader | None:
        return None if self.preprocessor is None else self.preprocessor.reader

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Ranked:
        return as_judged(x, y, sample_weight)

    def _batch_source(self, source: Ranked, batching: Batching) -> BatchSource:
        reader = self._reader
        order = batching.order(reader, len(source))
        if batching.inputs_only:
            return of_rows(Rows(model_inputs(source, reader)), order, batching.steps)
        self._check_ranked(source)
        found = ranked_inputs(source, reader)
        relevance = np.zeros(found["document_ids"].shape, "float32")
        relevance[:, 0] = 1 if source.scores is None else source.scores
        weights = np.ones(len(source), "float32") if source.weights is None else source.weights
        rows = Rows({name: found[name] for name in _LEARNT}, relevance, weights)
        return of_rows(rows, order, batching.steps)

    def _check_ranked(self, source: Ranked) -> None:
        """Refuses what the loss cannot learn from."""
        loss, counts = self._row_loss, [len(row) for row in source.documents]
        loss = loss.of(max(counts)) if isinstance(loss, ByData) else loss
        name = type(loss).__name__
        if loss.compares and min(counts) < 2:
            raise ValueError(
                f"Expected negatives for each query with {name}, which compares documents. "
                f"Received: none in row {counts.index(min(counts))}. Leave it out, or learn from "
                "labels by PointwiseCrossEntropy."
            )
        if source.scores is None and max(counts) < 2:
            raise ValueError(
                "Expected labels or negatives. Received: neither, so that every document answers. "
                "Give columns query, document and label, or query, positive and negatives."
            )
        if source.scores is not None and not loss.reads_scores:
            raise ValueError(
                f"Expected no scores with {name}, which takes every positive for one. Received: "
                "the column score. Use ListNet or RankNet, or leave it out."
            )

    def get_config(self) -> dict[str, Any]:
        own = {"pooling": self.pooling, "word_ids": list(self.word_ids)}
        return {**super().get_config(), **own}


def _documents(documents: Any) -> list[str]:
    """Texts, none of which is empty."""
    texts = strings(documents, "documents")
    if not texts or not all(text.strip() for text in texts):
        empty = next((i for i, text in enumerate(texts) if not text.strip()), None)
        received = "none" if empty is None else f"an empty one, document {empty}"
        raise ValueError(f"Expected documents, each with text. Received: {received}.")
    return texts


def _word_ids(ids: Any, preprocessor: Any, backbone: EncDecBackbone) -> tuple[int, int]:
    if ids is None and preprocessor is None:
        raise ValueError(
            "Expected word_ids, the ids of two words, without a preprocessor. Received: none."
        )
    yes, no = preprocessor.word_ids if ids is None else ids
    most = backbone.spec.decoder.vocabulary_size - 1
    for word_id in (yes, no):
        check.whole("word_ids", word_id, least=0, most=most)
    if yes == no:
        raise ValueError(f"Expected two different word_ids. Received: {[yes, no]}.")
    return int(yes), int(no)
