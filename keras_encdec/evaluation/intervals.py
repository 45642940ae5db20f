"""What a difference between two models says, and where it says nothing.

Knows intervals of a mean over seeds and over a development set. NumPy and SciPy's distributions.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Part:
    """A variance of a difference that was estimated.

    Args:
        variance: of the mean.
        freedom: degrees of freedom of the estimate.
    """

    variance: float
    freedom: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much higher a second model stands than a first.

    Args:
        mean: of the second, less that of the first.
        low: end of the interval; -inf where nothing is known of the spread.
        high: likewise.
    """

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether the runs agree that the second is better: "agrees", "disagrees", "undecided"."""
        if self.low > 0:
            return "agrees"
        return "disagrees" if self.high < 0 else "undecided"

    def text(self, digits: int, factor: float = 1.0) -> str:
        """`"+1.8 (-0.5 to 4.1): undecided"`, with so many digits, times a factor."""
        if math.isinf(self.low):
            return f"{factor * self.mean:+.{digits}f} (one seed): {self.verdict}"
        mean, *ends = (f"{factor * x:+.{digits}f}" for x in (self.mean, self.low, self.high))
        return f"{mean} ({' to '.join(ends)}): {self.verdict}"

    def to_json(self) -> dict[str, Any]:
        """JSON types; infinite ends are null."""
        ends = {"low": self.low, "high": self.high}
        finite = {name: None if math.isinf(x) else x for name, x in ends.items()}
        return {"difference": self.mean, **finite, "verdict": self.verdict}


def over_seeds(scores: Sequence[float]) -> Part | None:
    """The variance of the mean of independent runs; None for a single one."""
    if len(scores) < 2:
        return None
    return Part(float(np.var(scores, ddof=1)) / len(scores), len(scores) - 1)


def difference(mean: float, parts: Sequence[Part | None]) -> Difference:
    """The interval of a difference whose variance is the sum of some, at 95%.

    By Student's t with Welch's and Satterthwaite's degrees of freedom.

    Args:
        mean: of the difference.
        parts: of its variance; None where one is not known.
    """
    from scipy import stats

    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return Difference(mean, -math.inf, math.inf)
    variance = sum(part.variance for part in known)
    squares = sum(part.variance**2 / part.freedom for part in known)
    if not squares:
        return Difference(mean, mean, mean)
    width = float(stats.t.ppf((1 + LEVEL) / 2, variance**2 / squares)) * math.sqrt(variance)
    return Difference(mean, mean - width, mean + width)


def scaled(parts: Sequence[Part | None], factor: float) -> list[Part | None]:
    """Parts of a difference that is multiplied by a factor, as in a mean over tasks."""
    return [p and Part(p.variance * factor**2, p.freedom) for p in parts]
