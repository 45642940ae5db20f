"""`keras-encdec report curves`: quality over tokens, from what runs have kept."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from keras_encdec import check
from keras_encdec.evaluation.curves import Curve, curve_of, to_json
from keras_encdec.evaluation.picture import COLOURS
from keras_encdec.evaluation.reports import Report

_LOG_FROM = 20  # tokens of the last point to the first, from which the axis is logarithmic


def make(args: argparse.Namespace) -> Report:
    """The report of `keras-encdec report curves`.

    Args:
        args: `runs`, files and folders; `metric` or None; `levels`, texts such as
            `"source=2.93"` for lines to hold runs against.

    Raises:
        ValueError: if a run has no such metric, runs have different ones, or a level is none.
        FileNotFoundError: if there is no such run.
    """
    levels = dict(_level(text) for text in args.levels)
    curves = _named([curve_of(run, args.metric) for run in args.runs], args.runs)
    metrics = {curve.metric for curve in curves}
    if len(metrics) > 1:
        said = ", ".join(f"{curve.metric} of {curve.name}" for curve in curves)
        raise ValueError(f"Expected one metric of all runs. Received: {said}. Give --metric.")
    metric = metrics.pop()
    return Report(
        data={"metric": metric, "levels": levels, "curves": to_json(curves)},
        tables=(_table(curves, metric, levels),),
        draw=lambda figure: _draw(figure, curves, metric, levels),
        size=(8, 4.5),
    )


def _named(curves: Sequence[Curve], runs: Sequence[str]) -> list[Curve]:
    """Under their last names, or under whole ones where those are alike."""
    names = [curve.name for curve in curves]
    if len(set(names)) == len(names):
        return list(curves)
    return [Curve(run, c.metric, c.tokens, c.values) for run, c in zip(runs, curves, strict=True)]


def _level(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (name and equals):
        raise ValueError(f"Expected --level such as source=2.93. Received: {text!r}.")
    return name, check.real(f"the level {name!r}", number)


def _table(curves: Sequence[Curve], metric: str, levels: dict[str, float]) -> Table:
    table = Table(metric, box=None)
    for column in ("points", "tokens", "first", "last", "lowest", "highest"):
        table.add_column(column, justify="right")
    for curve in curves:
        values = curve.values
        numbers = values[0], values[-1], min(values), max(values)
        cells = [str(len(values)), f"{curve.tokens[-1]:,}"]
        table.add_row(curve.name, *cells, *(f"{number:.4f}" for number in numbers))
    for name, value in levels.items():
        table.add_row(name, "", "", "", f"{value:.4f}", "", "")
    return table


def _draw(figure: Any, curves: Sequence[Curve], metric: str, levels: dict[str, float]) -> None:
    axes = figure.subplots()
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(curve.tokens, curve.values, marker="o", ms=3, label=curve.name, color=colour)
    styles = "--", ":", "-."
    for number, (name, value) in enumerate(levels.items()):
        style = styles[number % len(styles)]
        axes.axhline(value, linestyle=style, color="black", linewidth=1, label=name)
    positive = [t for curve in curves for t in curve.tokens if t > 0]
    if positive and max(positive) > _LOG_FROM * min(positive):
        axes.set_xscale("symlog", linthresh=min(positive))
    axes.set(xlabel="tokens read and written in training", ylabel=metric)
    axes.legend()
