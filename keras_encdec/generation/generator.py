"""`generate` and what belongs to it, for a task.

Knows prompts, stops and what comes back. What data is, `keras_encdec.data` says; many prompts
are `keras_encdec.generation.jobs`' business, rows of tokens
`keras_encdec.generation.session`'s, programs `keras_encdec.generation.engine`'s.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_encdec.data.kinds import ModelInputs
from keras_encdec.data.prompts import Prompts, in_memory, prompts_of, whole_pairs
from keras_encdec.generation import jobs
from keras_encdec.generation.engine import Engine
from keras_encdec.generation.results import Encoding, Scores, apart, together
from keras_encdec.generation.session import BeamSession, DecodingSession, pad
from keras_encdec.generation.text import certain, completed_at, cut
from keras_encdec.objectives.converter import FeatureConverter

_BETWEEN_LOOKS = 8  # tokens written before texts are searched for stop strings


class Generator:
    """Gives a task `generate`, `generate_stream`, `chat`, `encode`, `decode` and `score`.

    The task brings `backbone`, `preprocessor` and, when compiled, `sampler`.
    """

    backbone: Any
    preprocessor: Any
    sampler: Any
    run_eagerly: bool
    generate_function: Engine | None

    @property
    def compile_counts(self) -> dict[str, int]:
        """Programs that generation compiled since `compile`, of each kind.

        Lengths and batches are padded to a few sizes (`keras_encdec.generation.buckets`),
        so the counts grow with the sizes, not with the prompts.
        """
        return self.make_generate_function().compile_counts

    def make_generate_function(self) -> Engine:
        """The `Engine`, anew after `compile`, `quantize` and `enable_lora`."""
        if hasattr(self, "jax_state_sync"):
            self.jax_state_sync()  # in the middle of an epoch, `fit` holds the weights
        if self.generate_function is None or not self.generate_function.is_current:
            self.generate_function = Engine(self.backbone, self.sampler, self.run_eagerly)
        return self.generate_function

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
        *,
        batch_size: int = 32,
        path: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Writes an output for each input.

        What a row gets does not depend on the other rows nor on padding; drawing at
        random, it depends on the row's place in its batch. More inputs than `batch_size`
        are sorted by length and gone through with a progress bar; outputs come back in
        the order of the inputs.

        Args:
            inputs: a text or texts, of any kind that `fit` takes; with `decoder_text` beside
                `encoder_text`, what the outputs begin with; or model inputs.
            max_length: tokens of an output at most, with `<bos>` and prompt; by default
                the preprocessor's `decoder_sequence_length`, of model inputs T.
            stop_token_ids: ids that end an output; `"auto"` for the tokenizer's end
                tokens, None for none.
            strip_prompt: leave the prompt out of the outputs.
            batch_size: inputs at a time.
            path: a file of JSON lines for the outputs, which grows as they are made. After
                a kill, the same call goes on.
            **kwargs: of `decode`.

        Returns:
            A text for a text, a list for a batch; with `num_samples`, a list of texts
            for each. For model inputs `{"decoder_token_ids", "decoder_padding_mask"}`,
            (B * n, T) each, where the mask has what was written, up to a stop.
        """
        options = {
            "max_length": max_length,
            "stop_token_ids": stop_token_ids,
            "strip_prompt": strip_prompt,
            **kwargs,
        }
        batch_size = _whole_number("batch_size", batch_size)
        prompts = self._read(inputs)
        if path is None and len(prompts) <= batch_size:
            return self.decode(self._encode(prompts), **options)
        return self._generate_many(prompts, batch_size, path, options)

    def _generate_many(
        self,
        prompts: Prompts,
        batch_size: int,
        path: str | os.PathLike | None,
        options: dict[str, Any],
    ) -> Any:
        longest = max(prompts.starts)
        options["max_length"] = self._checked(longest, **{**options, "tokens": prompts.width})
        seed, scored = options.get("seed"), options.get("return_scores", False)
        samples = options.get("num_samples") or 1

        def write(numbers: list[int]) -> list:
            if seed is not None:  # batches alike would draw alike
                drawn = np.random.SeedSequence([seed, numbers[0]]).generate_state(1)
                options["seed"] = int(drawn[0]) >> 1  # PyTorch's have 31 bits
            found = self.decode(self._encode(prompts.some(numbers)), **options)
            parts = list(found) if scored else [found]
            if prompts.width is not None:
                parts = [apart(part, samples) for part in parts]
            return list(zip(*parts, strict=True)) if scored else parts[0]

        identity = "" if path is None else self._identity(prompts.ids(), options)
        outputs = jobs.run(write, prompts.lengths, batch_size, path, identity)
        parts = list(map(list, zip(*outputs, strict=True))) if scored else [outputs]
        if prompts.width is not None:
            parts = [together(part) for part in parts]
        elif prompts.single:
            parts = [part[0] for part in parts]
        return tuple(parts) if scored else parts[0]

    def _identity(self, *what: Any) -> str:
        """A digest of what a call is asked, how it samples, and of the weights."""
        sampler = [type(self.sampler).__name__, self.sampler.get_config()]
        asked = json.dumps([*what, sampler], default=str, sort_keys=True)
        digest = hashlib.sha256(asked.encode())
        for variable in self.backbone.variables:
            first = functools.reduce(lambda x, _: x[0], variable.shape[1:], variable.value)
            digest.update(np.ascontiguousarray(ops.convert_to_numpy(first)).tobytes())
        return digest.hexdigest()

    def chat(self, messages: Any, max_length: int | None = None, **kwargs: Any) -> Any:
        """Answers the last message of a conversation.

        Args:
            messages: as of `keras_encdec.objectives.chat.turns`, such as
                `[{"role": "user", "content": "Hello!"}]`; or a text.
            max_length: as in `generate`.
            **kwargs: of `decode`.

        Returns:
            The answer.

        Raises:
            ValueError: if messages are out of turn, or the tokenizer has no turns.
        """
        converter = self._required_converter()
        prompts = Prompts.of_ids([converter.of_chat(messages)], converter, single=True)
        return self.decode(self._encode(prompts), max_length, **kwargs)

    def score(self, pairs: Any, batch_size: int = 32) -> Scores:
        """Log-likelihoods of texts, given others, without writing anything.

        Args:
            pairs: pairs of texts, of any kind that `fit` takes; or model inputs, of whose
                decoder tokens all but the first are scored. No decoder text is cut.
            batch_size: pairs at a time.

        Returns:
            `Scores`, over the tokens of `decoder_text` and its end token.
        """
        source = in_memory(pairs)
        if isinstance(source, ModelInputs):
            x = source.x
            ids, mask = (x[f"decoder_{name}"] for name in ("token_ids", "padding_mask"))
            y, weight = (np.pad(a[:, 1:], [(0, 0), (0, 1)]) for a in (ids, mask > 0))
        else:
            x, y, weight = whole_pairs(source, self._required_converter())
        engine = self.make_generate_function()

        def write(rows: list[int]) -> list[np.ndarray]:
            found = engine.score({k: a[rows] for k, a in x.items()}, y[rows], weight[rows])
            return [row[kept > 0] for row, kept in zip(found, weight[rows], strict=True)]

        lengths = (x["encoder_padding_mask"] > 0).sum(axis=1)
        found = jobs.run(write, lengths, _whole_number("batch_size", batch_size))
        return Scores(np.array([row.sum() for row in found], "float32"), found)

    def encode(self, inputs: Any) -> Encoding:
        """Runs the encoder, once for all the outputs that `decode` is asked for.

        Args:
            inputs: as of `generate`, one batch of them.

        Returns:
            `Encoding`.
        """
        return self._encode(self._read(inputs))

    def _read(self, inputs: Any) -> Prompts:
        source = in_memory(inputs)
        if isinstance(source, ModelInputs):
            return Prompts.of_arrays(source.x)
        converter = self._required_converter()
        return Prompts.of_ids(prompts_of(source, converter), converter, source.single)

    def _encode(self, prompts: Prompts) -> Encoding:
        arrays = prompts.arrays()
        sides = arrays["encoder_token_ids"], arrays["encoder_padding_mask"]
        context = self.make_generate_function().encode(*sides, prompts.longest)
        given = arrays["decoder_padding_mask"].astype(bool)
        ids = arrays["decoder_token_ids"]
        return Encoding(context, ids, given, prompts.single, prompts.width is not None)

    def decode(
        self,
        encoding: Encoding,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
        *,
        stop_strings: Sequence[str] = (),
        num_samples: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        return_scores: bool = False,
    ) -> Any:
        """Writes outputs for inputs that were encoded; see `generate`.

        Args:
            encoding: `Encoding`, from `encode`.
            max_length: as in `generate`.
            stop_token_ids: as in `generate`.
            strip_prompt: as in `generate`.
            stop_strings: texts that end an output, which does not contain them; of model
                inputs, the mask ends with the token that completes one.
            num_samples: outputs for each input, all from one encoding; with `BeamSearch`
                the best ones, the best first.
            temperature: of this call, in place of the sampler's.
            seed: of this call; the sampler's own state stays where it is.
            return_scores: return `(outputs, scores)`, with `BeamSearch`: of each output
                the log-likelihood of what was written, as `score` gives it.

        Raises:
            ValueError: if an argument is out of range.
        """
        options: dict[str, Any] = {"temperature": temperature, "seed": seed}
        options["num_samples"] = num_samples
        session = self._session(encoding, max_length, stop_token_ids, stop_strings, **options)
        if return_scores and not isinstance(session, BeamSession):
            raise ValueError(
                "Expected BeamSearch for return_scores. Received: "
                f"{type(self.sampler).__name__}. Use lm.score for the outputs of other samplers."
            )
        prompts = [] if encoding.tokens and not stop_strings else self._texts_given(session)
        while stop_strings and not session.finished:
            session.advance(session.index + _BETWEEN_LOOKS)
            session.end([cut(t, stop_strings) != t for t in self._texts(session, prompts)])
        session.advance()
        if encoding.tokens:
            outputs: Any = self._token_outputs(session, strip_prompt, stop_strings)
            return (outputs, session.scores) if return_scores else outputs
        texts = [cut(text, stop_strings) for text in self._texts(session, prompts)]
        if not strip_prompt:
            texts = [p + t for p, t in zip(prompts, texts, strict=True)]

        def shaped(rows: list) -> Any:
            if num_samples is not None:
                rows = [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]
            return rows[0] if encoding.single else rows

        return (shaped(texts), shaped(session.scores.tolist())) if return_scores else shaped(texts)

    def _token_outputs(
        self, session: DecodingSession, strip_prompt: bool, stop_strings: Sequence[str]
    ) -> dict[str, np.ndarray]:
        ids, mask = session.tokens()
        written = mask & ~session.given
        for row in range(len(ids)) if stop_strings else ():
            places = np.flatnonzero(written[row])

            def text(count: int, row: int = row, places: np.ndarray = places) -> str:
                kept = np.isin(np.arange(ids.shape[1]), places[:count])
                return self._detokenize(ids[row : row + 1], kept[None])[0]

            written[row, places[completed_at(text, len(places), stop_strings) :]] = False
        mask = written if strip_prompt else written | session.given
        return {"decoder_token_ids": ids, "decoder_padding_mask": mask}

    def generate_stream(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        *,
        stop_strings: Sequence[str] = (),
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Any]:
        """Yields what `generate` writes, while it is being written, without the prompt.

        Args:
            inputs: a text, or a batch of texts, or a dict; see `generate`.
            max_length: as in `generate`.
            stop_token_ids: as in `generate`.
            stop_strings: as in `decode`.
            temperature: as in `decode`.
            seed: as in `decode`.

        Yields:
            For a text, pieces of text, none of them empty; for a batch, lists with a
            piece for each row, "" where there is nothing new.
        """
        self._required_converter()
        encoding = self.encode(inputs)
        options: dict[str, Any] = {"temperature": temperature, "seed": seed}
        session = self._session(encoding, max_length, stop_token_ids, stop_strings, **options)
        prompts, sent = self._texts_given(session), [""] * session.rows
        while not session.finished:
            texts = self._texts(session.advance(session.index + 1), prompts)
            session.end([cut(text, stop_strings) != text for text in texts])
            ready = cut if session.finished else certain
            texts = [ready(text, stop_strings) for text in texts]
            new = [text[len(old) :] for old, text in zip(sent, texts, strict=True)]
            sent = [old + piece for old, piece in zip(sent, new, strict=True)]
            if any(new):
                yield new[0] if encoding.single else new

    def _session(
        self,
        encoding: Encoding,
        max_length: int | None,
        stop_token_ids: Any,
        stop_strings: Sequence[str],
        num_samples: int | None = None,
        **options: Any,
    ) -> DecodingSession:
        longest = int(encoding.given.sum(axis=1).max())
        width = encoding.token_ids.shape[1] if encoding.tokens else None
        length = self._checked(longest, max_length, stop_strings, num_samples, width, **options)
        if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
            stop_token_ids = self._required_converter().stop_token_ids
        arrays = encoding.token_ids, encoding.given
        ids, given = (pad(x[:, :length], length, len(x)) for x in arrays)
        options |= {"stop_token_ids": stop_token_ids, "samples": num_samples or 1}
        return self.make_generate_function().decode(encoding.context, ids, given, **options)

    def _checked(
        self,
        prompt: int,
        max_length: int | None = None,
        stop_strings: Sequence[str] = (),
        num_samples: int | None = None,
        tokens: int | None = None,
        temperature: float | None = None,
        **options: Any,
    ) -> int:
        """Tokens of an output; raises ValueError, before anything runs, for what cannot be."""
        if max_length is None:
            max_length = tokens or self._required_converter().decoder_sequence_length
        max_length = _whole_number("max_length", max_length, "token")
        if prompt > max_length:
            raise ValueError(
                f"Expected max_length of at least the {prompt} tokens that an output begins with. "
                f"Received: {max_length}."
            )
        if isinstance(stop_strings, str) or not all(stop_strings):
            raise ValueError(
                "Expected stop_strings as a list of texts that are not empty. "
                f"Received: {stop_strings!r}."
            )
        if num_samples is not None:
            _whole_number("num_samples", num_samples)
        if temperature is not None and not (0 < float(temperature) < math.inf):
            raise ValueError(
                f"Expected a temperature above 0. Received: {temperature}. For the likeliest "
                'token, compile(sampler="greedy").'
            )
        return max_length

    def _texts(self, session: DecodingSession, prompts: list[str]) -> list[str]:
        """What each row says so far, after its prompt."""
        texts = self._detokenize(*session.tokens())
        return [t.removeprefix(p) for p, t in zip(prompts, texts, strict=True)]

    def _texts_given(self, session: DecodingSession) -> list[str]:
        return self._detokenize(session.ids, session.given)

    def _detokenize(self, ids: np.ndarray, mask: np.ndarray) -> list[str]:
        self._required_converter()
        batch = {"decoder_token_ids": ids, "decoder_padding_mask": mask}
        return self.preprocessor.generate_postprocess(batch)

    def _required_converter(self) -> FeatureConverter:
        if self.preprocessor is None:
            raise ValueError(
                "Expected a preprocessor for text and its end tokens. Received: a task without "
                "one. Pass model inputs, and stop_token_ids=None or a tuple of ids."
            )
        return self.preprocessor.converter


def _whole_number(name: str, value: Any, unit: str = "") -> int:
    """`value` as an int, if it is one of 1 or more; NumPy's count."""
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "iu" or array < 1:
        raise ValueError(
            f"Expected {name} of at least 1{unit and ' ' + unit}. Received: {value!r}."
        )
    return int(array)
