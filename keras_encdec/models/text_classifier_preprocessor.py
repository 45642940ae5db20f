"""Texts with labels to what an encoder reads, as a KerasHub preprocessor."""

import keras
import keras_hub

from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.models.encoder_preprocessor import EncoderPreprocessor


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecTextClassifierPreprocessor(
    EncoderPreprocessor, keras_hub.models.TextClassifierPreprocessor
):
    """Makes `token_ids` and `padding_mask` of texts, pairs of texts, or texts with choices.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer`.
        sequence_length: S, tokens of a row at most; where a row's texts do not fit, the longest
            is cut at its end, and how many were is told.
        separator: text between two texts of a row.
        add_start_token: whether rows begin with `<bos>`, which a decoder-only model has seen in
            front of every text, and a released T5Gemma's encoder in front of none.
        add_end_token: whether rows end with `<eos>`.
        allow_special: whether control tokens that texts spell are those tokens; else they are
            plain text.
        seed: what the order of rows in `fit` follows from.
        **kwargs: of `keras_hub.models.TextClassifierPreprocessor`.

    Raises:
        ValueError: if the length leaves no room, or the tokenizer lacks a token.

    Example:
        >>> x = preprocessor(["A text.", "Another."])
        >>> x = preprocessor({"text": ["A premise."], "text_pair": ["A hypothesis."]})
    """

    backbone_cls = EncoderBackbone
    tokenizer_cls = keras_hub.tokenizers.GemmaTokenizer
