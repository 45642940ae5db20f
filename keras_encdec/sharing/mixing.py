"""How tensors of several models become one: a mean, an arc between two, or a vote on each number.

Knows the formulas. A tensor is read in stretches of its first axis, each in float64: what a formula
needs to know of whole tensors, angles and thresholds, it finds in a pass of its own. Leaves files
to `keras_encdec.sharing.merge`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from keras_encdec.spec import Shape

METHODS = "average", "slerp", "ties", "sum"
OF_BASE = "ties", "sum"  # which have no meaning without it
DENSITY = 0.2  # arXiv 2306.01708, section 4.1: the top 20%
_STRETCH = 2**20  # numbers
_PARALLEL = 1e-6  # a sine below which an arc is a line


class Stored(Protocol):
    """A tensor on disk, of one axis or more and one number or more."""

    shape: Shape

    def read(self, rows: slice) -> np.ndarray:
        """Some of its first axis, in float64."""
        ...


@dataclasses.dataclass(frozen=True)
class Mixing:
    """What is made of models x_i and their initial weights b.

    - `"average"`: sum w_i x_i (model soups, arXiv 2203.05482).
    - `"slerp"`: b + sin((1-t) a) / sin(a) (x_1 - b) + sin(t a) / sin(a) (x_2 - b), where a is the
      angle between the two differences and t = w_2 (arXiv 2406.16768, equation 3); without b, of
      the weights themselves. Where a is 0, or pi, or has no meaning: the average.
    - `"ties"`: of each x_i - b the largest share stays; each number takes the sign that weighs
      more, and what has it is averaged by w_i and added to b (arXiv 2306.01708, section 3).

    - `"sum"`: b + sum w_i (x_i - b), what all have learned (arXiv 2212.04089, section 2).

    The result then stands at `strength` of the way from b: b + s (m - b).

    Args:
        method: one of `METHODS`.
        weights: w_i, which sum to 1, but for `"sum"`.
        strength: s, from 0 to 1; 1 without b.
        density: the share that stays, for `"ties"`.
    """

    method: str
    weights: tuple[float, ...]
    strength: float = 1.0
    density: float = DENSITY

    def mix(
        self, models: Sequence[Stored], base: Stored | None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Stretches of the result, in float64.

        Bit for bit, in dtypes up to float32: b at strength 0, a model that alone has a weight, what
        all models share.

        Args:
            models: their tensors of one name.
            base: that of b, or None.
        """
        if self.method == "ties":
            assert base is not None
            yield from self._voted(models, base)
            return
        of_base, of_models = self._factors(models, base)
        of_base = of_base * self.strength + (1 - self.strength)
        parts = [(self.strength * f, model) for f, model in zip(of_models, models, strict=True)]
        if base is not None:
            parts.insert(0, (of_base, base))
        present = [part for part in parts if part[0]]  # as -0 + 0 is another number than -0
        for rows in stretches(models[0].shape):
            yield rows, functools.reduce(np.add, (f * t.read(rows) for f, t in present))

    def _factors(
        self, models: Sequence[Stored], base: Stored | None
    ) -> tuple[float, tuple[float, ...]]:
        """Those of b and of the models, before strength."""
        if self.method == "sum":
            return 1 - sum(self.weights), self.weights
        if self.method == "average" or not all(self.weights):
            return 0.0, self.weights
        angle = _angle(models, base)
        if math.sin(angle) < _PARALLEL:
            return 0.0, self.weights
        one, other = (math.sin(w * angle) / math.sin(angle) for w in self.weights)
        return 1 - one - other, (one, other)

    def _voted(self, models: Sequence[Stored], base: Stored) -> Iterator[tuple[slice, np.ndarray]]:
        least = [_threshold(model, base, self.density) for model in models]
        for rows in stretches(base.shape):
            initial = base.read(rows)
            votes = [model.read(rows) - initial for model in models]
            for vote, threshold in zip(votes, least, strict=True):
                vote[_magnitude(vote) < threshold] = 0
            sign = np.sign(sum(w * v for w, v in zip(self.weights, votes, strict=True)))
            agree = [w * (np.sign(v) == sign) for w, v in zip(self.weights, votes, strict=True)]
            total = sum(a * v for a, v in zip(agree, votes, strict=True))
            change = self.strength * total / np.maximum(sum(agree), np.finfo("float64").tiny)
            yield rows, np.where(change == 0, initial, initial + change)


def stretches(shape: Shape) -> Iterator[slice]:
    """Slices of the first axis that hold about a million numbers each."""
    rows = max(1, _STRETCH // max(1, math.prod(shape[1:])))
    for begin in range(0, shape[0], rows):
        yield slice(begin, min(begin + rows, shape[0]))


def _angle(models: Sequence[Stored], base: Stored | None) -> float:
    """Between two tensors, seen from b or from 0; 0 where one of them stands there."""
    dot = one = other = 0.0
    for rows in stretches(models[0].shape):
        u, v = (model.read(rows).ravel() for model in models)
        if base is not None:
            initial = base.read(rows).ravel()
            u, v = u - initial, v - initial
        dot, one, other = dot + u @ v, one + u @ u, other + v @ v
    length = math.sqrt(one) * math.sqrt(other)
    return math.acos(min(1.0, max(-1.0, dot / length))) if length else 0.0


def _threshold(model: Stored, base: Stored, density: float) -> float:
    """The smallest magnitude of a change among the largest; equal ones all stay."""
    every = np.empty(base.shape, "float32")
    for rows in stretches(base.shape):
        every[rows] = _magnitude(model.read(rows) - base.read(rows))
    every = every.reshape(-1)
    place = every.size - max(1, round(density * every.size))
    every.partition(place)
    return float(every[place])


def _magnitude(change: np.ndarray) -> np.ndarray:
    """In float32, as all of them lie in memory to be compared."""
    return np.abs(change).astype("float32")
