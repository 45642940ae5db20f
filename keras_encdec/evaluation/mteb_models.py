"""An embedder and a reranker as mteb evaluates them.

Knows mteb's names of prompts and what it asks of models. Leaves vectors to
`keras_encdec.models.text_embedder` and scores to `keras_encdec.models.reranker`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_encdec import check
from keras_encdec.generation import jobs
from keras_encdec.models import EncDecReranker, EncDecTextEmbedder
from keras_encdec.warn import warn

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.similarity_functions import cos_sim, pairwise_cos_sim
except ImportError as error:
    raise ImportError(
        "Expected mteb, for MTEBEncoder and MTEBReranker of keras_encdec.evaluation. Received: "
        f'{error}. pip install "keras-encdec[mteb]"'
    ) from error

_FRAMEWORKS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
_ASKED = "batch_size", "show_progress_bar"


class MTEBEncoder(AbsEncoder):
    """An embedder for `mteb.evaluate`.

    Texts get the preprocessor's prompt whose name is, in mteb's order, the task's with the kind of
    text (`"NFCorpus-query"`), the task's, the task type's (`"STS"`, `"Classification-query"`), or
    the kind's (`"query"`, `"document"`); none where there is none of these. Results that mteb keeps
    are found again by `name` and by a digest of weights and settings, its `revision`: a model that
    trained on has another.

    Args:
        pretrained: `EncDecTextEmbedder` with its preprocessor, or the name, handle or folder of
            one.
        name: of the model in results, `"owner/model"`.
        batch_size: texts at a time, where `encode_kwargs` does not say; changes no result.
        dimensions: numbers of each vector that are kept, as of `encode_text`.

    Raises:
        ImportError: if mteb is not installed.
        ValueError: if there is no preprocessor, or an argument is out of range.

    Example:
        >>> encoder = keras_encdec.evaluation.MTEBEncoder(embedder, name="me/my_embedder")
        >>> mteb.evaluate(encoder, mteb.get_tasks(tasks=["NFCorpus"]))
    """

    def __init__(
        self,
        pretrained: Any,
        name: str = "keras_encdec/embedder",
        batch_size: int = 32,
        dimensions: int | None = None,
    ) -> None:
        self.model = _with_text(pretrained, EncDecTextEmbedder)
        self.batch_size = check.whole("batch_size", batch_size)
        width = self.model.output_shape[-1]
        self.dimensions = check.whole("dimensions", dimensions or width, most=width)
        self._name = _owned(name)

    @property
    def model_prompts(self) -> dict[str, str]:  # type: ignore[override]
        """Those of the preprocessor, by name."""
        return self.model.preprocessor.prompts

    @property
    def mteb_model_meta(self) -> ModelMeta:  # type: ignore[override]
        """What mteb records of a model."""
        return _meta(
            self.model,
            self._name,
            self.dimensions,
            embed_dim=self.dimensions,
            max_tokens=self.model.preprocessor.sequence_length,
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=bool(self.model_prompts),
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(N, M) cosines of vectors (N, E) and (M, E), as mteb computes them."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(N,) cosines of vectors (N, E) and (N, E)."""
        return pairwise_cos_sim(embeddings1, embeddings2)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors of texts, in their order.

        Args:
            inputs: batches with `text`, as mteb's loaders give them.
            task_metadata: mteb's, which the prompt's name follows from.
            hf_split: taken as mteb gives it.
            hf_subset: likewise.
            prompt_type: mteb's `PromptType`, or None.
            **kwargs: `batch_size`; and `show_progress_bar`, for which see
                `keras_encdec.progress`.

        Returns:
            (N, E) float32. A text of nothing, prompt included, gets zeros, which is told.

        Raises:
            TypeError: if there is no such keyword.
            ValueError: if inputs are no texts.
        """
        check.keywords("a keyword of encode()", kwargs, _ASKED)
        name = self.get_prompt_name(task_metadata, prompt_type)
        said = self.model_prompts[name] if name else ""
        texts = [said + text for text in _texts(inputs)]
        vectors = np.zeros((len(texts), self.dimensions), "float32")
        there = [number for number, text in enumerate(texts) if text.strip()]
        if len(there) < len(texts):
            warn(f"{len(texts) - len(there)} of {len(texts)} texts are empty: they get zeros.")
        if there:
            vectors[there] = self.model.encode_text(
                [texts[number] for number in there],
                batch_size=kwargs.get("batch_size", self.batch_size),
                dimensions=self.dimensions,
            )
        return vectors


class MTEBReranker:
    """A reranker for `mteb.evaluate`, on its reranking tasks.

    Documents are read once for all queries of a task that ask for them. Results that mteb keeps are
    found again as those of `MTEBEncoder`.

    Args:
        pretrained: `EncDecReranker` with its preprocessor, or the name, handle or folder of one.
        name: of the model in results, `"owner/model"`.
        batch_size: documents, and queries, at a time, where `encode_kwargs` does not say; changes
            no result.

    Raises:
        ImportError: if mteb is not installed.
        ValueError: if there is no preprocessor, or an argument is out of range.

    Example:
        >>> reranker = keras_encdec.evaluation.MTEBReranker("./my_reranker", name="me/my_reranker")
        >>> mteb.evaluate(reranker, mteb.get_tasks(tasks=["AskUbuntuDupQuestions"]))
    """

    def __init__(
        self, pretrained: Any, name: str = "keras_encdec/reranker", batch_size: int = 32
    ) -> None:
        self.model = _with_text(pretrained, EncDecReranker)
        self.batch_size = check.whole("batch_size", batch_size)
        self._name = _owned(name)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb records of a model."""
        preprocessor = self.model.preprocessor
        return _meta(
            self.model,
            self._name,
            self.model.word_ids,
            model_type=["cross-encoder"],
            max_tokens=preprocessor.encoder_sequence_length,
            use_instructions=bool(preprocessor.instruction),
        )

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """How well documents answer queries.

        Args:
            inputs1: batches with `text`, queries.
            inputs2: likewise, as many documents.
            task_metadata: taken as mteb gives it.
            hf_split: likewise.
            hf_subset: likewise.
            prompt_type: likewise.
            **kwargs: `batch_size`; and `show_progress_bar`, for which see
                `keras_encdec.progress`.

        Returns:
            (N,) float32 from 0 to 1. A pair with an empty text gets 0, which is told.

        Raises:
            TypeError: if there is no such keyword.
            ValueError: if inputs are no texts, or not as many of both.
        """
        check.keywords("a keyword of predict()", kwargs, _ASKED)
        pairs = list(zip(_texts(inputs1), _texts(inputs2), strict=True))
        scores = np.zeros(len(pairs), "float32")
        there = [number for number, pair in enumerate(pairs) if all(map(str.strip, pair))]
        if len(there) < len(pairs):
            warn(f"{len(pairs) - len(there)} of {len(pairs)} pairs have an empty text: they get 0.")
        if there:
            queries, documents = zip(*(pairs[number] for number in there), strict=True)
            size = kwargs.get("batch_size", self.batch_size)
            scores[there] = self.model.score(list(queries), list(documents), size)
        return scores


def _with_text(pretrained: Any, kind: Any) -> Any:
    model = pretrained if isinstance(pretrained, kind) else kind.from_preset(pretrained)
    if model.preprocessor is None:
        raise ValueError(f"Expected {kind.__name__} with a preprocessor. Received: one without.")
    return model


def _owned(name: str) -> str:
    if "/" not in check.text("name", name):
        raise ValueError(f"Expected a name as 'owner/model', as mteb has it. Received: {name!r}.")
    return name


def _meta(model: Any, name: str, *own: Any, **facts: Any) -> ModelMeta:
    """What mteb records of a task; `own` is what its outputs depend on beside the usual."""
    no_results = dict.fromkeys(("tokenizer", "encoder_tokenizer", "name"))
    settings = model.preprocessor.get_config() | no_results
    what = str(model.backbone.compute_dtype), *own, model.pooling, settings
    return ModelMeta.create_empty(
        {
            "name": name,
            "revision": jobs.identity(model.variables, *what)[:16],
            "n_parameters": model.count_params(),
            "framework": [_FRAMEWORKS[keras.backend.backend()]],
            **facts,
        }
    )


def _texts(batches: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for batch in batches:
        if "text" not in batch:
            raise ValueError(
                f"Expected batches of texts. Received: {sorted(batch)}. It is no text task."
            )
        yield from batch["text"]
