"""Text to model inputs and back, the same way in training and in generation.

Knows special tokens, chat turns, padding and cutting. Leaves what is read and what
is written to `keras_encdec.objectives`.
"""

import keras
import keras_hub
import numpy as np

from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.text import is_single, is_text, strings
from keras_encdec.objectives.prefix_lm import PrefixLM, windows

_USER, _MODEL = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecSeq2SeqLMPreprocessor(keras_hub.models.Seq2SeqLMPreprocessor):
    """Makes `(x, y, sample_weight)` of text pairs, or of plain text by an objective.

    The encoder reads its tokens as they are, with neither `<bos>` nor `<eos>`. The
    decoder reads `<bos>` and its target, and learns to write the target and an end
    token: `<eos>`, or `<end_of_turn>` with `chat` (the conventions of the released
    T5Gemma, gemma/research/t5gemma/sampling.py). Generation tokenises the same way.

    Text longer than its window is cut at the end, and a target that was cut teaches
    no end token. Plain text is cut into windows instead, and nothing is lost.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer`, for both sides.
        encoder_sequence_length: S, tokens of an encoder input.
        decoder_sequence_length: T, tokens of a decoder input.
        chat: frame the encoder text as a user's turn and end answers with
            `<end_of_turn>`, as instruction-tuned models expect.
        objective: makes examples of plain text; None for `PrefixLM()`.
        **kwargs: of `keras_hub.models.Seq2SeqLMPreprocessor`.

    Raises:
        ValueError: if a sequence length is below 2.

    Example:
        >>> x, y, sample_weight = preprocessor({"encoder_text": "a b", "decoder_text": "c"})
        >>> x, y, sample_weight = preprocessor(["A long text.", "Another."])  # PrefixLM
    """

    backbone_cls = EncDecBackbone
    tokenizer_cls = keras_hub.tokenizers.GemmaTokenizer

    def __init__(
        self,
        tokenizer,
        encoder_sequence_length=512,
        decoder_sequence_length=512,
        chat=False,
        objective=None,
        **kwargs,
    ):
        _check_length("encoder_sequence_length", encoder_sequence_length)
        _check_length("decoder_sequence_length", decoder_sequence_length)
        super().__init__(tokenizer, encoder_sequence_length, decoder_sequence_length, **kwargs)
        self.chat = chat
        self.objective = objective or PrefixLM()

    def build(self, input_shape=None):
        self.built = True

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generated text: `<eos>`, and `<end_of_turn>` where there is one."""
        ids = [self.tokenizer.end_token_id]
        if (turn := self._end_of_turn_id()) is not None:
            ids.append(turn)
        return tuple(ids)

    def call(self, x, y=None, sample_weight=None, **lengths):
        """Text to `(x, y, sample_weight)`.

        Args:
            x: `{"encoder_text": ..., "decoder_text": ...}` of strings or batches of
                them; or plain text, of which each window becomes one row.
            y: must be None, the targets are made of `x`.
            sample_weight: must be None, padding is weighted here.
            **lengths: `encoder_sequence_length`, `decoder_sequence_length`.

        Returns:
            `x` with the four model inputs (B, S) and (B, T) int32; `y` (B, T) int32,
            the next token at each position; `sample_weight` (B, T) float32, 1 on
            tokens that count. Without B for a single pair.
        """
        if y is not None or sample_weight is not None:
            raise ValueError("Expected targets inside `x`. Received: a `y` or `sample_weight`.")
        source, target = self._lengths(**lengths)
        if not isinstance(x, dict):
            return self._in_graph_or_eager(self._windows, [x], source, target)
        _check_keys(x, {"encoder_text", "decoder_text"})
        texts = [x["encoder_text"], x["decoder_text"]]
        examples = self._in_graph_or_eager(self._pairs, texts, source, target)
        return (
            keras.tree.map_structure(lambda a: a[0], examples) if is_single(texts[0]) else examples
        )

    def generate_preprocess(self, x, sequence_length=None, **lengths):
        """Prompts to model inputs: a text, a batch, or a dict with a `decoder_text` too."""
        source, target = self._lengths(decoder_sequence_length=sequence_length, **lengths)
        prompts = x if isinstance(x, dict) else {"encoder_text": x}
        _check_keys(prompts, {"encoder_text"})
        encoder = self._encoder_ids(strings(prompts["encoder_text"], "encoder_text"), source)
        starts: list[list[int]] = [[]] * len(encoder)
        if "decoder_text" in prompts:
            texts = strings(prompts["decoder_text"], "decoder_text", may_be_empty=True)
            starts = self._tokenize(texts)
        decoder = [[self.tokenizer.start_token_id, *ids][:target] for ids in starts]
        return self._model_inputs(encoder, decoder, source, target)

    def generate_postprocess(self, x):
        """Generated ids to strings, without special tokens."""
        ids = keras.ops.convert_to_numpy(x["decoder_token_ids"])
        mask = keras.ops.convert_to_numpy(x["decoder_padding_mask"]).astype(bool)
        hidden = (self.tokenizer.start_token_id, self.tokenizer.pad_token_id, *self.stop_token_ids)
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
        return texts.map(self.call).unbatch().batch(batch_size)

    def _windows(self, texts, source, target):
        examples = []
        for ids in self._tokenize(strings(texts, "training text")):
            tokens = np.array([*ids, self.tokenizer.end_token_id], "int32")
            examples += [self.objective(w) for w in windows(tokens, 2 * min(source, target))]
        start = self.tokenizer.start_token_id
        sequences = [[start, *example.targets] for example in examples]
        return self._example([e.inputs for e in examples], sequences, source, target)

    def _pairs(self, encoder_text, decoder_text, source, target):
        encoder = self._encoder_ids(strings(encoder_text, "encoder_text"), source)
        answers = self._tokenize(strings(decoder_text, "decoder_text"))
        if len(encoder) != len(answers):
            raise ValueError(
                "Expected as many encoder_text as decoder_text. "
                f"Received: {len(encoder)} and {len(answers)}."
            )
        end = self._end_of_turn_id() if self.chat else self.tokenizer.end_token_id
        sequences = [[self.tokenizer.start_token_id, *ids, end] for ids in answers]
        return self._example(encoder, sequences, source, target)

    def _example(self, encoder, sequences, source, target):
        sequences = [row[: target + 1] for row in sequences]
        x = self._model_inputs(encoder, [row[:-1] for row in sequences], source, target)
        y, _ = self._pad([row[1:] for row in sequences], target)
        return x, y, x["decoder_padding_mask"].astype("float32")

    def _model_inputs(self, encoder, decoder, source, target):
        rows = {"encoder": self._pad(encoder, source), "decoder": self._pad(decoder, target)}
        names = ("token_ids", "padding_mask")
        return {
            f"{side}_{n}": a
            for side, pair in rows.items()
            for n, a in zip(names, pair, strict=True)
        }

    def _pad(self, rows, length):
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id, "int32")
        mask = np.zeros((len(rows), length), "int32")
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return ids, mask

    def _encoder_ids(self, texts, length):
        if not self.chat:
            return [ids[:length] for ids in self._tokenize(texts)]
        return [self._turn_ids(text, length) for text in texts]

    def _turn_ids(self, text, length):
        (ids,) = self._tokenize([_USER + text + _MODEL])
        if len(ids) > length:  # cut what the user said, not the frame
            opening, body, closing = self._tokenize([_USER, text, _MODEL])
            ids = [*opening, *body[: max(0, length - len(opening) - len(closing))], *closing]
        return ids[:length]

    def _tokenize(self, texts):
        rows = self.tokenizer(texts)
        rows = rows.to_list() if hasattr(rows, "to_list") else rows
        return [[int(i) for i in row] for row in rows]

    def _end_of_turn_id(self):
        vocabulary = self.tokenizer.get_vocabulary()
        return vocabulary.index("<end_of_turn>") if "<end_of_turn>" in vocabulary else None

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

    def _in_graph_or_eager(self, function, texts, source, target):
        """Runs `function` on texts; inside a tf.data pipeline, as a Python call."""
        if not _is_symbolic(texts[0]):
            return function(*texts, source, target)
        import tensorflow as tf

        def flat(*tensors):
            x, y, weight = function(*tensors, source, target)
            return *x.values(), y, weight

        names = ["encoder_token_ids", "encoder_padding_mask"]
        names += ["decoder_token_ids", "decoder_padding_mask"]
        dtypes = [tf.int32] * 5 + [tf.float32]
        arrays = tf.numpy_function(flat, texts, dtypes)
        for array, length in zip(arrays, [source] * 2 + [target] * 4, strict=True):
            array.set_shape((None, length))
        return dict(zip(names, arrays[:4], strict=True)), arrays[4], arrays[5]

    def get_config(self):
        return {
            **super().get_config(),
            "encoder_sequence_length": self.encoder_sequence_length,
            "decoder_sequence_length": self.decoder_sequence_length,
            "chat": self.chat,
        }


def _check_length(name, length):
    if not isinstance(length, int) or length < 2:
        raise ValueError(
            f"Expected {name} of at least 2 tokens. Received: {length!r}. "
            "A decoder needs room for <bos> and one token."
        )


def _check_keys(x, expected):
    if missing := expected - set(x):
        raise ValueError(
            f"Expected a dict with keys {sorted(expected)}. "
            f"Received: keys {sorted(x)}, without {sorted(missing)}."
        )


def _is_symbolic(x):
    return is_text(x) and hasattr(x, "graph") and not hasattr(x, "numpy")
