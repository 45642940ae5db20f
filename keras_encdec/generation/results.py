"""What generation gives back, and how rows of arrays are kept as JSON."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Source(NamedTuple):
    """What decoding needs of the inputs.

    Args:
        context: what the decoder's cross-attention reads.
        token_ids: (B, S) int32 that the encoder read, -1 for padding.
    """

    context: Any
    token_ids: Any


class Encoding(NamedTuple):
    """Inputs that were encoded, from `lm.encode`, for `lm.decode`.

    Args:
        source: `Source`.
        token_ids: (B, T) int array, what each output begins with.
        given: (B, T) bool array, where that is.
        single: whether it was one text rather than a batch.
        tokens: whether it was model inputs rather than text.
    """

    source: Source
    token_ids: np.ndarray
    given: np.ndarray
    single: bool
    tokens: bool

    @property
    def starts(self) -> list[int]:
        """Tokens that each output begins with."""
        return self.given.sum(axis=1).tolist()

    @property
    def width(self) -> int | None:
        """T of model inputs; None for text."""
        return self.token_ids.shape[1] if self.tokens else None


class Scores(NamedTuple):
    """How likely texts are, in nats.

    Args:
        total: (B,) float32 array, log-likelihood of each.
        per_token: for each an array of its tokens', the end token included.
        likeliest: for each a bool array: whether no word was likelier than that token, so that
            greedy search would have written it.
    """

    total: np.ndarray
    per_token: list[np.ndarray]
    likeliest: list[np.ndarray]

    @property
    def perplexity(self) -> float:
        """exp of the mean over all tokens, as `evaluate` of the same pairs has it."""
        count = sum(map(len, self.per_token))
        return float(np.exp(-self.total.sum(dtype="float64") / count))


def apart(found: Any, samples: int) -> list:
    """Rows by input, as JSON can hold them: of a list of texts, an array, a dict of arrays."""
    if isinstance(found, list):
        return [found[i : i + samples] for i in range(0, len(found), samples)]
    if not isinstance(found, dict):
        return np.reshape(found, (-1, samples)).tolist()
    parts = {k: a.astype(int).reshape(-1, samples, a.shape[1]).tolist() for k, a in found.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


def together(rows: Iterable[Any]) -> Any:
    """The inverse of `apart`."""
    rows = list(rows)
    if not isinstance(rows[0], dict):
        return np.concatenate([np.asarray(row, "float32") for row in rows])
    dtypes = {"decoder_token_ids": "int32", "decoder_padding_mask": "bool"}
    return {
        k: np.concatenate([np.array(row[k], dtype) for row in rows]) for k, dtype in dtypes.items()
    }
