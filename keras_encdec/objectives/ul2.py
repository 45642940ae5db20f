"""UL2: a mixture of denoisers, one drawn per window.

Knows the published mixtures and the mode tokens. Leaves the denoisers themselves to
`span_corruption` and `prefix_lm`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.objectives.mixture import Mixture
from keras_encdec.objectives.objective import Example, Objective
from keras_encdec.objectives.prefix_lm import PrefixLM
from keras_encdec.objectives.span_corruption import SpanCorruption
from keras_encdec.objectives.tokenizer import encode

_R = functools.partial(SpanCorruption, rate=0.15)
_X = SpanCorruption
_S = functools.partial(PrefixLM, "random")

MIXTURES: dict[str, tuple[tuple[Objective, ...], tuple[float, ...]]] = {
    # arXiv 2205.05131, table 1, drawn equally. (The published code splits S at 0.5.)
    "ul2": ((_R(3), _R(8), _S(0.25), _X(3, 0.5), _X(8, 0.5), _X(64, 0.15), _X(64, 0.5)), (1,) * 7),
    # arXiv 2512.14856, section 3.1.
    "t5gemma2": ((_R(3), _X(12, 0.5), _X(32, 0.15), _X(32, 0.5), _S(0.75)), (1, 1, 1, 1, 4)),
    # arXiv 2210.11399, section 2: half S, a quarter R, a quarter X, of long spans or a high rate.
    "ul2r": ((_S(0.25), _R(3), _X(32, 0.15), _X(3, 0.5)), (4, 2, 1, 1)),
}

# Plain text at the start of the input, as the released models have it (arXiv 2210.11399, 2.3).
MODE_TEXTS = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}


@dataclasses.dataclass(frozen=True)
class UL2(Objective):
    """Draws a denoiser by the seed, and names it on the example.

    Args:
        denoisers: `"ul2"` (seven, equally often), `"t5gemma2"` (five, 1:1:1:1:4),
            `"ul2r"` (half sequential, a quarter regular, a quarter extreme), or any
            sequence of `SpanCorruption` and `PrefixLM`.
        rates: how often each is drawn, in any unit; None for the mixture's own, or
            equally often.
        mode_tokens: whether the input starts with `[NLU]`, `[NLG]` or `[S2S]`, which
            names the denoiser's kind (R, X, S). They are plain text: `bind` to a
            tokenizer first, as the preprocessor does, or give the ids of each kind.
        sentinels: as in `SpanCorruption`, for denoisers without their own.
        overflow: as in `SpanCorruption`; None leaves each denoiser its own.

    Raises:
        ValueError: if the mixture is unknown or rates do not fit.

    Example:
        >>> example = UL2()(tokens, seed=5)
        >>> example.denoiser
        'X(8,0.5)'
    """

    denoisers: str | Sequence[Objective] = "ul2"
    rates: Sequence[float] | None = None
    mode_tokens: bool | Mapping[str, Sequence[int]] = False
    sentinels: Sequence[int] | None = None
    overflow: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.denoisers, str):
            check.one_of("denoisers", self.denoisers, sorted(MIXTURES))
        else:
            object.__setattr__(self, "denoisers", tuple(self.denoisers))
        if not isinstance(self.mode_tokens, Mapping):
            check.flag("mode_tokens", self.mode_tokens)
        if not all(isinstance(d, (SpanCorruption, PrefixLM)) for d in self.mixture.objectives):
            raise ValueError(
                "Expected denoisers to be SpanCorruption or PrefixLM. "
                f"Received: {self.denoisers}. `Mixture` joins other objectives."
            )

    @functools.cached_property
    def mixture(self) -> Mixture:
        """The denoisers with their rates, each with its sentinels."""
        denoisers = self.denoisers
        rates = () if self.rates is None else tuple(self.rates)
        if isinstance(denoisers, str):
            denoisers, own_rates = MIXTURES[denoisers]
            rates = rates or own_rates
        ready: list[Objective] = []
        for denoiser in denoisers:
            if isinstance(denoiser, SpanCorruption):
                denoiser = dataclasses.replace(
                    denoiser,
                    sentinels=denoiser.sentinels or self.sentinels,
                    overflow=self.overflow or denoiser.overflow,
                )
            ready.append(denoiser)
        return Mixture(ready, rates)

    def __call__(self, tokens: np.ndarray, seed: int = 0) -> Example:
        denoiser, seed = self.mixture.draw(seed)
        return self._name(denoiser(tokens, seed), denoiser.mode)

    def _name(self, example: Example, kind: str) -> Example:
        if not self.mode_tokens:
            return example
        ids = np.array(self._mode_ids()[kind], "int32")
        inputs = np.concatenate([ids, example.inputs])
        return dataclasses.replace(example, inputs=inputs, mode=len(ids))

    def _mode_ids(self) -> Mapping[str, Sequence[int]]:
        if isinstance(self.mode_tokens, Mapping):
            return self.mode_tokens
        raise ValueError(
            "Expected the ids of the mode tokens, which are plain text. Received: "
            "mode_tokens=True without a tokenizer. Call `bind(tokenizer)` first."
        )

    @property
    def added_ids(self) -> tuple[int, ...]:
        """Sentinels and mode tokens that were given."""
        modes = self.mode_tokens.values() if isinstance(self.mode_tokens, Mapping) else ()
        return (*self.mixture.added_ids, *(i for ids in modes for i in ids))

    def raw_lengths(self, inputs_length: int, targets_length: int, seeds: np.ndarray) -> np.ndarray:
        if self.mode_tokens:
            inputs_length -= max(len(ids) for ids in self._mode_ids().values())
        return self.mixture.raw_lengths(inputs_length, targets_length, seeds)

    def bind(self, tokenizer: Any) -> "UL2":
        denoisers, rates = self.mixture.bind(tokenizer).objectives, self.mixture.rates
        modes = self.mode_tokens
        if modes is True:
            ids = encode(tokenizer, list(MODE_TEXTS.values()))
            modes = dict(zip(MODE_TEXTS, map(tuple, ids), strict=True))
        return dataclasses.replace(self, denoisers=denoisers, rates=rates, mode_tokens=modes)
