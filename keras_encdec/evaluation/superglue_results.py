"""What the runs of SuperGLUE say together: a table, differences, JSON and a picture.

Knows which place of the grid counts and when a difference says something. Leaves variances to
`keras_encdec.evaluation.intervals`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from keras_encdec.evaluation import picture
from keras_encdec.evaluation.intervals import Difference, Part, difference, over_seeds, scaled
from keras_encdec.evaluation.superglue_baselines import bag_of_words, majority
from keras_encdec.evaluation.superglue_data import Split, Task
from keras_encdec.evaluation.superglue_metrics import all_metrics, measure
from keras_encdec.evaluation.superglue_runs import Finished, Plan, Point, Run
from keras_encdec.files import atomic_file

_RESAMPLES = 500  # of a development set, for the variance of a difference
_BASELINES = {"majority": majority, "bag of words": bag_of_words}
_MEAN = "mean"


class Scored(NamedTuple):
    """A run and what it found."""

    run: Run
    found: Finished


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model on a task, at the place of the grid that is best for it.

    Args:
        point: that place.
        runs: one for each seed there.
        metric: that decides.
    """

    point: Point
    runs: tuple[Finished, ...]
    metric: str

    @property
    def scores(self) -> list[float]:
        """By the metric that decides, one for each seed."""
        return self.of(self.metric)

    def of(self, metric: str) -> list[float]:
        """Values of one metric, one for each seed."""
        return [run.metrics[metric] for run in self.runs]

    def to_json(self) -> dict[str, Any]:
        """All of it but the predictions."""
        every = {name: self.of(name) for name in self.runs[0].metrics}
        means = {name: float(np.mean(values)) for name, values in every.items()}
        deviations = {name: _deviation(values) for name, values in every.items()}
        point = dataclasses.asdict(self.point)
        epochs = [run.best_epoch for run in self.runs]
        return {**point, "best_epochs": epochs, "mean": means, "sd": deviations, "seeds": every}


@dataclasses.dataclass(frozen=True)
class Results:
    """What was found; prints as tables.

    Args:
        cells: by model and task.
        baselines: metrics of what needs no model, by name and task.
        differences: of each model but the first, by model and task, or `"mean"` over tasks.
        diverged: runs that lost their loss before a first epoch's end, by model and task.
        plan: what all runs share.
        seeds: of the runs.
    """

    cells: Mapping[str, Mapping[str, Cell]]
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]]
    differences: Mapping[str, Mapping[str, Difference]]
    diverged: Mapping[str, Mapping[str, int]]
    plan: Plan
    seeds: tuple[int, ...]

    @classmethod
    def of(
        cls,
        scored: Sequence[Scored],
        data: Mapping[str, tuple[Split, Split]],
        plan: Plan,
        models: Sequence[str],
    ) -> "Results":
        """What runs say.

        Args:
            scored: every run that was asked for.
            data: training and development set by task.
            plan: what all runs share.
            models: their names, in order.

        Raises:
            ValueError: if at every place of the grid some run of a model and task diverged.
        """
        tasks = {one.run.task.name: one.run.task for one in scored}
        of = {
            (m, t): [s for s in scored if (s.run.arm.name, s.run.task.name) == (m, t)]
            for m in models
            for t in tasks
        }
        cells = {m: {t: _best(of[m, t], plan.metric) for t in tasks} for m in models}
        baselines = {
            name: {t: all_metrics(task, data[t][1], of_data(*data[t])) for t, task in tasks.items()}
            for name, of_data in _BASELINES.items()
        }
        first = cells[models[0]]
        differences = {m: _differences(first, cells[m], tasks, data, plan) for m in models[1:]}
        diverged = {
            m: {t: sum(not s.found.metrics for s in of[m, t]) for t in tasks} for m in models
        }
        seeds = tuple(dict.fromkeys(one.run.seed for one in scored))
        return cls(cells, baselines, differences, diverged, plan, seeds)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(next(iter(self.cells.values())))

    def means(self, model: str, metric: str) -> list[float]:
        """The mean over tasks, one for each seed."""
        return np.mean([cell.of(metric) for cell in self.cells[model].values()], axis=0).tolist()

    def table(self) -> Table:
        """Tasks down, baselines and models across: mean over seeds and standard deviation."""
        metric = self.plan.metric
        title = f"SuperGLUE, development sets: {metric}, mean and sd over seeds {list(self.seeds)}"
        table = Table("task", *self.baselines, *self.cells, title=title, title_justify="left")
        for task in self.tasks:
            plain = [f"{100 * of[task][metric]:.1f}" for of in self.baselines.values()]
            table.add_row(task, *plain, *(_said(of[task].scores) for of in self.cells.values()))
        for name in dict.fromkeys((metric, "accuracy")):
            plain = [
                f"{100 * np.mean([of[t][name] for t in self.tasks]):.1f}"
                for of in self.baselines.values()
            ]
            models = (_said(self.means(model, name)) for model in self.cells)
            table.add_row(f"mean {name}", *plain, *models, style="bold")
        return table

    def comparison(self) -> Table:
        """Tasks down, each model after the first across: how much higher it stands."""
        first = next(iter(self.cells))
        title = f'Above "{first}" by (95% interval): agrees only where it leaves out zero'
        table = Table("task", *self.differences, title=title, title_justify="left")
        for task in (*self.tasks, _MEAN):
            table.add_row(task, *(of[task].text(1, 100) for of in self.differences.values()))
        return table

    def __repr__(self) -> str:
        console = Console(width=120)
        with console.capture() as text:
            self.show(console)
        return text.get()

    def show(self, console: Console) -> None:
        """Prints the tables."""
        console.print(self.table())
        if self.differences:
            console.print(self.comparison())
        for model, tasks in self.diverged.items():
            for task, count in tasks.items():
                if count:
                    console.print(f"{model}: {count} runs of {task} diverged, none of them counts.")

    def to_json(self) -> dict[str, Any]:
        """JSON types; infinite ends of intervals are null."""
        metrics = dict.fromkeys((self.plan.metric, "accuracy"))
        return {
            "plan": dataclasses.asdict(self.plan),
            "seeds": list(self.seeds),
            "baselines": self.baselines,
            "models": {
                m: {
                    "tasks": {t: cell.to_json() for t, cell in of.items()},
                    _MEAN: {name: self.means(m, name) for name in metrics},
                    "diverged": self.diverged[m],
                }
                for m, of in self.cells.items()
            },
            "differences": {
                m: {t: one.to_json() for t, one in of.items()} for m, of in self.differences.items()
            },
        }

    def write(self, folder: Path) -> None:
        """Writes `superglue.json` and `superglue.png`."""
        with atomic_file(folder / "superglue.json") as part:
            part.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        with atomic_file(folder / "superglue.png") as part:
            picture.save(self.draw(), part)

    def draw(self) -> Any:
        """A matplotlib figure: bars of means, dots of seeds, lines of baselines."""
        drawn = picture.figure(2 + 1.6 * (len(self.tasks) + 1), 4.5)
        axes, width = drawn.subplots(), 0.8 / len(self.cells)
        names = [*self.tasks, _MEAN]
        for number, (model, of) in enumerate(self.cells.items()):
            rows = [of[t].scores for t in self.tasks] + [self.means(model, self.plan.metric)]
            at = np.arange(len(names)) + (number - (len(self.cells) - 1) / 2) * width
            colour = picture.COLOURS[number % len(picture.COLOURS)]
            axes.bar(at, np.mean(rows, axis=1), width * 0.9, label=model, color=colour, alpha=0.6)
            dots = np.repeat(at, len(self.seeds))
            axes.plot(dots, np.ravel(rows), ls="", marker="o", ms=3, color=colour)
        for (name, of_task), style in zip(self.baselines.items(), ("--", ":"), strict=True):
            plain = [of_task[t][self.plan.metric] for t in self.tasks]
            plain.append(float(np.mean(plain)))
            ends = np.arange(len(names))
            axes.hlines(plain, ends - 0.45, ends + 0.45, ls=style, color="black", label=name)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel(f"{self.plan.metric}, development set")
        axes.set_ylim(0, 1)
        axes.legend(ncols=4, fontsize=8)
        return drawn


def _best(scored: Sequence[Scored], metric: str) -> Cell:
    """The place with the highest mean over seeds, the first of several, without those that lost."""
    places: dict[Point, list[Finished]] = {}
    for run, found in scored:
        places.setdefault(run.point, []).append(found)
    whole = {p: runs for p, runs in places.items() if all(run.metrics for run in runs)}
    if not whole:
        run = scored[0].run
        raise ValueError(
            f"Expected a place of the grid where {run.arm.name!r} learns {run.task.name}. "
            "Received: a loss that is NaN or Inf at each. Choose lower learning rates."
        )
    best = max(whole, key=lambda p: np.mean([run.metrics[metric] for run in whole[p]]))
    return Cell(best, tuple(whole[best]), metric)


def _differences(
    first: Mapping[str, Cell],
    second: Mapping[str, Cell],
    tasks: Mapping[str, Task],
    data: Mapping[str, tuple[Split, Split]],
    plan: Plan,
) -> dict[str, Difference]:
    """By task, and of the mean over tasks."""
    means, parts = {}, {}
    for name, task in tasks.items():
        one, other = first[name], second[name]
        means[name] = float(np.mean(other.scores) - np.mean(one.scores))
        sampled = _over_development_set(one, other, task, data[name][1], plan.metric)
        parts[name] = [over_seeds(one.scores), over_seeds(other.scores), sampled]
    found = {name: difference(means[name], parts[name]) for name in tasks}
    share = 1 / len(tasks)
    every = [part for some in parts.values() for part in scaled(some, share)]
    return {**found, _MEAN: difference(float(np.mean(list(means.values()))), every)}


def _over_development_set(one: Cell, other: Cell, task: Task, split: Split, metric: str) -> Part:
    """The variance of a difference over draws of as many questions, with replacement.

    Both models are asked the same questions in each draw.
    """
    rng = np.random.default_rng(0)
    _, inverse = np.unique(split.questions, return_inverse=True)
    count, found = int(inverse.max()) + 1, []
    for _ in range(_RESAMPLES):
        weights = rng.multinomial(count, np.full(count, 1 / count))[inverse].astype(float)
        means = [
            np.mean([measure(metric, task, split, run.predicted, weights) for run in cell.runs])
            for cell in (one, other)
        ]
        found.append(means[1] - means[0])
    return Part(float(np.var(found, ddof=1)), max(1, count - 1))


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _said(scores: Sequence[float]) -> str:
    """`"71.2 ± 0.8"`, in percent."""
    deviation = _deviation(scores)
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * float(np.mean(scores)):.1f}{spread}"
