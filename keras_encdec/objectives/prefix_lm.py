"""PrefixLM: the first half of a window is read, the second half is written.

Tokens in, examples out. NumPy only; knows no model, no text and no padding.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
    """What an objective makes of a window of tokens.

    Args:
        inputs: 1-D int32, what the encoder reads.
        targets: 1-D int32, what the decoder must write.
    """

    inputs: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class PrefixLM:
    """Cuts a window into two equal halves (arXiv 2504.06225, section 3.3).

    Example:
        >>> PrefixLM()(np.array([5, 6, 7, 8, 9], "int32"))
        Example(inputs=array([5, 6]), targets=array([7, 8, 9]))
    """

    def __call__(self, tokens: np.ndarray, seed: int | None = None) -> Example:
        """Splits `tokens`; of an odd number, the target gets the larger half.

        Args:
            tokens: 1-D int32, at least 2.
            seed: unused, equal halves leave nothing to chance.

        Raises:
            ValueError: if there are fewer than 2 tokens.
        """
        tokens = np.asarray(tokens, "int32")
        if tokens.ndim != 1 or len(tokens) < 2:
            raise ValueError(
                f"Expected a 1-D array of at least 2 tokens. Received: shape {tokens.shape}."
            )
        middle = len(tokens) // 2
        return Example(tokens[:middle], tokens[middle:])


def windows(tokens: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive windows of `size` tokens; a last one of fewer than 2 is dropped."""
    for start in range(0, len(tokens) - 1, size):
        yield tokens[start : start + size]
