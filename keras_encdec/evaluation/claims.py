"""The paper's claims, tried again in small by one command.

Knows which arms a choice of claims needs, and what the report says. Leaves training to
`keras_encdec.evaluation.claims_runs`, claims to `keras_encdec.evaluation.claims_verdicts`.
"""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from keras_encdec import check, disk
from keras_encdec.evaluation import picture
from keras_encdec.evaluation.claims_arms import ARMS, SCALES, Scale
from keras_encdec.evaluation.claims_runs import Bench
from keras_encdec.evaluation.claims_verdicts import (
    CLAIMS,
    COSTS,
    MEASURES,
    Claim,
    Ratio,
    Scores,
    verdict,
)
from keras_encdec.evaluation.correlation import Correlation, Scored, correlate
from keras_encdec.evaluation.intervals import Difference
from keras_encdec.files import atomic_file
from keras_encdec.progress import say

_CORRELATED = ("loss", "tuned"), ("loss", "encoder")  # figure 6
_END = "at an end of those tried (`<`, `>`), a rate beyond it might be better still"
_RATES = {
    "rate": f"learning rate of adaptation; {_END}",
    "tune rate": f"of fine-tuning; {_END}",
}


@dataclasses.dataclass(frozen=True)
class Claims:
    """What was found; prints as tables.

    Args:
        scale: what it was found with.
        seeds: of each arm.
        scores: by arm and measure, one for each seed.
        rates: by arm, the learning rates of adaptation and of fine-tuning, best of the scale's.
        differences: by claim, one for each comparison.
        correlations: of measures over arms, more being better for each (claim C14).
        costs: by model, of one pass and of each query; empty without claim C15.
    """

    scale: Scale
    seeds: tuple[int, ...]
    scores: Scores
    rates: dict[str, tuple[float, float]]
    differences: dict[str, list[Difference | Ratio]]
    correlations: list[Correlation]
    costs: Scores

    @property
    def verdicts(self) -> dict[str, str]:
        """`"agrees"`, `"disagrees"` or `"undecided"` by claim."""
        return {name: verdict(found) for name, found in self.differences.items()}

    def tables(self) -> list[Table]:
        """Claims, arms, and costs where there are any."""
        claims = Table("claim", "comparison", "by (95% interval)", "verdict", show_lines=True)
        for name, found in self.differences.items():
            lines = zip(CLAIMS[name].comparisons, found, strict=True)
            texts = [(str(one), by.text(4)) for one, by in lines]
            columns = ("\n".join(column) for column in zip(*texts, strict=True))
            claims.add_row(f"{name} {CLAIMS[name].text}", *columns, self.verdicts[name])
        arms = Table(Column("arm", no_wrap=True), *MEASURES, *_RATES)
        for arm in self.scores:
            arms.add_row(*self._row(arm))
        costs = Table("model", "MFLOP", "ms, median")
        for name, one in self.costs.items():
            costs.add_row(*_cost(name, one))
        return [claims, *([arms] if self.scores else []), *([costs] if self.costs else [])]

    def _row(self, arm: str) -> list[str]:
        """Of an arm's table."""
        means = [_mean(self.scores[arm].get(name, ())) for name in MEASURES]
        grids = self.scale.rates, self.scale.tune_rates
        rates = [_rate(one, grid) for one, grid in zip(self.rates[arm], grids, strict=True)]
        return [arm, *means, *rates]

    def show(self, console: Console) -> None:
        """Prints the tables."""
        for table in self.tables():
            console.print(table)
        for found in self.correlations:
            console.print(_said(found))

    def markdown(self) -> str:
        """The report to read."""
        lines = ["# Claims of arXiv 2504.06225, tried in small", ""]
        lines += [f"Seeds {list(self.seeds)}; {dataclasses.asdict(self.scale)}", ""]
        for name, found in self.differences.items():
            lines += [f"## {name}: {self.verdicts[name]}", "", CLAIMS[name].text, ""]
            for one, by in zip(CLAIMS[name].comparisons, found, strict=True):
                lines.append(f"- {one}: {by.text(4)}")
            lines.append("")
        lines += self._of_arms() if self.scores else []
        lines += self._of_costs() if self.costs else []
        return "\n".join(lines)

    def _of_arms(self) -> list[str]:
        lines = ["## C14: how measures agree over arms", ""]
        lines += [f"- {_said(found)}" for found in self.correlations]
        head = ["arm", *MEASURES, *_RATES]
        lines += ["", "## Arms, mean over seeds", "", f"| {' | '.join(head)} |"]
        lines.append("|---" * len(head) + "|")
        lines += [f"| {' | '.join(self._row(arm))} |" for arm in self.scores]
        lines += ["", *(f"- {name}: {text}" for name, (text, _) in MEASURES.items())]
        return [*lines, *(f"- {name}: {text}" for name, text in _RATES.items()), ""]

    def _of_costs(self) -> list[str]:
        lines = ["## What models cost", "", "| model | MFLOP | ms, median |", "|---|---|---|"]
        lines += [f"| {' | '.join(_cost(name, found))} |" for name, found in self.costs.items()]
        return [*lines, "", *(f"- {name}: {text}" for name, text in COSTS.items()), ""]

    def to_json(self) -> dict[str, Any]:
        """JSON types; infinite ends of intervals are null."""
        return {
            "scale": dataclasses.asdict(self.scale),
            "seeds": list(self.seeds),
            "scores": self.scores,
            "rates": self.rates,
            "claims": {
                name: {
                    "text": CLAIMS[name].text,
                    "verdict": self.verdicts[name],
                    "comparisons": [
                        {**dataclasses.asdict(one), **by.to_json()}
                        for one, by in zip(CLAIMS[name].comparisons, found, strict=True)
                    ],
                }
                for name, found in self.differences.items()
            },
            "correlations": [dataclasses.asdict(found) for found in self.correlations],
            "costs": self.costs,
        }

    def draw(self) -> Any:
        """A matplotlib figure: arms compared, with intervals, right of 0 where a claim holds."""
        rows = [
            (f"{name}  {one}", by)
            for name, found in self.differences.items()
            for one, by in zip(CLAIMS[name].comparisons, found, strict=True)
            if isinstance(by, Difference)
        ]
        drawn = picture.figure(12, 1.5 + 0.28 * len(rows))
        axes = drawn.subplots()
        colours = {"agrees": "#2ca02c", "disagrees": "#d62728", "undecided": "#7f7f7f"}
        for at, (_, by) in enumerate(rows):
            width = 0.0 if math.isinf(by.low) else by.high - by.mean
            colour = colours[by.verdict]
            axes.errorbar(by.mean, -at, xerr=width, fmt="o", ms=4, color=colour, capsize=2)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks([-at for at in range(len(rows))], [text for text, _ in rows], fontsize=7)
        axes.set_xlabel("better by, in nats or score, with 95% intervals over seeds")
        return drawn

    def write(self, folder: Path) -> None:
        """Writes `claims.md`, `claims.json` and `claims.png`."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        for name, written in {"claims.md": self.markdown(), "claims.json": text + "\n"}.items():
            with atomic_file(folder / name) as part:
                part.write_text(written)
        with atomic_file(folder / "claims.png") as part:
            picture.save(self.draw(), part)


def claims(
    output: str | os.PathLike,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    scale: str | Scale = "embedded",
) -> Claims:
    """Trains what the paper's claims are about, and says which of them hold here.

    Every arm has the best of a small grid of learning rates, chosen with the first seed on files
    that nothing is reported of. A verdict needs an interval over seeds that leaves out 0. What
    was found with small models on docstrings says nothing of Gemma.

    Args:
        output: folder for `claims.md`, `claims.json`, `claims.png`, runs and models. After a kill
            the same call goes on, and ends with the same report.
        only: names of claims, such as `["C1", "C9"]`; all of them if None.
        seeds: of each arm; with one of them all is undecided.
        scale: one of `SCALES`, or a `Scale`.

    Returns:
        `Claims`, which prints as tables.

    Raises:
        ValueError: before anything is trained, if there is no such claim or scale, or if runs in
            `output` have seen other docstrings, those of other versions of packages.
        BlockingIOError: if another call works in `output`.
        ImportError: without matplotlib.

    Example:
        >>> keras_encdec.evaluation.claims("./claims", only=["C1", "C9"]).verdicts
    """
    chosen = [check.one_of("a claim", name, tuple(CLAIMS)) for name in (only or CLAIMS)]
    numbers = tuple(check.whole("seeds", seed, least=0) for seed in seeds)
    if not numbers:
        raise ValueError("Expected seeds, such as [0, 1, 2]. Received: none.")
    if not isinstance(scale, Scale):
        scale = SCALES[check.one_of("scale", scale, tuple(SCALES))]
    picture.figure()  # hours later it would be a pity
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with disk.owned(folder):
        bench = Bench(scale, folder, numbers[0])
        some = {name: CLAIMS[name] for name in chosen}
        scores, rates = _scores(bench, some, numbers)
        costs = bench.costs() if any(claim.of_costs() for claim in some.values()) else {}
        differences = {
            name: [one.of({**scores, **costs}) for one in claim.comparisons]
            for name, claim in some.items()
        }
        found = Claims(scale, numbers, scores, rates, differences, _correlations(scores), costs)
        found.write(folder)
    return found


def _scores(
    bench: Bench, some: dict[str, Claim], seeds: Sequence[int]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, tuple[float, float]]]:
    """Every measure of every arm that some claims need, and its learning rates."""
    needed = {name for claim in some.values() for name in claim.arms}
    needed |= {part for name in needed for part in ARMS[name].of}
    scores: dict[str, dict[str, list[float]]] = {}
    rates = {}
    arms = [name for name in ARMS if name in needed]
    for number, name in enumerate(arms, 1):
        say(f"Arm {number} of {len(arms)}: {name}.")
        found = [bench.measured(name, seed) for seed in seeds]
        rates[name] = found[0].rate, found[0].tune_rate
        scores[name] = {
            "begin": [one.losses[0] for one in found],
            "quarter": [one.losses[min(1, len(one.losses) - 1)] for one in found],
            "loss": [one.losses[-1] for one in found],
            "tuned": [one.tuned for one in found],
        }
    for name in arms:
        if any(name in claim.of_encoders() for claim in some.values()):
            scores[name]["encoder"] = [bench.encoder(name, seed) for seed in seeds]
    return scores, rates


def _correlations(scores: Scores) -> list[Correlation]:
    """Over arms, of each mean over seeds, with the sign that makes more better."""
    table = []
    for name, measures in scores.items():
        size = "large" if any(ARMS[name].is_large) else "small"
        means = {
            measure: (1 if MEASURES[measure][1] else -1) * sum(values) / len(values)
            for measure, values in measures.items()
        }
        table.append(Scored(name, size, means))
    known = {measure for one in table for measure in one.scores}
    return [correlate(table, *pair) for pair in _CORRELATED if known.issuperset(pair)]


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4f}" if values else ""


def _cost(name: str, found: Mapping[str, Sequence[float]]) -> tuple[str, str, str]:
    """Of a model, in millions and in milliseconds."""
    flops, seconds = found["flops"][0], statistics.median(found["seconds"])
    return name, f"{flops / 1e6:.1f}", f"{1000 * seconds:.1f}"


def _rate(rate: float, grid: Sequence[float]) -> str:
    """With a mark where it is the lowest or the highest of several."""
    marks = {min(grid): " <", max(grid): " >"} if len(grid) > 1 else {}
    return f"{rate:g}{marks.get(rate, '')}" if rate else ""


def _said(found: Correlation) -> str:
    overall = "unknown" if found.overall is None else f"{found.overall:.2f}"
    if found.overall_interval is not None:
        overall += " ({:.2f} to {:.2f})".format(*found.overall_interval)
    if found.within_mean is not None:
        overall += f"; within sizes {found.within_mean:.2f}"
    return f"Spearman of {' and '.join(found.names)} over {found.models} arms: {overall}"
