"""Texts to what an encoder reads, as a KerasHub preprocessor.

Knows KerasHub's calls and config. What a row is, `keras_encdec.objectives.reader` knows.
"""

from typing import Any

import keras
import keras_hub

from keras_encdec.data.labelled import Labelled, as_labelled
from keras_encdec.data.ready import ids_within
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.objectives.reader import Reader
from keras_encdec.objectives.rows import Inputs


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecTextClassifierPreprocessor(keras_hub.models.TextClassifierPreprocessor):
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

    def __init__(
        self,
        tokenizer: Any,
        sequence_length: int = 512,
        separator: str = "\n",
        add_start_token: bool = False,
        add_end_token: bool = False,
        allow_special: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(tokenizer, sequence_length, **kwargs)
        self.separator = separator
        self.add_start_token = add_start_token
        self.add_end_token = add_end_token
        self.allow_special = allow_special
        self.seed = seed
        self.reader  # noqa: B018 - checks them
        self.built = tokenizer.built = True  # else Keras traces the whole model in each epoch

    @property
    def reader(self) -> Reader:
        """What text becomes, by the settings as they are now."""
        return Reader(
            self.tokenizer,
            self.sequence_length,
            self.separator,
            self.add_start_token,
            self.add_end_token,
            self.allow_special,
            self.seed,
        )

    def build(self, input_shape: Any = None) -> None:
        """Nothing: all is known from the start."""

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Text to `x`, `(x, y)` or `(x, y, sample_weight)`, as KerasHub has it.

        Args:
            x: what `EncDecTextClassifier.fit` takes.
            y: labels, given back as they are.
            sample_weight: likewise.

        Returns:
            `x` with `token_ids` and `padding_mask`, int32, (B, S), or (B, C, S) with choices;
            without B for a single text.
        """
        source = as_labelled(x, y, sample_weight)
        if not isinstance(source, Labelled):
            raise ValueError("Expected text. Received: ready arrays.")
        inputs = inputs_of(source, self.reader)
        if source.single:
            inputs = {name: array[0] for name, array in inputs.items()}
        return keras.utils.pack_x_y_sample_weight(inputs, y, sample_weight)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["truncate"]
        names = "separator", "add_start_token", "add_end_token", "allow_special", "seed"
        return {**config, **{name: getattr(self, name) for name in names}}


def inputs_of(source: Any, reader: Reader | None, vocabulary_size: int | None = None) -> Inputs:
    """Model inputs of `Labelled` texts, or of arrays that are ready.

    Args:
        source: of `keras_encdec.data.labelled.as_labelled`.
        reader: `Reader`, which texts need.
        vocabulary_size: that ready ids must be below.

    Raises:
        ValueError: if there is text and no reader, or an id is outside the vocabulary.
    """
    if not isinstance(source, Labelled):
        mask = source.x["padding_mask"]
        ids = source.x["token_ids"]
        if vocabulary_size is not None:
            ids = ids_within("token_ids", ids, mask, vocabulary_size)
        return {"token_ids": ids, "padding_mask": mask.astype("int32")}
    if reader is None:
        raise ValueError("Expected token ids, as there is no preprocessor. Received: text.")
    laid = reader.lay(reader.rows_of(source.read()))
    if not source.choices:
        return laid
    shape = (len(source), source.num_choices, -1)
    return {name: array.reshape(shape) for name, array in laid.items()}
