"""Queries and documents to what a reranker reads, as a KerasHub preprocessor."""

from collections.abc import Sequence
from typing import Any

import keras
import keras_hub

from keras_encdec import check
from keras_encdec.data.ranked import Ranked, as_judged, ranked_inputs
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.preprocessor import vocabulary_of
from keras_encdec.models.two_tokenizers import TwoTokenizers
from keras_encdec.objectives.reader import INSTRUCTION, PairReader
from keras_encdec.objectives.rows import Inputs
from keras_encdec.objectives.tokenizer import encode

_OPTIONS = (
    *("encoder_sequence_length", "decoder_sequence_length", "instruction"),
    *("allow_special", "seed"),
)
OPTIONS = (*_OPTIONS, "words")


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecRerankerPreprocessor(TwoTokenizers, keras_hub.models.Preprocessor):
    """Makes model inputs of queries and documents.

    The encoder reads the document as it is. The decoder reads `<bos>`, or where there is none
    the end token, the instruction, a line break and the query. What is longer than its room is cut
    at its end, and a warning says how many were.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer` of the decoder, and of the encoder if it has
            none of its own.
        encoder_sequence_length: S, tokens of a document.
        decoder_sequence_length: T, tokens of instruction and query.
        instruction: what the decoder is told in front of each query; "" for nothing.
        words: what the decoder says where a document answers, and where it does not: each one
            token of the tokenizer.
        allow_special: whether control tokens that texts spell are those tokens.
        seed: what the order of rows follows from.
        encoder_tokenizer: of an encoder with another vocabulary, or None.
        **kwargs: of `keras_hub.models.Preprocessor`.

    Raises:
        ValueError: if a length leaves no room, or a word is not one token, or both are the same.

    Example:
        >>> x = preprocessor({"query": "Who adds?", "document": "It adds two numbers."})
    """

    backbone_cls = EncDecBackbone
    tokenizer_cls = keras_hub.tokenizers.GemmaTokenizer

    def __init__(
        self,
        tokenizer: Any,
        encoder_sequence_length: int = 512,
        decoder_sequence_length: int = 128,
        instruction: str = INSTRUCTION,
        words: Sequence[str] = ("yes", "no"),
        allow_special: bool = False,
        seed: int = 0,
        encoder_tokenizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.encoder_sequence_length = encoder_sequence_length
        self.decoder_sequence_length = decoder_sequence_length
        self.instruction = instruction
        self.words = _checked(words)
        self.allow_special = allow_special
        self.seed = seed
        self.set_encoder_tokenizer(encoder_tokenizer)
        self.reader  # noqa: B018 - checks them
        if vocabulary_of(tokenizer) is not None:
            self.word_ids  # noqa: B018 - likewise

    @property
    def reader(self) -> PairReader:
        """What text becomes, by the settings as they are now."""
        options = {name: getattr(self, name) for name in _OPTIONS}
        return PairReader(self.tokenizer, self._encoder_tokenizer, **options)

    @property
    def word_ids(self) -> tuple[int, int]:
        """Ids of the two words.

        Raises:
            ValueError: naming a word that is not one token, or the token of both.
        """
        found = [self._word_id(word) for word in self.words]
        if found[0] == found[1]:
            raise ValueError(f"Expected two words of two tokens. Received: {self.words}.")
        return found[0], found[1]

    def _word_id(self, word: str) -> int:
        (ids,) = encode(self.tokenizer, [word])
        if len(ids) != 1 or self.tokenizer.detokenize(ids).strip() != word.strip():
            pieces = [self.tokenizer.id_to_token(i) for i in ids]
            raise ValueError(
                f"Expected words that are one token each. Received: {word!r}, which is {pieces} to "
                f"{type(self.tokenizer).__name__}. Choose others: words=('True', 'False')."
            )
        return int(ids[0])

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Text to `x`, `(x, y)` or `(x, y, sample_weight)`, as KerasHub has it.

        Args:
            x: queries and documents, one for each, without labels: a dict or frame with `query`
                and `document`, or rows of these. (A tuple is `(x, y)` to KerasHub.)
            y: labels, given back as they are.
            sample_weight: likewise.

        Returns:
            `x` with the four model inputs, int32, (B, S) and (B, T).
        """
        inputs = model_inputs(as_judged(x), self.reader)
        return keras.utils.pack_x_y_sample_weight(inputs, y, sample_weight)

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _OPTIONS}
        return {**super().get_config(), **own, "words": list(self.words)}


def _checked(words: Any) -> tuple[str, str]:
    if isinstance(words, str) or not isinstance(words, Sequence) or len(words) != 2:
        raise ValueError(
            f"Expected two words, such as ('yes', 'no'), the better first. Received: {words!r}."
        )
    return check.text("words", words[0]), check.text("words", words[1])


def model_inputs(source: Ranked, reader: PairReader) -> Inputs:
    """The four model inputs of queries with one document each.

    Raises:
        ValueError: if there are negatives.
    """
    if source.negatives is not None:
        raise ValueError(
            "Expected a document for each query, such as {'query': ..., 'document': ...}. "
            "Received: negatives beside them."
        )
    found = ranked_inputs(source, reader)
    return {
        **{f"encoder_{name}": found[f"document_{name}"][:, 0] for name in _ARRAYS},
        **{f"decoder_{name}": found[f"query_{name}"] for name in _ARRAYS},
    }


_ARRAYS = "token_ids", "padding_mask"
