"""Text to model inputs and back, the same way in training and in generation.

Knows special tokens, chat turns and which seed belongs to which text. Leaves what is
read and what is written to `keras_encdec.objectives`, padding to `rows`.
"""

import warnings

import keras
import keras_hub
import numpy as np

from keras_encdec.models import chat
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.rows import Rows
from keras_encdec.models.text import is_single, is_text, strings
from keras_encdec.objectives import Example, Objective, Stages
from keras_encdec.objectives.config import from_config, to_config
from keras_encdec.objectives.draws import fold
from keras_encdec.objectives.retokenized import Retokenized
from keras_encdec.objectives.tokenizer import encode, piece_id
from keras_encdec.objectives.windows import Windows, cut

# Texts of a stream that are looked at together where they may share a row or a window.
PACKED_TOGETHER = 256


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecSeq2SeqLMPreprocessor(keras_hub.models.Seq2SeqLMPreprocessor):
    """Makes `(x, y, sample_weight)` of text pairs, or of plain text by an objective.

    The encoder reads its tokens as they are, with neither `<bos>` nor `<eos>`. The
    decoder reads `<bos>` and its target, and learns to write the target and an end
    token: `<eos>`, or `<end_of_turn>` with `chat` (the conventions of the released
    T5Gemma, gemma/research/t5gemma/sampling.py). Generation tokenises the same way.

    Text longer than its window is cut at the end, and a target that was cut teaches
    no end token. Plain text is cut into windows instead: all of it is used, save a
    single token that is left over. What an objective leaves to chance follows from
    `seed`, the number of the text and the epoch, never from the batch it is in.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer` of the decoder, and of the encoder if
            it has none of its own.
        encoder_sequence_length: S, tokens of an encoder input.
        decoder_sequence_length: T, tokens of a decoder input.
        chat: frame the encoder text as a user's turn and end answers as a turn ends,
            such as with `<end_of_turn>`, which instruction-tuned models expect.
        objective: makes examples of plain text: one of `keras_encdec.objectives`, its
            config, or the name of a mixture, such as `"ul2"`; None for `PrefixLM()`.
            Ids that it needs are taken from the tokenizer.
        seed: what chance follows from.
        cross_documents: whether a window may go on into the next text, after `<eos>`.
        packing: whether several examples share a row, which is then no longer than
            needed; see `keras_encdec.objectives.packing`.
        encoder_tokenizer: of an encoder with another vocabulary, or None. Plain text is
            then cut into windows of the decoder's tokens, for PrefixLM alone.
        **kwargs: of `keras_hub.models.Seq2SeqLMPreprocessor`.

    Raises:
        ValueError: if a sequence length is below 2, or `objective` is not known.

    Example:
        >>> x, y, sample_weight = preprocessor({"encoder_text": "a b", "decoder_text": "c"})
        >>> x, y, sample_weight = preprocessor(["A long text.", "Another."])  # PrefixLM
    """

    backbone_cls = EncDecBackbone
    tokenizer_cls = keras_hub.tokenizers.GemmaTokenizer
    _bound: Objective | Stages | None = None

    def __init__(
        self,
        tokenizer,
        encoder_sequence_length=512,
        decoder_sequence_length=512,
        chat=False,
        objective=None,
        seed=0,
        cross_documents=False,
        packing=False,
        encoder_tokenizer=None,
        **kwargs,
    ):
        _check_length("encoder_sequence_length", encoder_sequence_length)
        _check_length("decoder_sequence_length", decoder_sequence_length)
        super().__init__(tokenizer, encoder_sequence_length, decoder_sequence_length, **kwargs)
        self.chat = chat
        self.objective = objective
        self.seed = seed
        self.cross_documents = cross_documents
        self.packing = packing
        self._encoder_tokenizer = encoder_tokenizer
        if encoder_tokenizer is not None:
            encoder_tokenizer.config_file = "encoder_tokenizer.json"  # its name in a preset

    @property
    def encoder_tokenizer(self):
        """What the encoder's text is tokenised by."""
        return self._encoder_tokenizer or self.tokenizer

    @property
    def has_two_vocabularies(self) -> bool:
        """Whether encoder and decoder have tokens of their own."""
        return self._encoder_tokenizer is not None

    @property
    def start_token_id(self) -> int:
        """What the decoder reads first: `<bos>`, or where there is none the end token."""
        start = self.tokenizer.start_token_id
        return self.tokenizer.end_token_id if start is None else start

    @property
    def objective(self):
        """What makes examples of plain text, with the tokenizer's ids; can be set.

        Raises:
            ValueError: if the tokenizer has no tokens for the objective's sentinels, or
                the objective needs one vocabulary.
        """
        if self._bound is None:  # not before it is used: a preset loads the vocabulary late
            self._bound = self._unbound.bind(self.tokenizer)
        if not self.has_two_vocabularies:
            return self._bound
        tokenizers = self.tokenizer, self.encoder_tokenizer
        return Retokenized(self._bound, *tokenizers, self.encoder_sequence_length)

    @objective.setter
    def objective(self, objective):
        self._unbound = from_config(objective or "prefix_lm")
        self._bound = None

    def build(self, input_shape=None):
        self.built = True

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generated text: `<eos>`, and what ends a turn where there is one."""
        ids = [self.tokenizer.end_token_id, self._end_of_turn_id()]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def call(self, x, y=None, sample_weight=None, first=0, epoch=0, **lengths):
        """Text to `(x, y, sample_weight)`.

        Args:
            x: `{"encoder_text": ..., "decoder_text": ...}` of strings or batches of
                them; or plain text, of which each window becomes one row.
            y: must be None, the targets are made of `x`.
            sample_weight: must be None, padding is weighted here.
            first: number of the first of the plain texts.
            epoch: how often they have been seen.
            **lengths: `encoder_sequence_length`, `decoder_sequence_length`.

        Returns:
            `x` with the four model inputs (B, S) and (B, T) int32; `y` (B, T) int32,
            the next token at each position; `sample_weight` (B, T) float32, 1 on
            tokens that count. Without B for a single pair that is not packed.
        """
        if y is not None or sample_weight is not None:
            raise ValueError("Expected targets inside `x`. Received: a `y` or `sample_weight`.")
        if not isinstance(x, dict):
            return self._in_graph_or_eager(x, first, epoch, lengths=lengths)
        _check_keys(x, {"encoder_text", "decoder_text"})
        batch = self._in_graph_or_eager(x, lengths=lengths)
        if not is_single(x["encoder_text"]) or self.packing:
            return batch
        return keras.tree.map_structure(lambda a: a[0], batch)

    def rows(self, **lengths) -> Rows:
        """How examples are laid into rows of these lengths."""
        source, target = self._lengths(**lengths)
        pads = (t.pad_token_id or 0 for t in (self.encoder_tokenizer, self.tokenizer))
        return Rows(source, target, self.start_token_id, self.tokenizer.end_token_id, *pads)

    def cut(self, document_lengths, objective=None, first=0, epoch=0, **lengths) -> Windows:
        """Where documents are cut into windows, each of which makes an example.

        Args:
            document_lengths: (d,) tokens of each, with its end token.
            objective: in place of the preprocessor's.
            first: number of the first document.
            epoch: how often they have been seen.
            **lengths: as in `call`.
        """
        source, target = self._lengths(**lengths)
        return cut(
            document_lengths,
            _callable(objective or self.objective),
            source,
            target,
            seed=fold(self.seed, epoch),
            cross_documents=self.cross_documents,
            first=first,
        )

    def generate_preprocess(self, x, sequence_length=None, **lengths):
        """Prompts to model inputs: a text, a batch, or a dict with a `decoder_text` too."""
        rows = self.rows(decoder_sequence_length=sequence_length, **lengths)
        return self.lay_prompts(self.prompts(x, rows.source), rows)

    def prompts(self, x, length=None) -> list[tuple[list[int], list[int]]]:
        """The ids that encoder and decoder begin with, for each prompt.

        Args:
            x: as in `generate_preprocess`.
            length: of the encoder's, by default `encoder_sequence_length`; longer ones are
                cut at the end, with a warning.
        """
        x = x if isinstance(x, dict) else {"encoder_text": x}
        _check_keys(x, {"encoder_text"})
        texts = strings(x["encoder_text"], "encoder_text")
        encoder = self._encoder_ids(texts, length or self.encoder_sequence_length, warn=True)
        starts: list[list[int]] = [[]] * len(encoder)
        if "decoder_text" in x:
            texts = strings(x["decoder_text"], "decoder_text", may_be_empty=True)
            starts = encode(self.tokenizer, texts)
        _check_as_many(encoder, starts)
        return [
            (ids, [self.start_token_id, *start]) for ids, start in zip(encoder, starts, strict=True)
        ]

    def lay_prompts(self, prompts, rows) -> dict[str, np.ndarray]:
        """The four model inputs of prompts, from `prompts`, in `rows`."""
        encoder = [[ids[: rows.source]] for ids, _ in prompts]
        return rows.model_inputs(encoder, [[ids[: rows.target]] for _, ids in prompts])

    def whole(self, pairs):
        """`(x, y, sample_weight)` of pairs as in `call`, each in a row without a cut target."""
        _check_keys(pairs, {"encoder_text", "decoder_text"})
        source = self.encoder_sequence_length
        examples = self._pairs(pairs["encoder_text"], pairs["decoder_text"], source, warn=True)
        longest = max(len(example.targets) for example in examples)
        rows = self.rows(decoder_sequence_length=max(2, longest))
        return rows.batch([[example] for example in examples])

    def chat_prompt(self, messages) -> tuple[list[int], list[int]]:
        """A conversation as a prompt; see `keras_encdec.models.chat.turns` for messages.

        Where it does not fit into `encoder_sequence_length`, its oldest turns are left
        out, with a warning.

        Raises:
            ValueError: if messages are out of turn, or the tokenizer has no turns.
        """
        frame, length = self._chat_format(), self.encoder_sequence_length
        system, texts = chat.turns(messages)
        ids, left_out = frame.fitted(self.encoder_tokenizer, system, texts, length)
        if left_out:
            warnings.warn(
                f"The oldest {left_out} of {len(texts)} messages do not fit into "
                f"encoder_sequence_length = {length} and were left out.",
                stacklevel=3,
            )
        return ids, [self.start_token_id]

    def generate_postprocess(self, x):
        """Generated ids to strings, without special tokens."""
        ids = keras.ops.convert_to_numpy(x["decoder_token_ids"])
        mask = keras.ops.convert_to_numpy(x["decoder_padding_mask"]).astype(bool)
        hidden = (self.start_token_id, *self.stop_token_ids)
        rows = [
            row[keep & ~np.isin(row, hidden)].tolist() for row, keep in zip(ids, mask, strict=True)
        ]
        return [self.tokenizer.detokenize(row) if row else "" for row in rows]

    def dataset(self, texts, batch_size):
        """A `tf.data.Dataset` of texts to one of batches of windows.

        Args:
            texts: `tf.data.Dataset` of strings, batched or not.
            batch_size: B, rows of a batch of examples.
        """
        if texts.element_spec.shape.rank:
            texts = texts.unbatch()
        together = PACKED_TOGETHER if self.packing or self.cross_documents else 1
        examples = (
            texts.batch(together)
            .enumerate()
            .map(lambda number, batch: self.call(batch, first=number * together))
        )
        return examples.unbatch().batch(batch_size)

    def examples(self, x, first=0, epoch=0, **lengths) -> list[Example]:
        """The examples of plain texts or pairs, before they are laid into rows.

        Args:
            x: as in `call`.
            first: number of the first of the plain texts.
            epoch: how often they have been seen.
            **lengths: as in `call`.
        """
        if isinstance(x, dict):
            return self._pairs(x["encoder_text"], x["decoder_text"], self._lengths(**lengths)[0])
        end = self.tokenizer.end_token_id
        texts = strings(x, "training text")
        documents = [[*ids, end] for ids in encode(self.tokenizer, texts)]
        tokens = np.concatenate(documents).astype("int32")
        sizes = [len(document) for document in documents]
        windows = self.cut(sizes, first=int(first), epoch=int(epoch), **lengths)
        objective = _callable(self.objective)
        return [windows.example(i, tokens, objective)[1] for i in range(len(windows))]

    def grouped(self, examples, rows) -> list[list[Example]]:
        """Examples by the row that they are laid into: several, if `packing` says so."""
        if not self.packing:
            return [[example] for example in examples]
        return [[examples[i] for i in group] for group in rows.plan(examples)]

    def _pairs(self, encoder_text, decoder_text, source, warn=False):
        encoder = self._encoder_ids(strings(encoder_text, "encoder_text"), source, warn)
        answers = encode(self.tokenizer, strings(decoder_text, "decoder_text"))
        _check_as_many(encoder, answers)
        end = self._end_of_turn_id() if self.chat else self.tokenizer.end_token_id
        pairs = zip(encoder, answers, strict=True)
        return [Example(np.array(ids), np.array([*answer, end])) for ids, answer in pairs]

    def _encoder_ids(self, texts, length, warn=False):
        said = texts
        if self.chat:
            frame = self._chat_format()
            said = [frame.conversation("", [text]) for text in texts]
        every = encode(self.encoder_tokenizer, said)
        sizes = [len(ids) for ids in every if len(ids) > length]
        if sizes and warn:
            warnings.warn(
                f"{len(sizes)} of {len(every)} prompts were cut to encoder_sequence_length = "
                f"{length} tokens; the longest has {max(sizes)}.",
                stacklevel=4,
            )
        return [self._fitted(*pair, length) for pair in zip(texts, every, strict=True)]

    def _fitted(self, text, ids, length):
        if self.chat and len(ids) > length:
            return self._chat_format().cut(self.encoder_tokenizer, text, length)
        return ids[:length]

    def _chat_format(self):
        """How the encoder's text is framed."""
        return chat.required_format(self.encoder_tokenizer)

    def _end_of_turn_id(self):
        found = chat.format_of(self.tokenizer)
        return found and piece_id(self.tokenizer, found.end)

    def _lengths(
        self, encoder_sequence_length=None, decoder_sequence_length=None, sequence_length=None
    ):
        if encoder_sequence_length is None:
            encoder_sequence_length = self.encoder_sequence_length
        if decoder_sequence_length is None:
            decoder_sequence_length = sequence_length
        if decoder_sequence_length is None:
            decoder_sequence_length = self.decoder_sequence_length
        _check_length("encoder_sequence_length", encoder_sequence_length)
        _check_length("decoder_sequence_length", decoder_sequence_length)
        return encoder_sequence_length, decoder_sequence_length

    def _batch(self, x, *number, lengths):
        rows = self.rows(**lengths)
        grouped = self.grouped(self.examples(x, *number, **lengths), rows)
        return rows.batch(grouped)

    def _in_graph_or_eager(self, x, *number, lengths):
        """Makes a batch of texts; inside a tf.data pipeline, by a Python call."""
        texts = list(x.values()) if isinstance(x, dict) else [x]
        if not _is_symbolic(texts[0]):
            return self._batch(x, *number, lengths=lengths)
        import tensorflow as tf

        def flat(*arguments):
            some = dict(zip(x, arguments, strict=True)) if isinstance(x, dict) else arguments[0]
            inputs, y, weight = self._batch(some, *arguments[len(texts) :], lengths=lengths)
            return *inputs.values(), y, weight

        names = ["encoder_token_ids", "encoder_padding_mask"]
        names += ["decoder_token_ids", "decoder_padding_mask"]
        arrays = tf.numpy_function(flat, [*texts, *number], [tf.int32] * 5 + [tf.float32])
        source, target = self._lengths(**lengths)
        for array, length in zip(arrays, [source] * 2 + [target] * 4, strict=True):
            array.set_shape((None, length))
        return dict(zip(names, arrays[:4], strict=True)), arrays[4], arrays[5]

    def get_config(self):
        return {
            **super().get_config(),
            "encoder_sequence_length": self.encoder_sequence_length,
            "decoder_sequence_length": self.decoder_sequence_length,
            "chat": self.chat,
            "objective": to_config(self._unbound),
            "seed": self.seed,
            "cross_documents": self.cross_documents,
            "packing": self.packing,
            "encoder_tokenizer": self._encoder_tokenizer
            and keras.layers.serialize(self._encoder_tokenizer),
        }

    @classmethod
    def from_config(cls, config):
        if isinstance(config.get("encoder_tokenizer"), dict):
            tokenizer = keras.layers.deserialize(config["encoder_tokenizer"])
            config = {**config, "encoder_tokenizer": tokenizer}
        return super().from_config(config)


def _callable(objective):
    if isinstance(objective, Objective):
        return objective
    raise ValueError(
        f"Expected an objective that is called. Received: {type(objective).__name__}, which needs "
        "to know the number of steps. Use `lm.fit(texts)` or `keras_encdec.data.batches`."
    )


def _check_length(name, length):
    if not isinstance(length, int) or length < 2:
        raise ValueError(
            f"Expected {name} of at least 2 tokens. Received: {length!r}. "
            "A decoder needs room for <bos> and one token."
        )


def _check_as_many(encoder, decoder):
    if len(encoder) != len(decoder):
        raise ValueError(
            "Expected as many encoder_text as decoder_text. "
            f"Received: {len(encoder)} and {len(decoder)}."
        )


def _check_keys(x, expected):
    if missing := expected - set(x):
        raise ValueError(
            f"Expected a dict with keys {sorted(expected)}. "
            f"Received: keys {sorted(x)}, without {sorted(missing)}."
        )


def _is_symbolic(x):
    return is_text(x) and hasattr(x, "graph") and not hasattr(x, "numpy")
