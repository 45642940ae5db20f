"""Span corruption: spans of a window are hidden from the encoder and written by the decoder.

Knows how many tokens and spans are hidden, which, and what stands in their place.
The rules are those of T5 (t5/data/preprocessors.py, PyPI t5 0.9.4), to the token.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.objectives.draws import bits, composition
from keras_encdec.objectives.objective import Example, Objective, check_tokens
from keras_encdec.objectives.sentinels import GEMMA, check_overflow, sentinel_ids

_EXTREME_SPAN, _EXTREME_RATE = 12, 0.3  # what makes a denoiser X (Flan-UL2's model card)


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Objective):
    """One denoiser: hides `rate` of the tokens in spans of `mean_span` on average.

    Each hidden span leaves one sentinel in the input; the target is the spans, each
    behind its sentinel, without a closing one. The first token is never hidden, the
    last always is.

    Args:
        mean_span: mean length of a span, in tokens.
        rate: share of hidden tokens.
        sentinels: ids for the spans, in order; None for what the tokenizer keeps free,
            Gemma's `<unused0>` to `<unused98>`, Llama 3's `<|reserved_special_token_0|>` and on,
            or the like (Gemma's ids where no tokenizer is known).
        overflow: with more spans than sentinels, `"reuse"` them in order, `"cap"`
            the number of spans (they grow longer), or `"error"`.

    Raises:
        ValueError: if a number is out of range; when called, if the data holds sentinels.

    Example:
        >>> SpanCorruption(mean_span=3, rate=0.15)(tokens, seed=0)
    """

    mean_span: float = 3.0
    rate: float = 0.15
    sentinels: Sequence[int] | None = None
    overflow: str = "reuse"

    def __post_init__(self) -> None:
        check.real("mean_span", self.mean_span, least=1)
        check.real("rate", self.rate, above=0, below=1)
        check_overflow(self.overflow)
        if self.sentinels is not None:
            ids = tuple(check.whole("sentinels", i, least=0) for i in self.sentinels)
            object.__setattr__(self, "sentinels", ids)
            if len(set(self.sentinels)) != len(self.sentinels) or not self.sentinels:
                raise ValueError(f"Expected different sentinels. Received: {self.sentinels}.")

    @property
    def name(self) -> str:
        return f"{self.mode}({self.mean_span:g},{self.rate:g})"

    @property
    def mode(self) -> str:
        """`"X"` for extreme denoisers, `"R"` for regular ones."""
        return "X" if self.mean_span >= _EXTREME_SPAN or self.rate >= _EXTREME_RATE else "R"

    def __call__(self, tokens: np.ndarray, seed: int = 0) -> Example:
        tokens = check_tokens(tokens)
        mask = self.noise_mask(len(tokens), seed)
        inputs, targets = corrupt(tokens, mask, self.ids)
        return Example(inputs, targets, self.name, self.ids, ends=True)

    @property
    def added_ids(self) -> tuple[int, ...]:
        """The sentinels that were given."""
        return tuple(self.sentinels or ())

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """The sentinels as int32."""
        return np.array(GEMMA if self.sentinels is None else self.sentinels, "int32")

    def noise_mask(self, length: int, seed: int) -> np.ndarray:
        """(length,) bool, true where a token is hidden.

        Hidden and visible tokens are each cut into as many spans as there are, each
        way equally likely, and take turns, visible first
        (`random_spans_noise_mask`).
        """
        noise, spans = self.counts(length)
        keys = bits(seed, length - 2)
        visible_ends = composition(keys[noise - 1 :], spans)
        hidden_ends = composition(keys[: noise - 1], spans)
        turns = np.zeros(length, "bool")
        turns[visible_ends[0]] = True  # hidden from here on, and visible again where it ends
        turns[visible_ends[1:] + hidden_ends[:-1]] = True
        turns[visible_ends[:-1] + hidden_ends[:-1]] = True
        return np.logical_xor.accumulate(turns)

    def counts(self, length: int) -> tuple[int, int]:
        """How many tokens of `length` are hidden, and in how many spans."""
        noise, spans = noise_counts(length, self.mean_span, self.rate)
        if spans > len(self.ids) and self.overflow == "error":
            raise ValueError(
                f"Expected at most {len(self.ids)} spans, one per sentinel. Received: {length} "
                f"tokens, which {self.name} hides in {spans}. Choose overflow='reuse' or 'cap'."
            )
        return noise, min(spans, len(self.ids)) if self.overflow == "cap" else spans

    def raw_lengths(self, inputs_length: int, targets_length: int, seeds: np.ndarray) -> np.ndarray:
        length = fill(inputs_length, targets_length, self.mean_span, self.rate)
        return np.full(len(seeds), length)

    def bind(self, tokenizer: Any) -> "SpanCorruption":
        if self.sentinels is not None:
            return self
        return dataclasses.replace(self, sentinels=sentinel_ids(tokenizer))


def noise_counts(length: int, mean_span: float, rate: float) -> tuple[int, int]:
    """Hidden tokens and spans of a window of `length` (`random_spans_noise_mask`).

    Halves round to even. There are never more spans than visible tokens: the original
    does not look, and then hides fewer (transformers pull request 22938).
    """
    noise = min(max(round(length * rate), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), length - noise)


def corrupt(
    tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Input and target of a window whose tokens under `mask` are hidden.

    Args:
        tokens: (n,) int32.
        mask: (n,) bool.
        sentinels: int32 ids; the k-th span takes the k-th, from the first again
            after the last.

    Returns:
        Two 1-D int32 arrays (`noise_span_to_unique_sentinel` and
        `nonnoise_span_to_unique_sentinel`).

    Raises:
        ValueError: if `tokens` hold a sentinel.
    """
    _check_free_of(sentinels, tokens)
    return _collapse(tokens, mask, sentinels), _collapse(tokens, ~mask, sentinels)


def _collapse(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """`tokens` with a sentinel in place of each run under `mask`."""
    keep = ~mask
    first = mask.copy()
    first[1:] &= keep[:-1]
    starts = np.flatnonzero(first)
    tokens = tokens.copy()
    tokens[starts] = sentinels[np.arange(len(starts)) % len(sentinels)]
    return tokens[keep | first]


def _check_free_of(sentinels: np.ndarray, tokens: np.ndarray) -> None:
    near = tokens[(tokens >= sentinels.min()) & (tokens <= sentinels.max())]
    if len(near) and (found := near[np.isin(near, sentinels)]).size:
        raise ValueError(
            f"Expected tokens without sentinels. Received: {found[0]}, which stands for a hidden "
            "span. Leave such documents out or choose other sentinels."
        )


@functools.lru_cache
def fill(inputs_length: int, targets_length: int, mean_span: float, rate: float) -> int:
    """The most tokens whose input and target, with an end token each, still fit.

    Exactly `random_spans_helper` where the target's room suffices; the original gives
    up where it does not, this takes fewer tokens.
    """
    length = max(2, inputs_length - 1)
    while side_lengths(length + 1, mean_span, rate)[0] <= inputs_length:
        length += 1
    inputs, targets = side_lengths(length, mean_span, rate)
    if rate == 0.5 and targets > inputs:
        length -= 1
    while length > 2 and side_lengths(length, mean_span, rate)[1] > targets_length:
        length -= 1
    return length


def side_lengths(length: int, mean_span: float, rate: float) -> tuple[int, int]:
    """Tokens of input and target of a window, each with its sentinels and an end token."""
    noise, spans = noise_counts(length, mean_span, rate)
    return length - noise + spans + 1, noise + spans + 1
