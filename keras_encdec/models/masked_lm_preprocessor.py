"""Texts to windows with hidden tokens, as a KerasHub preprocessor.

Leaves which tokens are hidden to `keras_encdec.objectives.mntp`, and rows to
`keras_encdec.objectives.masked_rows`.
"""

from typing import Any

import keras
import keras_hub

from keras_encdec.data.kinds import Documents, kind_of
from keras_encdec.data.recognize import as_source
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.objectives import MNTP
from keras_encdec.objectives.config import from_config, to_config
from keras_encdec.objectives.masked_rows import MaskedConverter
from keras_encdec.objectives.rows import Batch

_OWN = "seed", "cross_documents", "packing", "allow_special"
OPTIONS = "sequence_length", "objective", *_OWN
_OF_KERAS_HUB = (  # which has masks of its own
    *("truncate", "mask_selection_rate", "mask_selection_length"),
    *("mask_token_rate", "random_token_rate"),
)


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecMaskedLMPreprocessor(keras_hub.models.MaskedLMPreprocessor):
    """Makes `(x, y, sample_weight)` of plain texts, by `MNTP`.

    Texts are cut into windows: all of them is used, save a single token that is left over. Which
    tokens are hidden follows from `seed`, the number of the text and the epoch, never from the
    batch it is in.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer`.
        sequence_length: S, tokens of a window at most.
        objective: `keras_encdec.objectives.MNTP`, its config, or None for its defaults.
        seed: what chance follows from.
        cross_documents: whether a window may go on into the next text.
        packing: whether several short texts share a row, none of which sees another.
        allow_special: whether control tokens that texts spell are those tokens.
        **kwargs: of `keras_hub.models.MaskedLMPreprocessor`.

    Raises:
        ValueError: if a setting is out of range, or the tokenizer has no mask token.

    Example:
        >>> preprocessor = EncDecMaskedLMPreprocessor(tokenizer, sequence_length=128)
        >>> x, y, sample_weight = preprocessor(["A text.", "Another."])
    """

    backbone_cls = EncoderBackbone
    tokenizer_cls = keras_hub.tokenizers.GemmaTokenizer

    def __init__(
        self,
        tokenizer: Any,
        sequence_length: int = 512,
        objective: Any = None,
        seed: int = 0,
        cross_documents: bool = False,
        packing: bool = False,
        allow_special: bool = False,
        **kwargs: Any,
    ):
        super().__init__(tokenizer, sequence_length, **kwargs)
        self.objective: Any = from_config(objective or "mntp")
        self.seed = seed
        self.cross_documents = cross_documents
        self.packing = packing
        self.allow_special = allow_special
        self.converter  # noqa: B018 - checks them
        self.built = tokenizer.built = True  # else Keras traces the whole model in each epoch

    @property
    def converter(self) -> MaskedConverter:
        """What text becomes, by the settings as they are now.

        Raises:
            ValueError: if the objective is none for an encoder alone.
        """
        if not isinstance(self.objective, MNTP):
            raise ValueError(
                f"Expected MNTP, the objective of an encoder alone. Received: {self.objective!r}."
            )
        settings = {name: getattr(self, name) for name in _OWN}
        return MaskedConverter(
            tokenizer=self.tokenizer,
            encoder_tokenizer=None,
            encoder_sequence_length=self.sequence_length,
            decoder_sequence_length=max(self.objective.hidden(self.sequence_length), 2),
            objective=self.objective,
            **settings,
        )

    def build(self, input_shape: Any = None) -> None:
        """Nothing: all is known from the start."""

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Batch:
        """Texts to rows, those of epoch 0.

        Args:
            x: a text or texts.
            y: None, as texts are their own labels.
            sample_weight: what each text counts in the loss.

        Returns:
            As `keras_encdec.objectives.masked_rows.MaskedRows.batch`.

        Raises:
            ValueError: if it is no text.
        """
        source, converter = as_source(x, y, sample_weight), self.converter
        if not isinstance(source, Documents):
            raise ValueError(f"Expected texts. Received: {kind_of(source)}.")
        examples = converter.of_texts(source.texts(), weights=source.weights)
        return converter.rows.batch(converter.grouped(examples))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        own = {name: getattr(self, name) for name in _OWN}
        return {
            **{name: config[name] for name in config if name not in _OF_KERAS_HUB},
            **own,
            "objective": to_config(self.objective),
        }
