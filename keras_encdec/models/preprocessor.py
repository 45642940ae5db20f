"""The converter as a KerasHub preprocessor: text to model inputs and back.

Knows KerasHub's calls, its configs, and tf.data's graphs. What text becomes,
`keras_encdec.objectives.converter` knows, which `converter` gives.
"""

import dataclasses
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_encdec.data.batching import examples_of_conversations
from keras_encdec.data.kinds import Conversations, Documents, Pairs, kind_of
from keras_encdec.data.prompts import in_memory, prompts_of
from keras_encdec.data.recognize import as_source
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.two_tokenizers import TwoTokenizers
from keras_encdec.objectives import Example, Objective, Stages
from keras_encdec.objectives.config import from_config, to_config
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.objectives.images import IMAGES, ImageTokens
from keras_encdec.objectives.rows import Batch, Inputs
from keras_encdec.spec import PairSpec, VisionSpec
from keras_encdec.spec.vision import vision_from_json

_ARRAYS = ("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecSeq2SeqLMPreprocessor(TwoTokenizers, keras_hub.models.Seq2SeqLMPreprocessor):
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
        seed: what chance and order follow from.
        cross_documents: whether a window may go on into the next text, after `<eos>`.
        packing: whether several examples share a row, which is then no longer than
            needed; see `keras_encdec.objectives.packing`.
        allow_special: whether control tokens that texts spell, such as `<end_of_turn>`, are
            those tokens, for who builds prompts; else they are plain text, in training too.
        encoder_tokenizer: of an encoder with another vocabulary, or None. Plain text is
            then cut into windows of the decoder's tokens, for PrefixLM alone.
        chat_template: how turns are framed, in Jinja as transformers renders it, of the
            tokenizer of the encoder; None for the format that its pieces tell. What begins
            the text behind an answer, such as `<|im_end|>`, ends it.
        vision: `VisionSpec` of the pair, or its fields as a dict, to read images beside texts;
            None for text alone.
        **kwargs: of `keras_hub.models.Seq2SeqLMPreprocessor`.

    Raises:
        ValueError: if a sequence length is below 2, or `objective` is not known.

    Example:
        >>> x, y, sample_weight = preprocessor({"encoder_text": "a b", "decoder_text": "c"})
        >>> x, y, sample_weight = preprocessor(["A long text.", "Another."])  # PrefixLM
    """

    backbone_cls = EncDecBackbone
    tokenizer_cls = keras_hub.tokenizers.GemmaTokenizer
    _converter: FeatureConverter | None = None

    def __init__(
        self,
        tokenizer: Any,
        encoder_sequence_length: int = 512,
        decoder_sequence_length: int = 512,
        chat: bool = False,
        objective: Any = None,
        seed: int = 0,
        cross_documents: bool = False,
        packing: bool = False,
        allow_special: bool = False,
        encoder_tokenizer: Any = None,
        chat_template: str | None = None,
        vision: VisionSpec | dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(tokenizer, encoder_sequence_length, decoder_sequence_length, **kwargs)
        self.chat = chat
        self.seed = seed
        self.cross_documents = cross_documents
        self.packing = packing
        self.allow_special = allow_special
        self.chat_template = chat_template
        self.vision = vision_from_json(vision)
        self.set_encoder_tokenizer(encoder_tokenizer)
        self.objective = objective
        self.converter  # noqa: B018 - checks the lengths

    @property
    def converter(self) -> FeatureConverter:
        """What text becomes, by the settings as they are now."""
        found = FeatureConverter(
            self.tokenizer,
            self._encoder_tokenizer,
            self.encoder_sequence_length,
            self.decoder_sequence_length,
            self._unbound,
            self.chat,
            self.seed,
            self.cross_documents,
            self.packing,
            self.allow_special,
            self.chat_template,
            ImageTokens.of(self.vision),
        )
        if found != self._converter:
            self._converter = found
        return self._converter  # which may have looked up its objective's ids

    @property
    def start_token_id(self) -> int:
        """What the decoder reads first: `<bos>`, or where there is none the end token."""
        return self.converter.start_token_id

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generated text: `<eos>`, and what ends a turn where there is one."""
        return self.converter.stop_token_ids

    @property
    def objective(self) -> Objective | Stages:
        """What makes examples of plain text, with the tokenizer's ids; can be set.

        Raises:
            ValueError: if the tokenizer has no tokens for the objective's sentinels, or
                the objective needs one vocabulary.
        """
        return self.converter.bound

    @objective.setter
    def objective(self, objective: Any) -> None:
        self._unbound = from_config(objective or "prefix_lm")

    # Training.

    def call(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        first: Any = 0,
        epoch: Any = 0,
        **lengths: int | None,
    ) -> Batch:
        """Text to `(x, y, sample_weight)`.

        Args:
            x: `{"encoder_text": ..., "decoder_text": ...}` of strings or batches of
                them, and `images` beside them; or plain text, of which each window becomes
                one row.
            y: texts to write, where `x` is text to read alone.
            sample_weight: what each pair, or each text, counts in the loss.
            first: number of the first of the plain texts.
            epoch: how often they have been seen.
            **lengths: `encoder_sequence_length`, `decoder_sequence_length`.

        Returns:
            `x` with the four model inputs (B, S) and (B, T) int32, and with `images`
            (B, N, H, W, 3) float32 where a row has some; `y` (B, T) int32,
            the next token at each position; `sample_weight` (B, T) float32, 0 for
            padding. Without B for a single pair that is not packed.
        """
        converter = self._resized(**lengths)
        if _is_symbolic(x):
            return _in_graph(x, y, sample_weight, (first, epoch), converter)
        return _batch(as_source(x, y, sample_weight), converter, int(first), int(epoch))

    def examples(
        self, x: Any, first: int = 0, epoch: int = 0, **lengths: int | None
    ) -> list[Example]:
        """The examples of plain texts or pairs, before they are laid into rows.

        Args:
            x: as in `call`.
            first: number of the first of the plain texts.
            epoch: how often they have been seen.
            **lengths: as in `call`.
        """
        return _examples(as_source(x), self._resized(**lengths), first, epoch)

    # Generation.

    def generate_preprocess(
        self, x: Any, sequence_length: int | None = None, **lengths: int | None
    ) -> Inputs:
        """Prompts to model inputs: a text, a batch, or a dict with `decoder_text` or `images`."""
        converter = self._resized(sequence_length=sequence_length, **lengths)
        prompts, images = prompts_of(in_memory(x), converter)
        return {**converter.lay_prompts(prompts), **converter.rows.pixels(images or ())}

    def generate_postprocess(self, x: Any) -> list[str]:
        """Generated ids to strings, without special tokens."""
        ids = keras.ops.convert_to_numpy(x["decoder_token_ids"])
        mask = keras.ops.convert_to_numpy(x["decoder_padding_mask"]).astype(bool)
        hidden = (self.start_token_id, *self.stop_token_ids)
        rows = [
            row[keep & ~np.isin(row, hidden)].tolist() for row, keep in zip(ids, mask, strict=True)
        ]
        return [self.tokenizer.detokenize(row) if row else "" for row in rows]

    def _resized(
        self,
        encoder_sequence_length: int | None = None,
        decoder_sequence_length: int | None = None,
        sequence_length: int | None = None,
    ) -> FeatureConverter:
        """The converter with the lengths of a call."""
        if decoder_sequence_length is None:
            decoder_sequence_length = sequence_length
        return self.converter.resized(encoder_sequence_length, decoder_sequence_length)

    # Files.

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "encoder_sequence_length": self.encoder_sequence_length,
            "decoder_sequence_length": self.decoder_sequence_length,
            "chat": self.chat,
            "objective": to_config(self._unbound),
            "seed": self.seed,
            "cross_documents": self.cross_documents,
            "packing": self.packing,
            "allow_special": self.allow_special,
            "chat_template": self.chat_template,
            "vision": None if self.vision is None else dataclasses.asdict(self.vision),
        }


def _examples(source: Any, converter: FeatureConverter, first: int, epoch: int) -> list[Example]:
    if isinstance(source, Pairs):
        sides = source.encoder_text, source.targets()
        return converter.of_pairs(*sides, source.weights, images=source.images)
    if isinstance(source, Documents):
        return converter.of_texts(source.texts(), first, epoch, source.weights)
    if isinstance(source, Conversations):
        return examples_of_conversations(source, converter)
    raise ValueError(
        f"Expected texts, pairs of texts or conversations. Received: {kind_of(source)}."
    )


def _batch(source: Any, converter: FeatureConverter, first: int = 0, epoch: int = 0) -> Batch:
    examples = _examples(source, converter, first, epoch)
    batch = converter.rows.batch(converter.grouped(examples))
    if not (source.single and isinstance(source, Pairs)) or converter.packing:
        return batch
    return keras.tree.map_structure(lambda array: array[0], batch)


def _is_symbolic(x: Any) -> bool:
    """Whether text is a tensor of a tf.data graph, which has no value yet."""
    first = next(iter(x.values()), None) if isinstance(x, dict) else x
    return hasattr(first, "graph") and not hasattr(first, "numpy")


def _in_graph(
    x: Any, y: Any, weight: Any, number: tuple[Any, Any], converter: FeatureConverter
) -> Batch:
    """A batch inside of tf.data's graph, by a Python call."""
    import tensorflow as tf

    if isinstance(x, dict) and IMAGES in x:
        raise ValueError(
            "Expected texts alone inside a graph of tf.data. Received: images. Give the dataset "
            "to fit, which makes its batches."
        )
    parts = {"x": x, "y": y, "weight": weight}
    given = {name: part for name, part in parts.items() if part is not None}
    given["number"] = number

    def run(*values: Any) -> tuple:
        named = tf.nest.pack_sequence_as(given, values)
        source = as_source(named["x"], named.get("y"), named.get("weight"))
        inputs, labels, counts = _batch(source, converter, *map(int, named["number"]))
        return *(inputs[name] for name in _ARRAYS), labels, counts

    flat = [tf.convert_to_tensor(value) for value in tf.nest.flatten(given)]
    arrays = tf.numpy_function(run, flat, [tf.int32] * 5 + [tf.float32])
    source_length, target_length = converter.rows.source, converter.rows.target
    is_pair = isinstance(x, dict) or y is not None
    single = is_pair and tf.nest.flatten(x)[0].shape.rank == 0
    batch = () if single and not converter.packing else (None,)
    for array, length in zip(arrays, [source_length] * 2 + [target_length] * 4, strict=True):
        array.set_shape((*batch, length))
    return dict(zip(_ARRAYS, arrays[:4], strict=True)), arrays[4], arrays[5]


def check_preprocessor(preprocessor: Any, pair: PairSpec | None = None) -> None:
    """Refuses what is neither None nor a preprocessor, or has tokens that a pair has not.

    Raises:
        ValueError: in these cases.
    """
    if preprocessor is None:
        return
    if not isinstance(preprocessor, EncDecSeq2SeqLMPreprocessor):
        raise ValueError(
            "Expected preprocessor as an EncDecSeq2SeqLMPreprocessor or None. "
            f"Received: {preprocessor!r}."
        )
    if pair is not None:
        check_rows(preprocessor.encoder_tokenizer, pair.encoder.vocabulary_size)
        check_rows(preprocessor.tokenizer, pair.decoder.vocabulary_size)
        if preprocessor.vision not in (None, pair.vision):
            raise ValueError(
                f"Expected a preprocessor for vision={pair.vision}, as the pair's. Received: one "
                f"for {preprocessor.vision}."
            )


def check_rows(tokenizer: Any, rows: int) -> None:
    """Raises ValueError if a tokenizer has more tokens than an embedding has rows."""
    tokens = vocabulary_of(tokenizer)
    if tokens is not None and tokens > rows:
        raise ValueError(
            f"Expected a tokenizer of at most {rows} tokens, the rows of the embedding. "
            f"Received: one of {tokens}. It belongs to another model."
        )


def vocabulary_of(tokenizer: Any) -> int | None:
    """Tokens that a tokenizer has; None if KerasHub has made it, and reads its files later."""
    try:
        return int(tokenizer.vocabulary_size())
    except (ValueError, AttributeError):
        return None
