"""Models as benchmarks ask them: tokens in, likelihoods or tokens out.

One class for a pair and one for a decoder-only model, with the same tokens for the same texts:
context and answer are tokenised apart, so that both score the same targets. Which questions are
asked, and in which order, `keras_encdec.evaluation.harness` knows.
"""

import abc
from collections.abc import Sequence
from typing import Any

import keras_hub
import numpy as np

from keras_encdec import check
from keras_encdec.evaluation.harness_causal import CausalEngine
from keras_encdec.evaluation.harness_requests import Request, Writing
from keras_encdec.generation import jobs
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.objectives import PrefixLM
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.objectives.rows import Inputs
from keras_encdec.objectives.tokenizer import encode
from keras_encdec.sharing.decoder_only import find
from keras_encdec.sharing.load import from_preset, load_decoder_only, makes_pair

SPLITS = "context", "prefix_lm"
_CAUSAL_LENGTH = 1024  # keras_hub.models.CausalLMPreprocessor's own sequence_length
Scored = list[tuple[np.ndarray, np.ndarray]]  # of each request (T,) log-probabilities and bools


class Model(abc.ABC):
    """What a benchmark needs of a model.

    Args:
        lm: the task.
        converter: with its tokenizers; its `chat` frames nothing here.
        max_length: tokens of a context at most.
    """

    def __init__(self, lm: Any, converter: FeatureConverter, max_length: int):
        self.lm, self.converter, self.max_length = lm, converter, max_length

    @property
    @abc.abstractmethod
    def window(self) -> int:
        """Targets of a window of a text that is scored whole."""

    @abc.abstractmethod
    def ask(
        self, context: Sequence[int], target: Sequence[int], room: int = 0
    ) -> tuple[Request, int]:
        """A question, and how many tokens of the context were left out on the left.

        Args:
            context: ids, in the encoder's vocabulary where there is one.
            target: ids whose likelihood is asked for.
            room: tokens that are to be written.
        """

    @abc.abstractmethod
    def go_on(self, before: Sequence[int], target: Sequence[int]) -> Request:
        """A question about targets that follow others.

        Args:
            before: some of the targets before, or the start token.
            target: ids whose likelihood is asked for.
        """

    @abc.abstractmethod
    def score(self, requests: Sequence[Request], batch_size: int) -> Scored:
        """For each the log-probabilities of its target, and which of it are the likeliest."""

    @abc.abstractmethod
    def write(
        self, requests: Sequence[Request], how: Writing, seed: int, batch_size: int
    ) -> list[list[int]]:
        """For each the ids that are written behind what is given."""

    @property
    def identity(self) -> str:
        """A digest of the weights, and of the tokens that they are for."""
        sizes = [tokenizer.vocabulary_size() for tokenizer in self._tokenizers()]
        backbone = self.lm.backbone
        what = type(self).__name__, backbone.compute_dtype, sizes
        return jobs.identity(backbone.variables, *what)

    def _tokenizers(self) -> list[Any]:
        return [self.converter.reads_by, self.converter.tokenizer]

    @property
    def prefix(self) -> int:
        """What is read where a context is empty: the start token, or if there is none the end."""
        reader = self.converter.reads_by
        return reader.end_token_id if reader.start_token_id is None else reader.start_token_id

    def contexts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of contexts; control tokens that they spell are those tokens.

        lm-eval builds its prompts as text, with the frames of turns in it.
        """
        if not texts:
            return []
        reads_by, template = self.converter.reads_by, self.converter.chat_template
        of = encode if template is None else self.converter.frame.encode
        return of(reads_by, list(texts))

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of answers, without an end token."""
        return encode(self.converter.tokenizer, list(texts)) if texts else []

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, without start and end tokens."""
        hidden = self.converter.start_token_id, *self.converter.stop_token_ids
        said = [int(i) for i in ids if i not in hidden]
        return self.converter.tokenizer.detokenize(said) if said else ""


class Pair(Model):
    """An encoder-decoder.

    Args:
        lm: `EncDecSeq2SeqLM`, with a preprocessor.
        split: `"context"`: the encoder reads the context; `"prefix_lm"`: its first half, and
            the decoder begins with the other, as PrefixLM splits a window.
        max_length: tokens that the encoder reads at most; the preprocessor's if None.

    Raises:
        ValueError: if there is no preprocessor, or two vocabularies for one split text.
    """

    def __init__(self, lm: EncDecSeq2SeqLM, split: str = "context", max_length: int | None = None):
        if lm.preprocessor is None:
            raise ValueError(
                "Expected a task with a preprocessor. Received: one without, on tokens."
            )
        self.split = check.one_of("split", split, SPLITS)
        if split == "prefix_lm" and lm.preprocessor.has_two_vocabularies:
            raise ValueError(
                "Expected one tokenizer for split='prefix_lm', which cuts a text's tokens in two. "
                "Received: an encoder_tokenizer. Use split='context'."
            )
        converter = lm.preprocessor.converter
        super().__init__(lm, converter, max_length or converter.encoder_sequence_length)
        self._writers: dict[Writing, EncDecSeq2SeqLM] = {}

    @property
    def window(self) -> int:
        return self.converter.decoder_sequence_length

    def ask(
        self, context: Sequence[int], target: Sequence[int], room: int = 0
    ) -> tuple[Request, int]:
        start, context, before = self.converter.start_token_id, list(context), 0
        if self.split == "prefix_lm":
            before = self.converter.decoder_sequence_length - 1
        kept = context[-(self.max_length + before) :]
        size = len(kept)
        if before:
            half, _ = PrefixLM().prefix_range(len(kept))
            size = max(1, min(max(half, len(kept) - before), self.max_length))
        request = Request(tuple(kept[:size]), (start, *kept[size:]), tuple(target))
        return request, max(0, len(context) - len(kept))

    def go_on(self, before: Sequence[int], target: Sequence[int]) -> Request:
        start = self.converter.start_token_id
        read = [self.prefix] if list(before) == [start] else list(before)
        if self.lm.preprocessor.has_two_vocabularies and read == list(before):
            read = self.contexts([self.text(before)])[0] or [self.prefix]
        return Request(tuple(read[-self.max_length :]), (start,), tuple(target))

    def score(self, requests: Sequence[Request], batch_size: int) -> Scored:
        found = self.lm.score(self._inputs(requests), batch_size)
        each = zip(requests, found.per_token, found.likeliest, strict=True)
        return [(row[len(r.given) - 1 :], best[len(r.given) - 1 :]) for r, row, best in each]

    def write(
        self, requests: Sequence[Request], how: Writing, seed: int, batch_size: int
    ) -> list[list[int]]:
        found = self._writer(how).generate(
            self._inputs(requests),
            max(len(request.given) for request in requests) + how.most,
            strip_prompt=True,
            stop_strings=how.until,
            seed=seed,
            batch_size=batch_size,
        )
        rows = zip(found["decoder_token_ids"], found["decoder_padding_mask"], strict=True)
        return [ids[kept][: how.most].tolist() for ids, kept in rows]

    def _inputs(self, requests: Sequence[Request]) -> Inputs:
        sources = [[r.source] for r in requests]
        targets = [[r.given + r.target] for r in requests]
        lengths = (max(2, *(len(side) for (side,) in rows)) for rows in (sources, targets))
        return self.converter.resized(*lengths).rows.model_inputs(sources, targets)

    def _writer(self, how: Writing) -> EncDecSeq2SeqLM:
        """A task of the same weights with another sampler; the user's keeps its own."""
        _sync(self.lm)
        if how.sampling not in self._writers:
            writer = type(self.lm)(self.lm.backbone, self.lm.preprocessor)
            writer.compile(sampler=how.sampler())
            self._writers[how.sampling] = writer
        return self._writers[how.sampling]


class Causal(Model):
    """A decoder-only model, which reads and writes one text.

    Args:
        lm: `keras_hub.models.CausalLM`.
        tokenizer: its own; that of its preprocessor if None.
        max_length: tokens that it reads at most; its preprocessor's, or 1024, if None.

    Raises:
        ValueError: if there is no tokenizer, or the model reads more than a text.
    """

    def __init__(self, lm: Any, tokenizer: Any = None, max_length: int | None = None):
        tokenizer = find(lm).tokenizer() if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ValueError("Expected a model with a tokenizer. Received: one without.")
        length = getattr(lm.preprocessor, "sequence_length", None) or _CAUSAL_LENGTH
        length = max_length or length
        super().__init__(lm, FeatureConverter(tokenizer, None, length, length, PrefixLM()), length)
        start = tokenizer.start_token_id
        self._start = [] if start is None else [start]
        self._engine = CausalEngine(lm)

    @property
    def window(self) -> int:
        return self.max_length - len(self._start)

    def ask(
        self, context: Sequence[int], target: Sequence[int], room: int = 0
    ) -> tuple[Request, int]:
        if room >= self.window:
            raise ValueError(
                f"Expected max_gen_toks below {self.window}, which max_length = {self.max_length} "
                f"leaves. Received: {room}. Give a larger max_length."
            )
        context = list(context)
        if self._start and context[:1] == self._start:  # a frame that spells it, an empty context
            context = context[1:]
        least = 0 if self._start else 1
        left = max(least, self.max_length - max(room, len(target) - 1) - len(self._start))
        kept = context[max(0, len(context) - left) :]
        given = self._start + kept or [self.converter.start_token_id]
        return Request((), tuple(given), tuple(target)), len(context) - len(kept)

    def go_on(self, before: Sequence[int], target: Sequence[int]) -> Request:
        return self.ask(before, target)[0]

    def score(self, requests: Sequence[Request], batch_size: int) -> Scored:
        _sync(self.lm)
        return self._engine.score(requests, batch_size)

    def write(
        self, requests: Sequence[Request], how: Writing, seed: int, batch_size: int
    ) -> list[list[int]]:
        _sync(self.lm)
        stops = self.converter.stop_token_ids
        return self._engine.write(requests, how, stops, seed, batch_size)


def model_of(
    model: Any, split: str = "context", max_length: int | None = None, dtype: Any = None
) -> Model:
    """What can be evaluated.

    Args:
        model: `EncDecSeq2SeqLM`, a KerasHub `CausalLM`, or the name, handle or folder of
            either: a recipe and a finished pair are pairs, what `adapt` would convert is
            evaluated as it is.
        split: as of `Pair`.
        max_length: as of `Pair` and `Causal`.
        dtype: of a model that is loaded.

    Raises:
        ValueError: if it is neither, or there is none of that name.
    """
    check.one_of("split", split, SPLITS)
    if max_length is not None:
        max_length = check.whole("max_length", max_length, least=2)
    tokenizer = None
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        name = str(model)
        if makes_pair(name):
            model = from_preset(name, dtype=dtype)
        else:
            model, tokenizer = load_decoder_only(name, dtype)
    if isinstance(model, EncDecSeq2SeqLM):
        return Pair(model, split, max_length)
    if isinstance(model, keras_hub.models.CausalLM):
        return Causal(model, tokenizer, max_length)
    raise ValueError(
        "Expected an EncDecSeq2SeqLM, a CausalLM of KerasHub, or the name or folder of one. "
        f"Received: {type(model).__name__}."
    )


def _sync(lm: Any) -> None:
    """In the middle of an epoch, `fit` holds the weights on JAX."""
    if hasattr(lm, "jax_state_sync"):
        lm.jax_state_sync()
