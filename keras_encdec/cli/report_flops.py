"""`keras-encdec report flops`: what a forward pass and a token take, pairs beside their sources."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from keras_encdec.evaluation.correlation import Scored
from keras_encdec.evaluation.flops import (
    Flops,
    Spec,
    flops_by_side,
    forward_flops,
    token_flops,
)
from keras_encdec.evaluation.paper import paper_table
from keras_encdec.evaluation.picture import COLOURS
from keras_encdec.evaluation.reports import Report
from keras_encdec.progress import track
from keras_encdec.sharing import catalog
from keras_encdec.sharing.load import spec_of
from keras_encdec.spec import EncoderSpec

# Figure 3 has these sizes, all but ML, which is of the release alone.
DEFAULT = (
    *(f"t5gemma_{size}_{size}" for size in ("s", "b", "l", "ml", "xl")),
    *("gemma2_2b_2b", "gemma2_9b_2b", "gemma2_9b_9b"),
)
_UNITS = (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")
_LABELLED = "UL2"  # the curve whose points say their sizes
_PARTS = tuple(field.name for field in dataclasses.fields(Flops))
_NOTES = (
    "A multiply-add counts as two. Sources read input and target as one text. Left out: embedding",
    "look-up, norms, softmax, activations and soft caps. dense: attention to every key; masked: to",
    "those that a query sees. A generated token sees the input; keys and values are kept.",
)


@dataclasses.dataclass(frozen=True)
class _Row:
    """A model's counts.

    Args:
        name: of a recipe or of a decoder-only model.
        sides: `Flops` of a forward pass by side.
        token: of a generated token.
        sources: names of the decoder-only models that a pair is made of, the encoder's first.
        xla: the compiler's count, if it was asked for.
        dense: our sum of all that it is held against, whatever is shown.
    """

    name: str
    sides: dict[str, Flops]
    token: Flops
    sources: tuple[str, ...] = ()
    xla: int | None = None
    dense: int = 0

    @property
    def forward(self) -> Flops:
        return sum(self.sides.values(), Flops())

    @property
    def work(self) -> int:
        """Without logits, of which all write as many."""
        return self.forward.linear + self.forward.attention


def make(args: argparse.Namespace) -> Report:
    """The report of `keras-encdec report flops`.

    Args:
        args: `models`, `source_length`, `target_length`, `counting` and `xla`.

    Raises:
        ValueError: if there is no such model, length or counting.
    """
    lengths = args.source_length, args.target_length
    specs, sources = _specs(args.models or DEFAULT)
    rows = {
        name: _Row(
            name,
            flops_by_side(spec, *lengths, args.counting),
            token_flops(spec, args.source_length, counting=args.counting),
            sources.get(name, ()),
        )
        for name, spec in specs.items()
    }
    if args.xla:
        rows = _with_xla(rows, specs, lengths)
    title = f"{lengths[0]:,} tokens of input, {lengths[1]:,} of target, {args.counting}"
    scored = paper_table()
    return Report(
        data={
            "source_length": lengths[0],
            "target_length": lengths[1],
            "counting": args.counting,
            "models": [_to_json(row, rows) for row in rows.values()],
        },
        tables=(_forward_table(rows, title), _token_table(rows, args.source_length)),
        draw=lambda figure: _draw(figure, rows, scored, title),
        size=(13, 0.26 * len(rows) + 2) if _known(rows, scored) else (8, 0.26 * len(rows) + 2),
        notes=_NOTES,
    )


def _specs(names: Sequence[str]) -> tuple[dict[str, Spec], dict[str, tuple[str, ...]]]:
    """Of models by name, each pair after the decoder-only models that it is made of."""
    specs: dict[str, Spec] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name not in catalog.presets:
            spec = spec_of(name)
            if isinstance(spec, EncoderSpec):
                raise ValueError(f"Expected a model that writes. Received: {name!r}, an encoder.")
            specs[name] = spec
            continue
        recipe = catalog.presets[name]
        sources[name] = tuple(dict.fromkeys((recipe.encoder_spec, recipe.decoder_spec)))
        for source in sources[name]:
            specs[source] = catalog.known_spec(source)
        specs[name] = recipe.spec
    return specs, sources


def _with_xla(
    rows: dict[str, _Row], specs: dict[str, Spec], lengths: tuple[int, int]
) -> dict[str, _Row]:
    from keras_encdec.evaluation.compiled import compiled_flops

    found = {}
    for name, row in track(list(rows.items()), "Compiling"):
        xla, dense = compiled_flops(specs[name], *lengths), forward_flops(specs[name], *lengths)
        found[name] = dataclasses.replace(row, xla=xla, dense=dense.total)
    return found


def _ratios(row: _Row, rows: dict[str, _Row]) -> dict[str, float]:
    """Of a pair's linear and attention work to that of each of its sources."""
    return {source: row.work / rows[source].work for source in row.sources}


def _to_json(row: _Row, rows: dict[str, _Row]) -> dict[str, Any]:
    found: dict[str, Any] = {"model": row.name}
    found["forward"] = {side: dataclasses.asdict(flops) for side, flops in row.sides.items()}
    found["token"] = dataclasses.asdict(row.token)
    found["ratios"] = _ratios(row, rows)
    if row.xla is not None:
        found |= {"xla": row.xla, "dense": row.dense}
    return found


def _unit(rows: dict[str, _Row], of: Callable[[_Row], int]) -> tuple[float, str]:
    """The largest unit that the largest number has at least one of."""
    largest = max(map(of, rows.values()))
    return next((u for u in _UNITS if u[0] <= largest), _UNITS[-1])


def _forward_table(rows: dict[str, _Row], title: str) -> Table:
    unit, name = _unit(rows, lambda row: row.forward.total)
    table = Table(f"{name}, a forward pass", box=None, title=title, title_justify="left")
    columns = (*_PARTS, "linear + attention", "to its source")
    xla = any(row.xla is not None for row in rows.values())
    for column in (*columns, *(("XLA", "to dense") if xla else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows.values():
        parts = [getattr(row.forward, part) for part in _PARTS]
        cells = [f"{part / unit:,.3f}" for part in (*parts, row.work)]
        cells.append(", ".join(f"{ratio:.3f}" for ratio in _ratios(row, rows).values()))
        if row.xla is not None:
            cells += [f"{row.xla / unit:,.3f}", f"{row.xla / row.dense:.3f}"]
        table.add_row(row.name, *cells)
    return table


def _token_table(rows: dict[str, _Row], source_length: int) -> Table:
    unit, name = _unit(rows, lambda row: row.token.total)
    table = Table(f"{name}, a token after {source_length:,}", box=None)
    for column in (*_PARTS, "total"):
        table.add_column(column, justify="right")
    for row in rows.values():
        numbers = [getattr(row.token, part) for part in (*_PARTS, "total")]
        table.add_row(row.name, *(f"{number / unit:,.3f}" for number in numbers))
    return table


def _draw(figure: Any, rows: dict[str, _Row], scored: Sequence[Scored], title: str) -> None:
    figure.suptitle(title)
    known = _known(rows, scored)
    if not known:
        _bars(figure.subplots(), rows)
        return
    bars, *plots = figure.subplots(1, 4, width_ratios=(1.6, 1, 1, 1))
    _bars(bars, rows)
    for axes, score in zip(plots, ("PT", "IT", "SuperGLUE"), strict=True):
        for (kind, models), colour in zip(known.items(), COLOURS, strict=False):
            points = sorted((rows[m.row].work / 1e12, m.scores[score], m.label) for m in models)
            x, y, labels = zip(*points, strict=True)
            axes.plot(x, y, marker="o", ms=4, label=kind, color=colour)
            for place in zip(x, y, labels, strict=True) if kind == _LABELLED else ():
                axes.annotate(place[2], place[:2], (5, -9), textcoords="offset points", fontsize=7)
        axes.margins(x=0.25)
        axes.set(xscale="log", xlabel="TFLOP, linear + attention", title=f"{score} (the paper's)")
    plots[0].legend()


def _bars(axes: Any, rows: dict[str, _Row]) -> None:
    """Linear, attention and logits of each model, one behind the other."""
    unit, unit_name = _unit(rows, lambda row: row.forward.total)
    names = list(rows)[::-1]
    left = np.zeros(len(names))
    for part, colour in zip(_PARTS, COLOURS, strict=False):
        width = np.array([getattr(rows[name].forward, part) for name in names]) / unit
        axes.barh(names, width, left=left, label=part, color=colour)
        left += width
    for place, name in enumerate(names):
        ratios = " and ".join(f"{ratio:.2f}x" for ratio in _ratios(rows[name], rows).values())
        axes.text(left[place], place, f" {ratios}", va="center", fontsize=8)
    axes.margins(x=0.2)
    axes.set_xlabel(f"{unit_name}; times: linear + attention to the sources'")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


@dataclasses.dataclass(frozen=True)
class _Known:
    """A row that the paper has scores of, and what it is called there."""

    row: str
    label: str
    scores: Mapping[str, float]


def _known(rows: dict[str, _Row], scored: Sequence[Scored]) -> dict[str, list[_Known]]:
    """The rows that the paper's tables have, by kind; none of a kind of one point."""
    scores = {model.model: model.scores for model in scored}
    found: dict[str, list[_Known]] = {"decoder-only": [], "PrefixLM": [], "UL2": []}
    for name in rows:
        label = name.partition("_")[2].upper().replace("_", "-")
        for kind, models in found.items():
            model = label if kind == "decoder-only" else f"{label} {kind}"
            if model in scores:
                models.append(_Known(name, label, scores[model]))
    return {kind: models for kind, models in found.items() if len(models) > 1}
