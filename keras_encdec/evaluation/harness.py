"""`LM`: lm-eval's interface to a model.

Knows what lm-eval hands over and wants back, what was answered before, and in which order the
rest is asked. Leaves tokens and programs to `keras_encdec.evaluation.harness_models`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keras_encdec import check, progress
from keras_encdec.data.tokens import vocabulary_digest
from keras_encdec.evaluation.harness_answers import Answers
from keras_encdec.evaluation.harness_models import Model, model_of
from keras_encdec.evaluation.harness_requests import Request, Writing, key_of
from keras_encdec.generation.text import cut
from keras_encdec.objectives import chat
from keras_encdec.warn import warn

try:
    import lm_eval.api.model
    import lm_eval.utils
except ImportError as error:
    raise ImportError(
        "Expected lm-eval, for keras_encdec.evaluation.LM and `keras-encdec eval`. Received: "
        f'{error}. pip install "keras-encdec[eval]"'
    ) from error

_BATCHES = 4  # between two writes to the file of answers
_DRAWN = 256  # texts that are drawn between two: what each gets hangs on its place among them
_MODEL = "assistant", "model"


class LM(lm_eval.api.model.LM):
    """A pair, or the decoder-only model beside it, as a model of lm-eval.

    Of a pair the encoder reads the context, few-shot examples included, and the decoder is
    scored on the continuation without an end token, as with `HFLM(backend="seq2seq")`. Both
    are tokenised apart, of a decoder-only model too, so that the two score the same tokens.
    Each distinct context is read once, and each distinct question is asked once.

    Args:
        pretrained: `keras_encdec.models.EncDecSeq2SeqLM`, a KerasHub `CausalLM`, or the name,
            handle or folder of one of them; see `keras_encdec.evaluation.harness_models.model_of`.
        batch_size: contexts, and continuations, at a time; changes no result.
        max_length: tokens of a context at most; a longer one loses its beginning, which is
            counted in `cut_contexts` and told. By default the preprocessor's
            `encoder_sequence_length`, of a decoder-only model its `sequence_length` or 1024.
        max_gen_toks: tokens of an output at most, where a task does not say; 256 as in HFLM.
        split: what a pair's encoder reads: `"context"`, or with `"prefix_lm"` its first half,
            while the decoder begins with the second, as in PrefixLM adaptation.
        answers: a file that grows with each answer and is read again by later calls, so that
            an evaluation goes on after a kill. It may hold those of several models and tasks.
        seed: what sampled outputs follow from, with their order.
        dtype: of a model that is loaded by name.

    Attributes:
        cut_contexts: contexts that lost their beginning so far, each once for each request.

    Raises:
        ImportError: if lm-eval is not installed.
        ValueError: if there is no such model, or an argument is out of range.

    Example:
        >>> lm = keras_encdec.evaluation.LM("gemma2_tiny_tiny", answers="answers.jsonl")
        >>> lm_eval.simple_evaluate(lm, tasks=["arc_easy"])["results"]
    """

    def __init__(
        self,
        pretrained: Any,
        batch_size: int = 32,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        split: str = "context",
        answers: str | os.PathLike | None = None,
        seed: int = 0,
        dtype: Any = None,
    ):
        super().__init__()
        self.batch_size = check.whole("batch_size", batch_size)
        self.max_gen_toks = check.whole("max_gen_toks", max_gen_toks)
        self.seed = check.whole("seed", seed, least=0)
        self.cut_contexts = 0
        self._answers = Answers(answers)
        self.model: Model = model_of(pretrained, split, max_length, dtype)

    @property
    def max_length(self) -> int:
        """Tokens of a context at most."""
        return self.model.max_length

    # What lm-eval asks.

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each `(context, continuation)` the log-likelihood, and whether it is greedy.

        Args:
            requests: lm-eval's instances. White space at the end of a context is moved to the
                continuation, and an empty context is read as the start token.
            disable_tqdm: taken as lm-eval gives it; see `keras_encdec.progress`.

        Raises:
            ValueError: if a continuation has no token; nothing was asked then.
        """
        pairs = [_moved(*request.args[:2]) for request in requests]
        contexts = _by_text(self.model.contexts, [context for context, _ in pairs])
        targets = _by_text(self.model.targets, [target for _, target in pairs])
        prefix = [self.model.prefix]
        asked = []
        for request, (context, target) in zip(requests, pairs, strict=True):
            read, written = contexts[context] or prefix, targets[target]
            if not contexts[context] and written[:1] == prefix:
                written = written[1:]  # is what is read; lm_eval.api.model.TemplateLM
            _check_some(written, "continuation", request)
            asked.append(self.model.ask(read, written))
        return self._scored(self._told(asked))

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Of each text the log-likelihood of all its tokens, in windows.

        A pair's encoder reads what stands before a window: the start token, then one token,
        and before the last window as many as fill it; HFLM does the same.

        Raises:
            ValueError: if a text has no token; nothing was asked then.
        """
        ids = _by_text(self.model.targets, [request.args[0] for request in requests])
        windows: list[list[Request]] = []
        for request in requests:
            _check_some(ids[request.args[0]], "text", request)
            windows.append(self._windows(ids[request.args[0]]))
        found = iter(self._scored([w for some in windows for w in some]))
        return [float(sum(next(found)[0] for _ in some)) for some in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Of each `(context, generation_kwargs)` a text, up to the first of its `until`.

        Args:
            requests: lm-eval's instances. Options are `until`, `max_gen_toks` and its other
                names, `do_sample`, `temperature`, `top_k`, `top_p` and, of pairs, `num_beams`.
            disable_tqdm: taken as lm-eval gives it.

        Raises:
            ValueError: if there is no such option, it has no such value, or it leaves no room
                for a context; nothing was asked then.
        """
        contexts = _by_text(self.model.contexts, [request.args[0] for request in requests])
        prefix = [self.model.prefix]
        asked, ways = [], []
        for request in requests:
            how = self._writing(request)
            asked.append(self.model.ask(contexts[request.args[0]] or prefix, (), how.most))
            ways.append(how)
        return self._written(self._told(asked), ways)

    # Chats.

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages as one text, in the turns of the tokenizer's own format.

        Args:
            chat_history: as of `keras_encdec.objectives.chat.turns`.
            add_generation_prompt: False where the last message is the model's, to go on with.

        Raises:
            ValueError: if messages are out of turn, or the tokenizer has no turns.
        """
        messages, begun = list(chat_history), ""
        if not add_generation_prompt and messages and messages[-1].get("role") in _MODEL:
            begun = messages.pop()["content"]
        return self.model.converter.frame.conversation(*chat.turns(messages)) + begun

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The format of turns, for records; None where no chat is asked for."""
        return self.model.converter.frame.shown if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests is known by: the tokenizer and its format of turns."""
        tokenizer, template = self.model.converter.reads_by, self.model.converter.chat_template
        name = f"{type(tokenizer).__name__}-{vocabulary_digest(tokenizer)[:16]}"
        if template is not None:
            return f"{name}-{hashlib.sha256(template.encode()).hexdigest()[:16]}"
        frame = chat.format_of(tokenizer)
        return name if frame is None else f"{name}-{frame.end}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval records of a model."""
        backbone = self.model.lm.backbone
        return {
            "model_num_parameters": backbone.count_params(),
            "model_dtype": backbone.variable_dtype,
            "max_length": self.max_length,
            "split": getattr(self.model, "split", None),
        }

    # What is asked of the model.

    def _windows(self, ids: Sequence[int]) -> list[Request]:
        """Every token is the target of one window; lm_eval.utils says of which."""
        prefix, window = self.model.converter.start_token_id, self.model.window
        rolling = lm_eval.utils.get_rolling_token_windows(list(ids), prefix, window, 1)
        parts = map(lm_eval.utils.make_disjoint_window, rolling)
        return [self.model.go_on(before, target) for before, target in parts]

    def _writing(self, request: Any) -> Writing:
        options = request.args[1]
        try:
            return Writing.asked(options, self.max_gen_toks)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{error} It is asked {_where(request)}.") from error

    def _told(self, asked: Sequence[tuple[Request, int]]) -> list[Request]:
        """The requests; what was cut of their contexts is counted and told."""
        lost = [tokens for _, tokens in asked if tokens]
        self.cut_contexts += len(lost)
        if lost:
            warn(
                f"{len(lost)} of {len(asked)} contexts lost their beginning, up to {max(lost)} "
                f"tokens of it, as max_length is {self.max_length}."
            )
        return [request for request, _ in asked]

    def _scored(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of each request the sum over its target, and whether all of it is greedy."""
        identity = self.model.identity
        keys = [key_of(identity, request) for request in requests]
        with self._answers.open() as answers:
            todo = {k: r for k, r in zip(keys, requests, strict=True) if k not in answers}

            def each() -> Iterator[str]:
                for some in _whole_contexts(todo, _BATCHES * self.batch_size):
                    found = self.model.score([todo[key] for key in some], self.batch_size)
                    sums = [
                        [float(row.sum(dtype="float64")), bool(best.all())] for row, best in found
                    ]
                    answers.add(dict(zip(some, sums, strict=True)))
                    yield from some

            for _ in progress.track(each(), "Scoring", len(todo)):
                pass
            found = [answers[key] for key in keys]
        return [(total, greedy) for total, greedy in found]

    def _written(self, requests: Sequence[Request], ways: Sequence[Writing]) -> list[str]:
        """Of each request a text, as it is to be written."""
        keys = self._keys(requests, ways)
        with self._answers.open() as answers:

            def each() -> Iterator[str]:
                for how in dict.fromkeys(ways):
                    asked = zip(keys, requests, ways, strict=True)
                    yield from self._write({k: r for k, r, way in asked if way == how}, how)

            left = sum(key not in answers for key in set(keys))
            for _ in progress.track(each(), "Writing", left):
                pass
            return [answers[key] for key in keys]

    def _keys(self, requests: Sequence[Request], ways: Sequence[Writing]) -> list[str]:
        """What each is known by: a text that is drawn also by how often it was asked before."""
        identity, before = self.model.identity, Counter[tuple[Request, Writing]]()
        keys = []
        for asked in zip(requests, ways, strict=True):
            request, how = asked
            more = (self.seed, before[asked]) if how.draws else ()
            before[asked] += 1
            keys.append(key_of(identity, request, how, *more))
        return keys

    def _write(self, asked: Mapping[str, Request], how: Writing) -> Iterator[str]:
        """Keys of texts as they are written, some at a time."""
        order = sorted(asked, key=lambda key: -_length(asked[key]))
        size = _DRAWN if how.draws else _BATCHES * self.batch_size
        for number, at in enumerate(range(0, len(order), size)):
            some = order[at : at + size]
            missing = [key for key in some if key not in self._answers]
            if not missing:
                continue
            some = some if how.draws else missing
            seed = (self.seed + number) % 2**31
            found = self.model.write([asked[key] for key in some], how, seed, self.batch_size)
            texts = [cut(self.model.text(ids), how.until) for ids in found]
            self._answers.add(dict(zip(some, texts, strict=True)))
            yield from missing


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context belongs to the continuation's first word."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _by_text(
    encode: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str]
) -> dict[str, list[int]]:
    """The ids of each text, which is encoded once."""
    each = list(dict.fromkeys(check.text("a request", text) for text in texts))
    return dict(zip(each, encode(each), strict=True))


def _check_some(ids: Sequence[int], what: str, request: Any) -> None:
    if not ids:
        raise ValueError(
            f"Expected a {what} of at least one token. Received: {request.args[-1]!r} "
            f"{_where(request)}. Leave it out of the data."
        )


def _where(request: Any) -> str:
    """The place of a request in its task, counted from 0."""
    return f"in document {request.doc_id} of task {request.task_name!r}"


def _length(request: Request) -> int:
    return len(request.source) + len(request.given)


def _whole_contexts(asked: Mapping[str, Request], size: int) -> Iterator[list[str]]:
    """Keys, the longest contexts first; about so many at a time, never parting one context."""

    def context(key: str) -> tuple:
        return -_length(asked[key]), asked[key].source, asked[key].given

    order, at = sorted(asked, key=context), 0
    while at < len(order):
        end = min(at + size, len(order))
        while end < len(order) and context(order[end]) == context(order[end - 1]):
            end += 1
        yield order[at:end]
        at = end
