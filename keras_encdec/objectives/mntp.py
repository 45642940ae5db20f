"""Masked next token prediction: an encoder learns to read in both directions, alone.

Knows which tokens of a window are hidden and what stands in their place. The state in front of a
hidden token predicts it, as a decoder-only model has learnt to.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.objectives.draws import bits, fold
from keras_encdec.objectives.objective import Example, Objective, check_tokens
from keras_encdec.objectives.tokenizer import encode, piece_id

_GEMMA = 4, 256000  # <mask> and the size of Gemma's vocabulary, where no tokenizer is known
_MASK, _BLANK = "<mask>", "_"


@dataclasses.dataclass(frozen=True)
class MNTP(Objective):
    """Hides `rate` of a window's tokens in their places (LLM2Vec, arXiv 2404.05961, section 2.1).

    Of the hidden tokens, `keep_rate` stay as they are and `random_rate` become any token of the
    vocabulary, as in BERT (arXiv 1810.04805, section 3.1); the others become the mask token. The
    first token of a window, which nothing stands in front of, is never hidden.

    Args:
        rate: share of hidden tokens, rounded, one at least; 0.2 is LLM2Vec's for Llama.
        random_rate: share of the hidden ones that become random tokens.
        keep_rate: share of the hidden ones that stay.
        mask_token: a token's text or id; None for `<mask>`, which Gemma's tokenizers have, or
            where there is none `_`, as in LLM2Vec.
        vocabulary_size: ids that random tokens are drawn from; None for the tokenizer's.

    Raises:
        ValueError: if a number is out of range; when bound, if the mask token is none.

    Example:
        >>> MNTP()(tokens, seed=0)
    """

    rate: float = 0.2
    random_rate: float = 0.1
    keep_rate: float = 0.1
    mask_token: str | int | None = None
    vocabulary_size: int | None = None

    def __post_init__(self) -> None:
        check.real("rate", self.rate, above=0, below=1)
        for name in ("random_rate", "keep_rate"):
            check.real(name, getattr(self, name), least=0)
        if self.random_rate + self.keep_rate > 1:
            raise ValueError(
                "Expected random_rate and keep_rate of 1 at most together. Received: "
                f"{self.random_rate} and {self.keep_rate}."
            )
        if isinstance(self.mask_token, int):
            check.whole("mask_token", self.mask_token, least=0)
        elif self.mask_token is not None:
            check.text("mask_token", self.mask_token)
        if self.vocabulary_size is not None:
            check.whole("vocabulary_size", self.vocabulary_size)

    def hidden(self, length: int) -> int:
        """How many tokens of a window of `length` are hidden."""
        return min(max(round(length * self.rate), 1), length - 1)

    def __call__(self, tokens: np.ndarray, seed: int = 0) -> Example:
        tokens = check_tokens(tokens)
        count, keys = self.hidden(len(tokens)), bits(seed, len(tokens) - 1)
        places = np.sort(np.argpartition(keys, count - 1)[:count]) + 1
        inputs = tokens.copy()
        inputs[places] = self._shown(tokens[places], seed)
        return Example(inputs, tokens[places], self.name, places=places)

    def _shown(self, hidden: np.ndarray, seed: int) -> np.ndarray:
        """What is read in place of hidden tokens, (n,) int32."""
        mask, size = _GEMMA
        if isinstance(self.mask_token, int):
            mask = self.mask_token
        fractions = (bits(fold(seed, 0), len(hidden)) >> np.uint64(11)) * 2.0**-53
        others = bits(fold(seed, 1), len(hidden)) % np.uint64(self.vocabulary_size or size)
        kept = fractions < self.keep_rate
        random = ~kept & (fractions < self.keep_rate + self.random_rate)
        return np.select([kept, random], [hidden, others.astype("int32")], mask).astype("int32")

    def raw_lengths(self, inputs_length: int, targets_length: int, seeds: np.ndarray) -> np.ndarray:
        length = inputs_length
        while length > 2 and self.hidden(length) > targets_length:
            length -= 1
        return np.full(len(seeds), length)

    def bind(self, tokenizer: Any) -> "MNTP":
        size = self.vocabulary_size or tokenizer.vocabulary_size()
        return dataclasses.replace(self, mask_token=self._mask(tokenizer), vocabulary_size=size)

    def _mask(self, tokenizer: Any) -> int:
        if isinstance(self.mask_token, int):
            return self.mask_token
        asked = (_MASK, _BLANK) if self.mask_token is None else (self.mask_token,)
        for piece in asked:
            found = piece_id(tokenizer, piece)
            alone = [found] if found is not None else encode(tokenizer, [piece])[0]
            if len(alone) == 1:
                return alone[0]
        raise ValueError(
            f"Expected a mask token that the tokenizer has. Received: {' or '.join(asked)} for "
            f"{type(tokenizer).__name__}, which has none. Pass mask_token= as the id of a token "
            "that texts seldom hold."
        )
