"""Preprocessors of a pair whose encoder may have tokens of its own: the second tokenizer, in files.

Leaves what text becomes to `keras_encdec.objectives`.
"""

import contextlib
from typing import Any

import keras

_CONFIG = "encoder_tokenizer.json"  # its name in a preset

_Mixin: Any = object  # beside a preprocessor of KerasHub, whose methods it calls


class TwoTokenizers(_Mixin):
    """Gives a preprocessor `encoder_tokenizer`."""

    _encoder_tokenizer: Any = None

    def set_encoder_tokenizer(self, tokenizer: Any) -> None:
        """Takes that of an encoder with another vocabulary; None for the decoder's."""
        self._encoder_tokenizer = tokenizer
        if tokenizer is not None:
            tokenizer.config_file = _CONFIG
        for layer in (self, self.tokenizer, tokenizer):
            if layer is not None:  # else Keras traces the whole model in each epoch
                layer.built = True

    @property
    def encoder_tokenizer(self) -> Any:
        """What the encoder's text is tokenised by."""
        return self._encoder_tokenizer or self.tokenizer

    @property
    def has_two_vocabularies(self) -> bool:
        """Whether encoder and decoder have tokens of their own."""
        return self._encoder_tokenizer is not None

    def build(self, input_shape: Any = None) -> None:
        """Nothing: all is known from the start."""

    def get_config(self) -> dict[str, Any]:
        tokenizer = self._encoder_tokenizer
        own = {"encoder_tokenizer": tokenizer and keras.layers.serialize(tokenizer)}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        if isinstance(config.get("encoder_tokenizer"), dict):
            tokenizer = keras.layers.deserialize(config["encoder_tokenizer"])
            config = {**config, "encoder_tokenizer": tokenizer}
        return super().from_config(config)

    @classmethod
    def _add_missing_kwargs(cls, loader: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """KerasHub's hook, for the preset of another task: with both of its tokenizers."""
        kwargs = super()._add_missing_kwargs(loader, kwargs)
        if "encoder_tokenizer" not in kwargs:
            with contextlib.suppress(FileNotFoundError):
                kwargs["encoder_tokenizer"] = loader.load_tokenizer(None, config_file=_CONFIG)
        return kwargs
