"""`keras-encdec report correlation`: whether scores that rank models agree."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from keras_encdec.evaluation.correlation import Correlation, Scored, correlate, read_table
from keras_encdec.evaluation.paper import CLAIMED, paper_table
from keras_encdec.evaluation.picture import COLOURS
from keras_encdec.evaluation.reports import Report

_ACROSS = 3  # plots beside each other
_NOTES = (
    "Spearman's coefficient, with intervals of 95%: over all, by resampling models; of the mean",
    "within sizes, by resampling sizes. p: how often a mean so far from 0 comes about where the",
    "order within each size is drawn by chance.",
)


def make(args: argparse.Namespace) -> Report:
    """The report of `keras-encdec report correlation`.

    Args:
        args: `table`, a file or None for the paper's; and `scores`, two or more names, of which
            the first is held against each other one; or None for all.

    Raises:
        ValueError: if the table is none, or has no such score.
        FileNotFoundError: if there is no such file.
    """
    models = paper_table() if args.table is None else read_table(args.table)
    names = args.scores or list(dict.fromkeys(n for m in models for n in m.scores))
    if len(set(names)) < 2:
        raise ValueError(f"Expected at least two scores to hold together. Received: {names}.")
    found = [correlate(models, names[0], other) for other in names[1:]]
    claimed = CLAIMED if args.table is None else {}
    data: dict[str, Any] = {"table": args.table or "presets/paper_scores.json"}
    data["correlations"] = [dataclasses.asdict(each) for each in found]
    data["claimed"] = [{"names": n, "overall": c[0], "within": c[1]} for n, c in claimed.items()]
    return Report(
        data=data,
        tables=(_table(found, claimed), _by_size(found)),
        draw=lambda figure: _draw(figure, models, found),
        size=(4 * min(len(found), _ACROSS), 3.6 * -(-len(found) // _ACROSS)),
        notes=_NOTES,
    )


def _table(found: Sequence[Correlation], claimed: dict) -> Table:
    table = Table(box=None)
    table.add_column("scores", no_wrap=True)
    columns = ("models", "over all", "95%", "within sizes", "95%", "p")
    for column in (*columns, *(("the paper's",) if claimed else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        cells = [str(each.models), _number(each.overall), _interval(each.overall_interval)]
        cells += [_number(each.within_mean), _interval(each.within_interval)]
        cells.append("-" if each.within_p is None else f"{each.within_p:.3f}")
        if claimed:
            said = claimed.get(each.names)
            cells.append(f"{said[0]:+.2f} {said[1]:+.2f}" if said else "")
        table.add_row(" and ".join(each.names), *cells)
    return table


def _by_size(found: Sequence[Correlation]) -> Table:
    """The coefficient of each size, a column for each pair of scores."""
    table = Table("within", box=None)
    for each in found:
        table.add_column(" and ".join(each.names), justify="right")
    for size in dict.fromkeys(s for each in found for s in (*each.within, *each.left_out)):
        table.add_row(size, *(_number(each.within.get(size)) for each in found))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _interval(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"{value[0]:+.2f} {value[1]:+.2f}"


def _draw(figure: Any, models: Sequence[Scored], found: Sequence[Correlation]) -> None:
    rows = -(-len(found) // _ACROSS)
    plots = figure.subplots(rows, min(len(found), _ACROSS), squeeze=False).reshape(-1)
    sizes = list(dict.fromkeys(model.size for model in models))
    for axes in plots[len(found) :]:
        axes.remove()
    for axes, each in zip(plots, found, strict=False):
        first, second = each.names
        for number, size in enumerate(sizes):
            points = [
                (m.scores[first], m.scores[second])
                for m in models
                if m.size == size and first in m.scores and second in m.scores
            ]
            if points:
                colour = COLOURS[number % len(COLOURS)]
                axes.scatter(*zip(*points, strict=True), label=size, color=colour, s=24)
        title = f"over all {_number(each.overall)}, within sizes {_number(each.within_mean)}"
        axes.set(xlabel=first, ylabel=second)
        axes.set_title(title, fontsize=10)
    plots[0].legend(title="size", fontsize=8)
