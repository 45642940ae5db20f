"""SuperGLUE for several models side by side: a grid, seeds, early stopping, and what it says.

For each model and task every place of the grid is trained with every seed: a new head on the
state of the last token, all weights tuned, until the development set gets no better. A model's
number is that of the place whose mean over seeds is highest: as the paper's, a little above what
new data would give, for all models alike (arXiv 2504.06225, section 4; arXiv 1905.00537).

Knows which runs there are and that each is done once. Leaves a run to
`keras_encdec.evaluation.superglue_runs` and what they say together to
`keras_encdec.evaluation.superglue_results`.
"""

import gc
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_encdec import check, disk
from keras_encdec.evaluation import picture
from keras_encdec.evaluation.superglue_data import Split, read_task, tasks_of
from keras_encdec.evaluation.superglue_metrics import SCORE, check_metric
from keras_encdec.evaluation.superglue_results import Results, Scored
from keras_encdec.evaluation.superglue_runs import Arm, Finished, Plan, Point, Run, Trainee
from keras_encdec.progress import say, track
from keras_encdec.sharing import catalog

# The paper does not disclose its grid; these are of the size that BERT's and T5's were.
GRID: dict[str, tuple[float, ...]] = {
    "learning_rate": (1e-5, 3e-5, 1e-4),
    "batch_size": (32,),
    "dropout": (0.0, 0.1),
}
_RUNS = "runs"
_TAKES = "encoder_attention", "dtype", "pooling", "sequence_length", "add_start_token"


def superglue(
    models: Mapping[str, Any],
    folder: str | os.PathLike,
    tasks: str | Sequence[str] | None = None,
    grid: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 10,
    *,
    output: str | os.PathLike,
    patience: int = 3,
    metric: str = SCORE,
    sequence_length: int = 512,
) -> Results:
    """Fine-tunes encoders on SuperGLUE's classification tasks and compares them with the first.

    Each finished run is kept in `output`: after a kill the same call goes on, and ends with the
    same table. Runs of other options stay there beside them.

    Args:
        models: by name: a preset, recipe, handle or folder; or `(preset, options)`.
        folder: where SuperGLUE's official archives were unpacked, or of `write_stand_in`.
        tasks: among BoolQ, CB, COPA, MultiRC, RTE, WiC and WSC; all of them if None.
        grid: values of `learning_rate`, `batch_size` and `dropout` (in front of the head), in
            place of `GRID`'s.
        seeds: of head, order and dropout; with one of them all is undecided.
        epochs: at most.
        output: folder for the runs, `superglue.json` and `superglue.png`.
        patience: epochs that get no better before a run ends.
        metric: that decides: `"score"`, the mean of a task's official metrics, or one that every
            task here has.
        sequence_length: tokens of a row at most; how many were cut is told.

    Returns:
        `Results`, which prints as tables.

    Raises:
        ValueError: before anything is written, if an argument or a line of a file is not as
            expected; or if no run of a model and task came to an end.
        OSError: if a file is missing, or another process writes to `output`.
        ImportError: without matplotlib.

    Example:
        >>> source = "gemma2_2b_en", {"encoder_attention": "causal"}
        >>> superglue({"source": source, "pair": "./my_pair"}, "./SuperGLUE", output="./found")
    """
    chosen, arms, places = tasks_of(tasks), _arms(models), _points(grid or {})
    check_metric(metric, chosen)
    length = check.whole("sequence_length", sequence_length, least=4)
    lasts = check.whole("epochs", epochs), check.whole("patience", patience)
    plan, numbers = Plan(*lasts, metric, length), _seeds(seeds)
    picture.figure()  # hours later it would be a pity
    data = {task.name: read_task(folder, task) for task in chosen}
    asked = [Run(*each) for each in itertools.product(arms, chosen, places, numbers)]
    done = _all_done(asked, data, plan, Path(output))
    scored = [Scored(run, found) for run, found in zip(asked, done, strict=True)]
    results = Results.of(scored, data, plan, [arm.name for arm in arms])
    results.write(Path(output))
    return results


def _all_done(
    runs: Sequence[Run], data: Mapping[str, tuple[Split, Split]], plan: Plan, output: Path
) -> list[Finished]:
    """What each run has found, in order, done now or before."""
    folder = output / _RUNS
    folder.mkdir(parents=True, exist_ok=True)
    files = [run.file(folder, plan, data[run.task.name]) for run in runs]
    with disk.owned(output):
        for rest in folder.glob(".incomplete-*"):  # of a call that was killed
            rest.unlink()
        found = {file: Finished.read(file) for file in files if file.exists()}
        left = [(run, file) for run, file in zip(runs, files, strict=True) if file not in found]
        if found:
            say(f"{len(found)} of {len(files)} runs were done before.")
        for run, file, trainee in _trained(left, data, plan):
            found[file] = trainee.train(run.point, run.seed)
            found[file].write(run, file)
    return [found[file] for file in files]


def _trained(
    left: list[tuple[Run, Path]], data: Mapping[str, tuple[Split, Split]], plan: Plan
) -> Iterator[tuple[Run, Path, Trainee]]:
    """Runs with what trains them; one model at a time is in memory."""
    key: Any = None
    trainee: Trainee | None = None
    for run, file in track(_by_program(left), "Fine-tuning"):
        needs = run.arm.name, run.task.name, run.point.dropout
        if trainee is None or key != needs:
            trainee = None
            gc.collect()  # a model holds itself in circles
            key, trainee = needs, Trainee(run.arm, run.task, data[needs[1]], needs[2], plan)
        yield run, file, trainee


def _by_program(left: list[tuple[Run, Path]]) -> list[tuple[Run, Path]]:
    """Runs of one model, task and dropout together, and of one batch size within them."""
    names = list(dict.fromkeys(run.arm.name for run, _ in left))
    return sorted(
        left,
        key=lambda x: (
            names.index(x[0].arm.name),
            x[0].task.name,
            x[0].point.dropout,
            x[0].point.batch_size,
        ),
    )


def _arms(models: Mapping[str, Any]) -> list[Arm]:
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            "Expected models by name: {'source': 'gemma2_2b_en', 'pair': './my_pair'}. Received: "
            f"{models!r}."
        )
    found = []
    for name, given in models.items():
        preset, options = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
        if not isinstance(preset, (str, Path)) or not isinstance(options, Mapping):
            raise ValueError(
                "Expected a preset or folder, or (preset, options), as a model. Received: "
                f"{given!r} for {name!r}. Save a model in memory with save_to_preset first."
            )
        check.keywords(f"an option of the model {name!r}", options, _TAKES)
        if preset not in catalog.presets:
            catalog.check_known(str(preset))
        found.append(Arm(check.text("a model's name", name), str(preset), dict(options)))
    return found


def _points(grid: Mapping[str, Any]) -> list[Point]:
    if not isinstance(grid, Mapping):
        raise ValueError(f"Expected a grid such as {GRID}. Received: {grid!r}.")
    check.keywords("a part of the grid", grid, tuple(GRID))
    whole = {name: _values(name, grid.get(name, values)) for name, values in GRID.items()}
    rates = [check.real("learning_rate", x, above=0) for x in whole["learning_rate"]]
    sizes = [check.whole("batch_size", x) for x in whole["batch_size"]]
    dropouts = [check.real("dropout", x, least=0, below=1) for x in whole["dropout"]]
    return [Point(*place) for place in itertools.product(rates, sizes, dropouts)]


def _values(name: str, given: Any) -> list[Any]:
    """One value or several, each once."""
    values = list(dict.fromkeys(given)) if isinstance(given, (list, tuple)) else [given]
    if not values:
        raise ValueError(f"Expected at least one {name} in the grid. Received: none.")
    return values


def _seeds(seeds: Any) -> list[int]:
    given = [seeds] if not isinstance(seeds, (list, tuple, range)) else list(seeds)
    found = [check.whole("seeds", seed, least=0) for seed in given]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"Expected different seeds, one at least. Received: {given}.")
    return found
