"""`generate` and what belongs to it, for a task.

Knows prompts, stop strings and what comes back. What data is, `keras_encdec.data` says, what
arguments may be `keras_encdec.generation.options`; outputs of a
call are `keras_encdec.generation.call`'s business, many of them on disk
`keras_encdec.generation.jobs`', programs `keras_encdec.generation.engine`'s.
"""

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_encdec import check, hosts, layout
from keras_encdec.data.images import Seen
from keras_encdec.data.kinds import ModelInputs
from keras_encdec.data.message_parts import apart
from keras_encdec.data.prompts import Prompts, chat_prompt, in_memory, prompts_of, whole_pairs
from keras_encdec.generation import jobs
from keras_encdec.generation.call import Call, encode
from keras_encdec.generation.engine import Engine
from keras_encdec.generation.inputs import check_prompts, checked_inputs
from keras_encdec.generation.options import DecodingOptions
from keras_encdec.generation.results import Encoding, Scores, together
from keras_encdec.generation.scoring import in_groups
from keras_encdec.generation.text import Detokenize
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.objectives.images import IMAGES

_ENGINES = threading.Lock()  # held while a task gets a new engine, so that threads share one


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
        layout.check_placed({"model": self.backbone.variables})
        with _ENGINES:
            engine = self.generate_function
            if engine is None or not engine.is_current:
                engine = Engine(self.backbone, self.sampler, self.run_eagerly)
                self.generate_function = engine
        return engine

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
        """Generates an output for each input.

        What a row gets depends neither on the other rows nor on padding; what it draws, on
        `seed` and on its number among the inputs. More inputs than `batch_size` are sorted
        by length and gone through with a progress bar; outputs come back in the order of
        the inputs. Threads may share a task: without a `seed` each call draws for itself,
        with one it gives what it gives alone.

        Args:
            inputs: a text or texts, of any kind that `fit` takes; with `decoder_text` beside
                `encoder_text`, what the outputs begin with; with `images` beside `text`, what
                is seen there, as of `EncDecSeq2SeqLM`; or model inputs, whose decoder tokens
                are what the outputs begin with.
            max_length: tokens of an output at most, with `<bos>` and prompt; by default
                the preprocessor's `decoder_sequence_length`, of model inputs T.
            stop_token_ids: ids that end an output; `"auto"` for the tokenizer's end
                tokens, None for none.
            strip_prompt: leave the prompt out of the outputs.
            batch_size: inputs at a time.
            path: a file of JSON lines for the outputs, `{"index", "output"}`, which grows
                as they are made. After a kill, the same call goes on. For model inputs an
                output is a dict of n lists of token ids, and of n lists of 0 and 1.
            **kwargs: of `decode`.

        Returns:
            As `decode`.

        Raises:
            ValueError: if an argument or an input cannot be used; nothing was begun.
            BlockingIOError: if another call writes to `path`.
        """
        asked = {"stop_token_ids": stop_token_ids, "strip_prompt": strip_prompt, **kwargs}
        options = DecodingOptions.asked(max_length=max_length, **asked)
        batch_size = check.whole("batch_size", batch_size)
        prompts = self._read(inputs)
        options = self._resolved(options, prompts, batch_size)
        call = self._call(options, prompts)
        if path is None and len(prompts) <= batch_size:
            return self._shaped(call, self._encode(prompts))
        identity = "" if path is None else self._identity(prompts.ids(), options.identity())
        write = call.of_many(prompts, batch_size)
        outputs = jobs.run(write, prompts.lengths, path, identity)
        scored = options.return_scores
        parts = list(map(list, zip(*outputs, strict=True))) if scored else [outputs]
        if prompts.width is not None:
            parts = [together(part) for part in parts]
        elif prompts.single:
            parts = [part[0] for part in parts]
        return tuple(parts) if scored else parts[0]

    def _identity(self, *what: Any) -> str:
        """A digest of what a call is asked, how it samples, and of the weights."""
        sampler = [type(self.sampler).__name__, self.sampler.get_config()]
        return jobs.identity(self.backbone.variables, *what, sampler)

    def chat(self, messages: Any, max_length: int | None = None, **kwargs: Any) -> Any:
        """Answers the last message of a conversation.

        Args:
            messages: as of `keras_encdec.objectives.chat.turns`, such as
                `[{"role": "user", "content": "Hello!"}]`; or a text. A user's content may be a list
                of parts, `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`.
            max_length: as in `generate`.
            **kwargs: of `decode`.

        Returns:
            The answer; otherwise as `decode` of one text.

        Raises:
            ValueError: if messages are out of turn, or the tokenizer has no turns.
        """
        options = DecodingOptions.asked(max_length=max_length, **kwargs)
        converter = self._required_converter()
        said, images = (messages, []) if isinstance(messages, str) else apart(messages)
        prompt, seen = chat_prompt(converter, said, images)
        prompts = Prompts.of_ids([prompt], converter, True, [seen] if seen else None)
        options = self._resolved(options, prompts)
        return self._shaped(self._call(options, prompts), self._encode(prompts))

    def score(self, pairs: Any, batch_size: int = 32) -> Scores:
        """Log-likelihoods of texts, given others, without generating anything.

        Pairs that read the same text, and see the same images, share one run of the encoder.

        Args:
            pairs: pairs of texts, of any kind that `fit` takes, `images` beside them included; or
                model inputs, of whose decoder tokens all but the first are scored: they are the
                labels, whatever labels and weights a dataset has beside them. No decoder text is
                cut.
            batch_size: pairs at a time.

        Returns:
            `Scores`, over the tokens of `decoder_text` and its end token.

        Raises:
            ValueError: if there are no pairs, or ids are outside their vocabulary.
        """
        batch_size = check.whole("batch_size", batch_size)
        source = in_memory(pairs)
        if isinstance(source, ModelInputs):
            x = checked_inputs(source.x, self.backbone.spec)
            seen = Seen.of_array(x.pop(IMAGES, None))
            ids, mask = (x[f"decoder_{name}"] for name in ("token_ids", "padding_mask"))
            y, weight = (np.pad(a[:, 1:], [(0, 0), (0, 1)]) for a in (ids, mask > 0))
        else:
            (x, y, weight), seen = whole_pairs(source, self._required_converter())
        arrays = *x.values(), y, weight
        known = map(seen.digests, range(len(y))) if seen else ()
        hosts.check_same("pairs", lambda: [*(a.tolist() for a in arrays), *known])
        write = in_groups(self.make_generate_function(), x, y, weight, batch_size, seen=seen)
        found = jobs.run(write, (x["encoder_padding_mask"] > 0).sum(axis=1))
        log_probs, likeliest = map(list, zip(*found, strict=True))
        return Scores(np.array([row.sum() for row in log_probs], "float32"), log_probs, likeliest)

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
            x = checked_inputs(source.x, self.backbone.spec)
            check_prompts(x)
            return Prompts.of_arrays(x)
        converter = self._required_converter()
        prompts, images = prompts_of(source, converter)
        return Prompts.of_ids(prompts, converter, source.single, images)

    def _encode(self, prompts: Prompts) -> Encoding:
        return encode(self.make_generate_function(), prompts)

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
        draft: Any = "auto",
    ) -> Any:
        """Generates outputs for inputs that were encoded; see `generate`.

        Args:
            encoding: `Encoding`, from `encode`.
            max_length: as in `generate`.
            stop_token_ids: as in `generate`.
            strip_prompt: as in `generate`.
            stop_strings: texts that end an output, which is cut before the first of them.
            num_samples: n, outputs for each input, all from one encoding; with
                `BeamSearch` the best ones, the best first.
            temperature: of this call, in place of the sampler's.
            seed: of this call, below 2**31; the sampler's own state stays where it is.
            draft: what guesses several tokens a step, of which the model takes those that it
                would have chosen: `"auto"` copies from input and output where that was right
                lately, a smaller task of the same vocabularies writes them, None is none.
            return_scores: return `(outputs, scores)`, with `BeamSearch`: of each output
                the log-likelihood of what was generated, as `score` gives it, and with
                that what a stop string cut off.

        Returns:
            A text for a text, a list for a batch; with `num_samples`, a list of n texts
            for each; scores likewise. For model inputs `{"decoder_token_ids",
            "decoder_padding_mask"}`, int32 and bool of (B * n, max_length), the n outputs
            of an input one after another, and scores (B * n,) float32. The mask is True
            for the prompt, unless it is stripped, and for generated tokens, up to and with
            the stop token or the token that completes a stop string.

        Raises:
            ValueError: if an argument is out of range.
        """
        if not isinstance(encoding, Encoding):
            raise ValueError(
                "Expected an Encoding, from lm.encode. Received: "
                f"{type(encoding).__name__}. For inputs as they are, lm.generate."
            )
        options = DecodingOptions(
            max_length,
            stop_token_ids,
            strip_prompt,
            stop_strings,
            num_samples,
            temperature,
            seed,
            return_scores,
            draft,
        )
        return self._shaped(self._call(self._resolved(options, encoding), encoding), encoding)

    def _call(self, options: DecodingOptions, inputs: Prompts | Encoding) -> Call:
        texts = inputs.width is None or options.stop_strings
        detokenize = self._detokenizer() if texts else None
        return Call(self.make_generate_function(), options, detokenize)

    def _shaped(self, call: Call, encoding: Encoding) -> Any:
        """The outputs of one batch, as `decode` returns them."""
        found = call.whole(encoding)
        if encoding.tokens:
            return found

        def shaped(rows: Any) -> Any:
            rows = np.asarray(rows).tolist()
            if n := call.options.num_samples:
                rows = [rows[i : i + n] for i in range(0, len(rows), n)]
            return rows[0] if encoding.single else rows

        return tuple(map(shaped, found)) if call.options.return_scores else shaped(found)

    def generate_stream(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        *,
        stop_strings: Sequence[str] = (),
        temperature: float | None = None,
        seed: int | None = None,
        draft: Any = "auto",
    ) -> Iterator[Any]:
        """Yields what `generate` gives, while it is being generated, without the prompt.

        Args:
            inputs: as of `generate`, one batch of them.
            max_length: as in `generate`.
            stop_token_ids: as in `generate`.
            stop_strings: as in `decode`.
            temperature: as in `decode`.
            seed: as in `decode`.
            draft: as in `decode`.

        Yields:
            For a text, parts of its output, none of them empty; for a batch, lists with a
            part for each row, "" where there is nothing new.

        Raises:
            ValueError: at the call, if an argument or an input cannot be used.
        """
        options = DecodingOptions(
            max_length,
            stop_token_ids,
            stop_strings=stop_strings,
            temperature=temperature,
            seed=seed,
            draft=draft,
        )
        self._required_converter()
        prompts = self._read(inputs)
        options = self._resolved(options, prompts)
        return self._stream(prompts, options)

    def _stream(self, prompts: Prompts, options: DecodingOptions) -> Iterator[Any]:
        call, encoding = self._call(options, prompts), self._encode(prompts)
        for new in call.texts(call.session(encoding)).parts():
            if any(new):
                yield new[0] if encoding.single else new

    def _resolved(
        self, options: DecodingOptions, inputs: Prompts | Encoding, batch_size: int | None = None
    ) -> DecodingOptions:
        """Options with the length and the stop tokens that are meant.

        Args:
            options: `DecodingOptions`.
            inputs: that outputs are asked for.
            batch_size: of them at a time; all if None.

        Raises:
            ValueError: before anything runs, for what cannot be done.
            MemoryError: if no memory holds what is generated at the same time.
        """
        engine, count = self.make_generate_function(), len(inputs.starts)
        engine.check(options)
        self._check_draft(options.draft)
        length, stops = options.max_length or inputs.width, options.stop_token_ids
        if length is None:
            length = self._required_converter().decoder_sequence_length
        if (longest := max(inputs.starts)) > length:
            raise ValueError(
                f"Expected max_length of at least the {longest} tokens that an output begins "
                f"with. Received: {length}."
            )
        engine.require_room(min(count, batch_size or count), options.samples, length)
        if options.is_auto:
            stops = self._required_converter().stop_token_ids
        if options.stop_strings:
            self._required_converter()
        return dataclasses.replace(options, max_length=length, stop_token_ids=stops)

    def _check_draft(self, draft: Any) -> None:
        if draft in ("auto", None):
            return
        mine, other = (task.backbone.spec.vocabulary_sizes for task in (self, draft))
        if other != mine:
            raise ValueError(
                f"Expected a draft of the same vocabularies, {mine}. Received: {other}. Make it "
                "with the tokenizer of this model."
            )

    def _detokenizer(self) -> Detokenize:
        self._required_converter()

        def detokenize(ids: np.ndarray, mask: np.ndarray) -> list[str]:
            batch = {"decoder_token_ids": ids, "decoder_padding_mask": mask}
            return self.preprocessor.generate_postprocess(batch)

        return detokenize

    def _required_converter(self) -> FeatureConverter:
        if self.preprocessor is None:
            raise ValueError(
                "Expected a preprocessor for text and its end tokens. Received: a task without "
                "one. Pass model inputs, and stop_token_ids=None or a tuple of ids."
            )
        return self.preprocessor.converter
