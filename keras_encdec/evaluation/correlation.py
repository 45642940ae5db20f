"""Whether scores that rank models agree: figure 6 of arXiv 2504.06225.

Spearman's coefficient over all models says whether bigger models are better at both; within one
size it says whether the better of two objectives is better at both, which a single table of
three models a size can hardly tell: the intervals say so. Only ranks are used. NumPy only.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.files import read_json

LEAST = 3  # models of a size: of two, a coefficient can but be 1 or -1
_LEAST_DRAWN = 6  # models or sizes: of fewer, draws with replacement have too few values
_RESAMPLES, _LEVEL = 10_000, 0.95
_AT_ONCE = 2**24  # comparisons of two models


@dataclasses.dataclass(frozen=True)
class Scored:
    """A model in a table.

    Args:
        model: its name.
        size: what it is compared within, such as `"2B-2B"`.
        scores: by name; higher is better.
    """

    model: str
    size: str
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Correlation:
    """How two scores agree; None where there are too few models.

    Args:
        names: of the two scores.
        models: how many have both.
        overall: Spearman's coefficient over all of them.
        overall_interval: of 95%, by resampling models; None below 6 of them.
        within: coefficients by size, of those of at least 3 models which differ in both scores.
        within_mean: their mean.
        within_interval: of 95%, by resampling sizes; None below 6 of them.
        within_p: two-sided: how often the mean is at least so far from 0 when the second
            score's order within each size is drawn anew.
        left_out: sizes without a coefficient.
    """

    names: tuple[str, str]
    models: int
    overall: float | None
    overall_interval: tuple[float, float] | None
    within: Mapping[str, float]
    within_mean: float | None
    within_interval: tuple[float, float] | None
    within_p: float | None
    left_out: tuple[str, ...]


def spearman(x: Any, y: Any) -> Any:
    """Spearman's rank correlation: Pearson's, of ranks, where equal values share their mean rank.

    Args:
        x: (..., n) numbers.
        y: (..., n) numbers.

    Returns:
        (...) from -1 to 1; NaN where all of `x` or all of `y` are equal, or n is below 2.
    """
    x, y = _centred(x), _centred(y)
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return np.where(scale > 0, (x * y).sum(axis=-1) / np.where(scale > 0, scale, 1), np.nan)[()]


def _centred(values: Any) -> np.ndarray:
    """Ranks of (..., n) numbers, less the mean rank; equal ones share the mean of theirs."""
    values = np.asarray(values, "float64")
    below = (values[..., None, :] < values[..., :, None]).sum(axis=-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(axis=-1)
    return below + (equal - values.shape[-1]) / 2


def correlate(models: Sequence[Scored], first: str, second: str, seed: int = 0) -> Correlation:
    """Correlates two scores over all models and within sizes.

    Args:
        models: those that lack one of the scores are passed over.
        first: name of a score.
        second: name of another.
        seed: of the resampling.

    Returns:
        `Correlation`.

    Raises:
        ValueError: if no model has a score of that name.

    Example:
        >>> correlate(read_table("scores.json"), "PT", "IT").overall
    """
    known = sorted({name for model in models for name in model.scores})
    for name in (first, second):
        check.one_of("a score", name, known)
    both = [m for m in models if first in m.scores and second in m.scores]
    table = np.array([[m.scores[first], m.scores[second]] for m in both]).reshape(-1, 2)
    sizes = list(dict.fromkeys(m.size for m in both))
    groups = {s: table[[m.size == s for m in both]] for s in sizes}
    within = {s: float(spearman(*rows.T)) for s, rows in groups.items() if len(rows) >= LEAST}
    within = {s: value for s, value in within.items() if not math.isnan(value)}
    rng = np.random.default_rng(seed)
    found = list(within.values())
    return Correlation(
        names=(first, second),
        models=len(both),
        overall=_number(spearman(*table.T)) if len(both) >= LEAST else None,
        overall_interval=_resampled(rng, table, _over_models),
        within=within,
        within_mean=float(np.mean(found)) if found else None,
        within_interval=_resampled(rng, np.array(found), lambda each: each.mean(axis=1)),
        within_p=_by_chance(rng, [groups[s] for s in within], found),
        left_out=tuple(s for s in sizes if s not in within),
    )


def _over_models(rows: np.ndarray) -> np.ndarray:
    return spearman(rows[..., 0], rows[..., 1])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _resampled(
    rng: np.random.Generator, items: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float] | None:
    """The percentile interval of a statistic, by drawing items with replacement.

    Args:
        rng: of the draws.
        items: (n, ...) models or sizes.
        statistic: (draws, n, ...) items to (draws,) numbers.
    """
    if len(items) < _LEAST_DRAWN:
        return None
    draws = rng.integers(len(items), size=(_RESAMPLES, len(items)))
    parts = np.array_split(draws, 1 + draws.size * len(items) // _AT_ONCE)
    values = np.concatenate([statistic(items[part]) for part in parts])
    tail = (1 - _LEVEL) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _by_chance(
    rng: np.random.Generator, groups: Sequence[np.ndarray], found: Sequence[float]
) -> float | None:
    """How often a mean so far from 0 comes about where orders within groups are drawn."""
    if not groups:
        return None
    drawn = np.zeros(_RESAMPLES)
    for rows in groups:
        orders = rng.permuted(np.tile(rows[:, 1], (_RESAMPLES, 1)), axis=1)
        drawn += spearman(rows[:, 0], orders)
    far = np.abs(drawn / len(groups)) >= abs(np.mean(found)) - 1e-9
    return float((far.sum() + 1) / (_RESAMPLES + 1))


def read_table(path: str | os.PathLike) -> list[Scored]:
    """Models and scores out of a JSON file.

    Args:
        path: of `{"models": [{"model": "a", "size": "2B", "scores": {"PT": 47.9}}, ...]}`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else; the message names the entry.
    """
    entries = read_json(path).get("models")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'Expected a list of "models" in {path}. Received: {entries!r}.')
    models = [_scored(entry, f"models[{i}] of {path}") for i, entry in enumerate(entries)]
    names = [model.model for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Expected each model once in {path}. Received: {name!r} again.")
    return models


def _scored(entry: Any, place: str) -> Scored:
    if not isinstance(entry, dict) or set(entry) != {"model", "size", "scores"}:
        received = sorted(entry) if isinstance(entry, dict) else entry
        raise ValueError(f"Expected model, size and scores in {place}. Received: {received!r}.")
    scores = entry["scores"]
    if not isinstance(scores, dict) or not scores:
        raise ValueError(f"Expected scores by name in {place}. Received: {scores!r}.")
    numbers = {name: check.real(f"{name} of {place}", value) for name, value in scores.items()}
    size = entry["size"] if isinstance(entry["size"], str) else str(entry["size"])
    return Scored(check.text(place, entry["model"]), size, numbers)
