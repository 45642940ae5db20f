"""Several objectives at once, and several after one another.

Knows how one is drawn by its rate, and when a stage ends.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from keras_encdec import check
from keras_encdec.objectives.draws import fold, uniform
from keras_encdec.objectives.objective import Example, Objective


@dataclasses.dataclass(frozen=True)
class Mixture(Objective):
    """Draws one of several objectives by the seed.

    Args:
        objectives: `Objective`s; mixtures may hold mixtures.
        rates: how often each is drawn, in any unit; None for equally often.

    Raises:
        ValueError: if there are no objectives, a rate is missing or negative, or all
            are zero.

    Example:
        >>> Mixture([PrefixLM(), UL2()], [0.7, 0.3])
    """

    objectives: Sequence[Objective]
    rates: Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", several(self.objectives))
        given = () if self.rates is None else tuple(self.rates)
        rates = given or (1.0,) * len(self.objectives)
        object.__setattr__(self, "rates", checked_rates(self.objectives, rates))

    def __call__(self, tokens: np.ndarray, seed: int = 0) -> Example:
        objective, seed = self.draw(seed)
        return objective(tokens, seed)

    def draw(self, seed: int) -> tuple[Objective, int]:
        """The objective that `seed` draws, and the seed it is then called with."""
        return self.objectives[int(self._indices(uniform(seed)))], fold(seed, 0)

    @property
    def added_ids(self) -> tuple[int, ...]:
        """Those of all objectives."""
        return _added_ids(self.objectives)

    def raw_lengths(self, inputs_length: int, targets_length: int, seeds: np.ndarray) -> np.ndarray:
        lengths = np.empty(len(seeds), "int64")
        indices = self._indices(uniform(seeds))
        for i, objective in enumerate(self.objectives):
            drawn = indices == i
            child_seeds = fold(seeds[drawn], 0)
            lengths[drawn] = objective.raw_lengths(inputs_length, targets_length, child_seeds)
        return lengths

    def bind(self, tokenizer: Any) -> Self:
        bound = tuple(objective.bind(tokenizer) for objective in self.objectives)
        return dataclasses.replace(self, objectives=bound)

    @functools.cached_property
    def _edges(self) -> np.ndarray:
        return np.cumsum(self.rates or ())[:-1] / np.sum(self.rates or ())

    def _indices(self, fractions: Any) -> np.ndarray:
        return np.searchsorted(self._edges, fractions, side="right")


@dataclasses.dataclass(frozen=True)
class Stages:
    """One objective after another, switching at fractions of the steps.

    Which stage an example belongs to depends on the step, not on the seed, so stages
    are not called: `lm.fit(texts)` and `keras_encdec.data.batches` go through them.

    Args:
        objectives: `Objective`s, in order.
        rates: each one's share of the steps, in any unit.

    Raises:
        ValueError: as `Mixture`.

    Example:
        >>> Stages([UL2(), PrefixLM()], [0.9, 0.1])  # arXiv 2504.06225, figure 5
    """

    objectives: Sequence[Objective]
    rates: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", several(self.objectives))
        object.__setattr__(self, "rates", checked_rates(self.objectives, self.rates))

    @property
    def added_ids(self) -> tuple[int, ...]:
        """Those of all objectives."""
        return _added_ids(self.objectives)

    def steps(self, total: int) -> list[int]:
        """The steps of each stage; together `total`."""
        ends = np.rint(np.cumsum(self.rates) / np.sum(self.rates) * total).astype(int)
        return np.diff(ends, prepend=0).tolist()

    def bind(self, tokenizer: Any) -> Self:
        bound = tuple(objective.bind(tokenizer) for objective in self.objectives)
        return dataclasses.replace(self, objectives=bound)


def _added_ids(objectives: Sequence[Objective]) -> tuple[int, ...]:
    return tuple(i for objective in objectives for i in objective.added_ids)


def several(objectives: Any) -> tuple[Objective, ...]:
    """Objectives as a tuple; refuses one that stands alone."""
    if isinstance(objectives, (str, Objective)) or not isinstance(objectives, Iterable):
        raise ValueError(f"Expected a list of objectives. Received: {objectives!r}.")
    return tuple(objectives)


def checked_rates(objectives: Sequence[Objective], rates: Sequence[float]) -> tuple[float, ...]:
    """The rates as floats; refuses what is no objective, and rates that leave nothing to draw."""
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise ValueError(f"Expected objectives. Received: {objective!r} among them.")
    rates = [check.real("rates", rate, least=0) for rate in rates]
    if len(rates) != len(objectives) or sum(rates) <= 0:
        raise ValueError(
            f"Expected a rate from 0 up for each of {len(objectives)} objectives, not all zero. "
            f"Received: {list(rates)}."
        )
    return tuple(float(rate) for rate in rates)
