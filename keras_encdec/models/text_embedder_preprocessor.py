"""Texts, and queries with documents, to what an encoder reads, as a KerasHub preprocessor."""

from collections.abc import Mapping
from typing import Any

import keras
import keras_hub

from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.models.encoder_preprocessor import EncoderPreprocessor
from keras_encdec.objectives.reader import PROMPTS, PromptedReader


@keras.saving.register_keras_serializable(package="keras_encdec")
class EncDecTextEmbedderPreprocessor(
    EncoderPreprocessor, keras_hub.models.TextEmbedderPreprocessor
):
    """Makes `token_ids` and `padding_mask` of texts, as they are or behind a prompt.

    Args:
        tokenizer: `keras_hub.tokenizers.Tokenizer`.
        prompts: texts by name that `encode_text` and `fit` put in front of others; those of
            `"query"` and `"document"` are by default EmbeddingGemma's.
        **kwargs: of `EncDecTextClassifierPreprocessor`, such as `sequence_length`.

    Raises:
        ValueError: if the length leaves no room, the tokenizer lacks a token, or a prompt is
            missing.

    Example:
        >>> x = preprocessor(["A text.", "Another."])
    """

    backbone_cls = EncoderBackbone
    tokenizer_cls = keras_hub.tokenizers.GemmaTokenizer

    def __init__(
        self, tokenizer: Any, prompts: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        self._prompts = PROMPTS if prompts is None else prompts
        super().__init__(tokenizer, **kwargs)

    @property
    def prompts(self) -> dict[str, str]:
        """Texts by name; a copy."""
        return dict(self._prompts)

    @property
    def reader(self) -> PromptedReader:
        """What text becomes, by the settings as they are now."""
        return PromptedReader(**self._options, prompts=self._prompts)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "prompts": self.prompts}
