"""`generate` and what belongs to it, for a task.

Knows prompts, stops and what comes back. Leaves tokens to the task's preprocessor, many
prompts to `keras_encdec.generation.jobs`, arrays and programs to
`keras_encdec.generation.engine`.
"""

import functools
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_encdec.data.prompts import in_memory, prompts_of, whole_pairs
from keras_encdec.generation import jobs
from keras_encdec.generation.engine import Engine
from keras_encdec.generation.text import certain, cut
from keras_encdec.generation.writing import BeamWriting, pad

_BETWEEN_LOOKS = 8  # tokens written before texts are searched for stop strings


class Encoding(NamedTuple):
    """Inputs that were encoded, from `lm.encode`, for `lm.decode`.

    Args:
        context: what the decoder's cross-attention reads.
        token_ids: (B, T) int array, what each output begins with.
        given: (B, T) bool array, where that is.
        single: whether it was one text rather than a batch.
        tokens: whether it was model inputs rather than text.
    """

    context: Any
    token_ids: np.ndarray
    given: np.ndarray
    single: bool
    tokens: bool


class Scores(NamedTuple):
    """How likely texts are, in nats.

    Args:
        total: (B,) float32 array, log-likelihood of each.
        per_token: for each an array of its tokens', the end token included.
    """

    total: np.ndarray
    per_token: list[np.ndarray]


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

    def make_generate_function(self):
        """The `Engine`, anew after `compile`, `quantize` and `enable_lora`."""
        if self.generate_function is None or not self.generate_function.is_current:
            self.generate_function = Engine(self.backbone, self.sampler, self.run_eagerly)
        return self.generate_function

    def generate(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        strip_prompt=False,
        *,
        batch_size=32,
        path=None,
        **kwargs,
    ):
        """Writes an output for each input.

        What a row gets does not depend on the other rows nor on padding; drawing at
        random, it depends on the row's place in its batch. More texts than `batch_size`
        are sorted by length and gone through with a progress bar; outputs come back in
        the order of the inputs.

        Args:
            inputs: a text or texts: a list, an array, files by `keras_encdec.data.read`, a
                tf.data, Grain or Hugging Face dataset; dicts of `encoder_text` and of
                what the outputs begin with, `decoder_text`; a dict of the four model
                inputs or a `tf.data.Dataset` of batches of these.
            max_length: tokens of an output at most, with `<bos>` and prompt; by default
                the preprocessor's `decoder_sequence_length`.
            stop_token_ids: ids that end an output; `"auto"` for the tokenizer's end
                tokens, None for none.
            strip_prompt: leave the prompt out of the outputs.
            batch_size: texts at a time.
            path: a file of JSON lines for the outputs, which grows as they are made. After
                a kill, the same call goes on.
            **kwargs: of `decode`.

        Returns:
            A text for a text, a list for a batch; with `num_samples`, a list of texts
            for each. For model inputs, `{"decoder_token_ids", "decoder_padding_mask"}`.
        """
        kwargs |= {"max_length": max_length, "stop_token_ids": stop_token_ids}
        kwargs |= {"strip_prompt": strip_prompt}
        if _is_tokens(inputs):
            return self.decode(self.encode(inputs), **kwargs)
        if _is_tokens(getattr(inputs, "element_spec", None)):
            batches = [self.decode(self.encode(x), **kwargs) for x in inputs.as_numpy_iterator()]
            return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
        source = in_memory(inputs)
        single, prompts = source.single, prompts_of(source, self._required_preprocessor().converter)
        if path is None and len(prompts) <= batch_size:
            return self.decode(self._encode(prompts, single), **kwargs)
        return self._generate_many(prompts, single, batch_size, path, kwargs)

    def _generate_many(self, prompts, single, batch_size, path, options):
        if batch_size < 1:
            raise ValueError(f"Expected batch_size of at least 1. Received: {batch_size}.")
        options["max_length"] = self._checked(max(len(start) for _, start in prompts), **options)
        seed, scored = options.get("seed"), options.get("return_scores")

        def write(numbers):
            if seed is not None:  # batches alike would draw alike
                drawn = np.random.SeedSequence([seed, numbers[0]]).generate_state(1)
                options["seed"] = int(drawn[0]) >> 1  # PyTorch's have 31 bits
            outputs = self.decode(self._encode([prompts[i] for i in numbers]), **options)
            return list(zip(*outputs, strict=True)) if scored else outputs

        lengths = [len(source) for source, _ in prompts]
        identity = "" if path is None else self._identity(prompts, options)
        outputs = jobs.run(write, lengths, batch_size, path, identity)
        if scored:
            texts, scores = map(list, zip(*outputs, strict=True))
            return (texts[0], scores[0]) if single else (texts, scores)
        return outputs[0] if single else outputs

    def _identity(self, *what):
        """A digest of what a call is asked, how it samples, and of the weights."""
        sampler = [type(self.sampler).__name__, self.sampler.get_config()]
        asked = json.dumps([*what, sampler], default=str, sort_keys=True)
        digest = hashlib.sha256(asked.encode())
        for variable in self.backbone.variables:
            first = functools.reduce(lambda x, _: x[0], variable.shape[1:], variable.value)
            digest.update(np.ascontiguousarray(ops.convert_to_numpy(first)).tobytes())
        return digest.hexdigest()

    def chat(self, messages, max_length=None, **kwargs):
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
        prompt = self._required_preprocessor().converter.of_chat(messages)
        return self.decode(self._encode([prompt], single=True), max_length, **kwargs)

    def score(self, pairs, batch_size=32):
        """Log-likelihoods of texts, given others, without writing anything.

        Args:
            pairs: `{"encoder_text", "decoder_text"}` of texts or lists of texts, or a list
                or dataset of such; or the four model inputs, of whose decoder tokens
                all but the first are scored. No decoder text is cut.
            batch_size: pairs at a time.

        Returns:
            `Scores`, over the tokens of `decoder_text` and its end token.
        """
        if _is_tokens(pairs):
            x = {name: ops.convert_to_numpy(array) for name, array in pairs.items()}
            ids, mask = (x[f"decoder_{name}"] for name in ("token_ids", "padding_mask"))
            y, weight = (np.pad(a[:, 1:], [(0, 0), (0, 1)]) for a in (ids, mask > 0))
        else:
            converter = self._required_preprocessor().converter
            x, y, weight = whole_pairs(in_memory(pairs), converter)
        engine = self.make_generate_function()

        def write(rows):
            found = engine.score({k: a[rows] for k, a in x.items()}, y[rows], weight[rows])
            return [row[kept > 0] for row, kept in zip(found, weight[rows], strict=True)]

        found = jobs.run(write, (x["encoder_padding_mask"] > 0).sum(axis=1), batch_size)
        return Scores(np.array([row.sum() for row in found], "float32"), found)

    def encode(self, inputs):
        """Runs the encoder, once for all the outputs that `decode` is asked for.

        Args:
            inputs: as of `generate`, one batch of them.

        Returns:
            `Encoding`.
        """
        if _is_tokens(inputs):
            return self._encode_arrays(inputs, tokens=True)
        source = in_memory(inputs)
        prompts = prompts_of(source, self._required_preprocessor().converter)
        return self._encode(prompts, source.single)

    def _encode(self, prompts, single=False):
        longest = max(len(start) for _, start in prompts)
        converter = self.preprocessor.converter.resized(decoder=max(2, longest))
        arrays = converter.lay_prompts(prompts)
        return self._encode_arrays(arrays, self.preprocessor.encoder_sequence_length, single)

    def _encode_arrays(self, arrays, largest=None, single=False, tokens=False):
        arrays = {name: ops.convert_to_numpy(x) for name, x in arrays.items()}
        sides = arrays["encoder_token_ids"], arrays["encoder_padding_mask"]
        context = self.make_generate_function().encode(*sides, largest)
        given = arrays["decoder_padding_mask"].astype(bool)
        return Encoding(context, arrays["decoder_token_ids"], given, single, tokens)

    def decode(
        self,
        encoding,
        max_length=None,
        stop_token_ids="auto",
        strip_prompt=False,
        *,
        stop_strings=(),
        num_samples=None,
        temperature=None,
        seed=None,
        return_scores=False,
    ):
        """Writes outputs for inputs that were encoded; see `generate`.

        Args:
            encoding: `Encoding`, from `encode`.
            max_length: as in `generate`; of model inputs, T if None.
            stop_token_ids: as in `generate`.
            strip_prompt: as in `generate`.
            stop_strings: texts that end an output, which does not contain them.
            num_samples: outputs for each input, all from one encoding; with `BeamSearch`
                the best ones, the best first.
            temperature: of this call, in place of the sampler's.
            seed: of this call; the sampler's own state stays where it is.
            return_scores: return `(outputs, scores)`, with `BeamSearch`: of each output
                the log-likelihood of what was written, as `score` gives it.

        Raises:
            ValueError: if an argument is out of range.
        """
        options = {"temperature": temperature, "seed": seed, "num_samples": num_samples}
        writing = self._writing(encoding, max_length, stop_token_ids, stop_strings, **options)
        if return_scores and not isinstance(writing, BeamWriting):
            raise ValueError(
                "Expected BeamSearch for return_scores. Received: "
                f"{type(self.sampler).__name__}. Use lm.score for the outputs of other samplers."
            )
        prompts = [] if encoding.tokens and not stop_strings else self._prompts(writing)
        while stop_strings and not writing.finished:
            writing.advance(writing.index + _BETWEEN_LOOKS)
            writing.end([cut(t, stop_strings) != t for t in self._texts(writing, prompts)])
        ids, mask = writing.advance().tokens()
        if encoding.tokens:
            mask = mask & ~writing.given if strip_prompt else mask
            outputs = {"decoder_token_ids": ids, "decoder_padding_mask": mask}
            return (outputs, writing.scores) if return_scores else outputs
        texts = [cut(text, stop_strings) for text in self._texts(writing, prompts)]
        if not strip_prompt:
            texts = [p + t for p, t in zip(prompts, texts, strict=True)]

        def shaped(rows):
            if num_samples is not None:
                rows = [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]
            return rows[0] if encoding.single else rows

        return (shaped(texts), shaped(writing.scores.tolist())) if return_scores else shaped(texts)

    def generate_stream(self, inputs, max_length=None, stop_token_ids="auto", **kwargs):
        """Yields what `generate` writes, while it is being written, without the prompt.

        Args:
            inputs: a text, or a batch of texts, or a dict; see `generate`.
            max_length: as in `generate`.
            stop_token_ids: as in `generate`.
            **kwargs: `stop_strings`, `temperature` and `seed` of `decode`.

        Yields:
            For a text, pieces of text, none of them empty; for a batch, lists with a
            piece for each row, "" where there is nothing new.
        """
        self._required_preprocessor()
        stops = kwargs.pop("stop_strings", ())
        encoding = self.encode(inputs)
        writing = self._writing(encoding, max_length, stop_token_ids, stops, **kwargs)
        prompts, sent = self._prompts(writing), [""] * writing.rows
        while not writing.finished:
            texts = self._texts(writing.advance(writing.index + 1), prompts)
            writing.end([cut(text, stops) != text for text in texts])
            ready = cut if writing.finished else certain
            texts = [ready(text, stops) for text in texts]
            new = [text[len(old) :] for old, text in zip(sent, texts, strict=True)]
            sent = [old + piece for old, piece in zip(sent, new, strict=True)]
            if any(new):
                yield new[0] if encoding.single else new

    def _writing(
        self, encoding, max_length, stop_token_ids, stop_strings, num_samples=None, **options
    ):
        if encoding.tokens and max_length is None:
            max_length = encoding.token_ids.shape[1]
        longest = int(encoding.given.sum(axis=1).max())
        length = self._checked(longest, max_length, stop_strings, num_samples, **options)
        if stop_token_ids == "auto":
            stop_token_ids = self._required_preprocessor().stop_token_ids
        arrays = encoding.token_ids, encoding.given
        ids, given = (pad(x[:, :length], length, len(x)) for x in arrays)
        options |= {"stop_token_ids": stop_token_ids, "samples": num_samples or 1}
        return self.make_generate_function().decode(encoding.context, ids, given, **options)

    def _checked(
        self,
        prompt,
        max_length=None,
        stop_strings=(),
        num_samples=None,
        temperature=None,
        **options,
    ):
        """Tokens of an output; raises ValueError, before anything runs, for what cannot be."""
        if max_length is None:
            max_length = self.preprocessor.decoder_sequence_length
        if not isinstance(max_length, (int, np.integer)) or max_length < 1:
            raise ValueError(f"Expected max_length of at least 1 token. Received: {max_length!r}.")
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
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"Expected num_samples of at least 1. Received: {num_samples}.")
        if temperature is not None and temperature <= 0:
            raise ValueError(
                f"Expected a temperature above 0. Received: {temperature}. For the likeliest "
                'token, compile(sampler="greedy").'
            )
        return max_length

    def _texts(self, writing, prompts):
        """What each row says so far, after its prompt."""
        texts = self._detokenize(*writing.tokens())
        return [t.removeprefix(p) for p, t in zip(prompts, texts, strict=True)]

    def _prompts(self, writing):
        return self._detokenize(writing.ids, writing.given)

    def _detokenize(self, ids, mask):
        batch = {"decoder_token_ids": ids, "decoder_padding_mask": mask}
        return self._required_preprocessor().generate_postprocess(batch)

    def _required_preprocessor(self):
        if self.preprocessor is None:
            raise ValueError(
                "Expected a preprocessor for text and its end tokens. Received: a task without "
                "one. Pass model inputs, and stop_token_ids=None or a tuple of ids."
            )
        return self.preprocessor


def _is_tokens(inputs):
    return isinstance(inputs, dict) and "encoder_token_ids" in inputs


def _is_single(inputs):
    """Whether it is one text rather than a batch."""
    text = inputs.get("encoder_text", ()) if isinstance(inputs, dict) else inputs
    return isinstance(text, (str, bytes)) or getattr(text, "shape", None) == ()
