"""PrefixLM: the first part of a window is read, the rest is written.

Knows where a window may be split. Needs no sentinels: the target follows the input.
"""

import dataclasses

import numpy as np

from keras_encdec import check
from keras_encdec.objectives.draws import between
from keras_encdec.objectives.objective import Example, Objective, check_tokens


@dataclasses.dataclass(frozen=True)
class PrefixLM(Objective):
    """Splits a window in two.

    Args:
        split: `"half"` for two equal halves (arXiv 2504.06225, section 3.3; of an
            odd number the target gets the larger), or `"random"`, the sequential
            denoiser of UL2 (`random_prefix_noise_mask` in t5/data/preprocessors.py).
        rate: mean share of the target in a random split. Up to 0.5 the target's
            share is uniform from 0 to twice the rate; above, from `2 * rate - 1`
            to 1, as T5Gemma 2 needs for its 0.75 (arXiv 2512.14856, section 3.1).

    Raises:
        ValueError: if `split` is unknown or `rate` not between 0 and 1.

    Example:
        >>> PrefixLM()(np.array([5, 6, 7, 8, 9], "int32"))
        Example(inputs=array([5, 6], dtype=int32), targets=array([7, 8, 9], dtype=int32), ...)
    """

    split: str = "half"
    rate: float = 0.5

    def __post_init__(self) -> None:
        check.one_of("split", self.split, ("half", "random"))
        check.real("rate", self.rate, above=0, below=1)

    @property
    def name(self) -> str:
        return "PrefixLM" if self.split == "half" else f"S({self.rate:g})"

    @property
    def mode(self) -> str:
        return "S"

    def __call__(self, tokens: np.ndarray, seed: int = 0) -> Example:
        tokens = check_tokens(tokens)
        shortest, longest = self.prefix_range(len(tokens))
        prefix = shortest if shortest == longest else between(seed, shortest, longest)
        return Example(tokens[:prefix], tokens[prefix:], self.name)

    def prefix_range(self, length: int) -> tuple[int, int]:
        """The shortest and the longest prefix of a window of `length` tokens."""
        if self.split == "half":
            return length // 2, length // 2
        longest = length - 1
        if self.rate > 0.5:
            return 1, min(longest, max(1, round(2 * (1 - self.rate) * longest)))
        return min(longest, max(1, round((1 - 2 * self.rate) * longest))), longest

    def raw_lengths(self, inputs_length: int, targets_length: int, seeds: np.ndarray) -> np.ndarray:
        """Two halves that fill the shorter side; a random split fills one input.

        That is so in the published UL2: input and target together take one input's
        length, less the end token (its `prefix_lm` task). Less where the longest
        target would not fit.
        """
        if self.split == "half":
            return super().raw_lengths(inputs_length, targets_length, seeds)
        length = max(2, inputs_length - 1)
        while length > 2 and length - self.prefix_range(length)[0] > targets_length - 1:
            length -= 1
        return np.full(len(seeds), length)
