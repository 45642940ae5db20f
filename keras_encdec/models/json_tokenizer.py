"""A tokenizer.json as a tokenizer of KerasHub, for every family alike.

Leaves the tokenising to the `tokenizers` package, so that ids are those of transformers.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import keras_hub
import tokenizers

from keras_encdec.data.recognize import is_single_text, strings

_FILE = "tokenizer.json"


@keras.saving.register_keras_serializable(package="keras_encdec")
class JsonTokenizer(keras_hub.tokenizers.Tokenizer):
    """Tokenises by a tokenizer.json, adding no special tokens of its own.

    Args:
        tokenizer: path of the file; None where `load_preset_assets` follows.
        start_token: token that a text begins with, or None.
        end_token: token that a text ends with.
        pad_token: token that fills rows; None for the id 0.
        **kwargs: of `keras_hub.tokenizers.Tokenizer`.

    Raises:
        ValueError: if a special token is not in the vocabulary.

    Example:
        >>> tokenizer = JsonTokenizer("tokenizer.json", end_token="<|endoftext|>")
        >>> tokenizer(["some text"])
    """

    def __init__(
        self,
        tokenizer: str | os.PathLike | None = None,
        *,
        start_token: str | None = None,
        end_token: str | None = None,
        pad_token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.start_token, self.end_token, self.pad_token = start_token, end_token, pad_token
        self.file_assets = [_FILE]
        if tokenizer is not None:
            self._read(tokenizer)

    def _read(self, path: str | os.PathLike) -> None:
        self._tokenizer_of_file = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer_of_file.no_padding()
        self._tokenizer_of_file.no_truncation()
        self.start_token_id = self._id(self.start_token)
        self.end_token_id = self._id(self.end_token)
        self.pad_token_id = self._id(self.pad_token) or 0

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.token_to_id(token)

    def save_assets(self, dir_path: str | os.PathLike) -> None:
        self._tokenizer_of_file.save(str(Path(dir_path) / _FILE))

    def load_assets(self, dir_path: str | os.PathLike) -> None:
        self._read(Path(dir_path) / _FILE)

    def tokenize(self, inputs: Any) -> list[int] | list[list[int]]:
        """A text's ids; of several texts a list for each."""
        texts = strings(inputs, "text to tokenize")
        every = self._tokenizer_of_file.encode_batch(texts, add_special_tokens=False)
        rows = [encoding.ids for encoding in every]
        return rows[0] if is_single_text(inputs) else rows

    def detokenize(self, inputs: Iterable[Any]) -> str:
        """The text of ids, special tokens included."""
        ids = [int(i) for i in inputs]
        return self._tokenizer_of_file.decode(ids, skip_special_tokens=False)

    @property
    def special_tokens(self) -> list[str]:
        """Those that the file marks as special."""
        added = self._tokenizer_of_file.get_added_tokens_decoder()
        return [token.content for token in added.values() if token.special]

    def vocabulary_size(self) -> int:
        return self._tokenizer_of_file.get_vocab_size()

    def get_vocabulary(self) -> list[str | None]:
        return [self.id_to_token(i) for i in range(self.vocabulary_size())]

    def id_to_token(self, id: int) -> str | None:
        return self._tokenizer_of_file.id_to_token(id)

    def token_to_id(self, token: str) -> int:
        """Raises ValueError if there is no such token."""
        token_id = self._tokenizer_of_file.token_to_id(token)
        if token_id is None:
            raise ValueError(f"Expected a token of the vocabulary. Received: {token!r}.")
        return token_id

    def get_config(self) -> dict[str, Any]:
        special = {f"{n}_token": getattr(self, f"{n}_token") for n in ("start", "end", "pad")}
        return {**super().get_config(), **special}
