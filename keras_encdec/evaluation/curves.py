"""Quality over tokens of training: figure 2 of arXiv 2504.06225.

Knows where a run keeps its numbers: the history of `fit` as JSON or as Keras' CSVLogger writes
it, the folder of a `keras_encdec.training.Checkpoint`, the record in a saved model, and models
saved along the way, which are evaluated here. Tokens are those that were read and written
together, padding left out, as the log `tokens` counts them.
"""

import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_encdec import check, provenance
from keras_encdec.files import read_json
from keras_encdec.progress import track
from keras_encdec.training import Checkpoint

DEFAULT_METRICS = "val_loss", "loss"
_NONE = "", "NA", None  # where a CSVLogger has no number


@dataclasses.dataclass(frozen=True)
class Curve:
    """A number of a run against how far it was.

    Args:
        name: of the run.
        metric: what the values are, such as `"val_loss"`.
        tokens: seen so far, rising.
        values: as many.
    """

    name: str
    metric: str
    tokens: tuple[int, ...]
    values: tuple[float, ...]


def curve_of(run: str | os.PathLike | Mapping[str, Any], metric: str | None = None) -> Curve:
    """The curve of a run from what it has kept; nothing is evaluated.

    Args:
        run: one of
            - `history.history` of `lm.fit`, or a JSON file of it;
            - a CSV file that `keras.callbacks.CSVLogger` wrote;
            - the folder of a `keras_encdec.training.Checkpoint`, with a point for each that
              it holds (`keep` of them);
            - a saved model, or its `provenance.json`: where each of its runs began and ended.
        metric: a log of the run; by default `val_loss`, or `loss` where there is none.

    Returns:
        `Curve`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is none of these, or has no such metric or no tokens.

    Example:
        >>> history = lm.fit(texts, validation_data=held_out, epochs=4)
        >>> curve_of(history.history).values
    """
    if isinstance(run, Mapping):
        return _of_rows("history", _rows(run, "the history"), metric)
    path = Path(run)
    if not path.exists():
        raise FileNotFoundError(f"Expected a file or folder of a run. Received: {path}.")
    return _of_rows(path.name, _read(path), metric)


def evaluated(
    lm: Any, folder: str | os.PathLike, measure: Callable[[Any], float], name: str = "quality"
) -> Curve:
    """Measures each checkpoint of a run, and leaves the model with the last of them.

    Args:
        lm: the task of the run, built and compiled as it was.
        folder: of its `keras_encdec.training.Checkpoint`.
        measure: the task to a number, such as
            `lambda lm: lm.evaluate(texts, return_dict=True)["loss"]`.
        name: of what is measured.

    Returns:
        `Curve`.

    Raises:
        ValueError: if the folder holds no checkpoint of this model.
    """
    checkpoint = Checkpoint(_existing(folder))
    tokens, values = [], []
    for step in track(_steps(checkpoint), "Evaluating checkpoints"):
        checkpoint.restore(lm, step)
        tokens.append(_tokens(lm.provenance["history"]))
        values.append(float(measure(lm)))
    checkpoint.close()
    return Curve(Path(folder).name, name, tuple(tokens), tuple(values))


def _read(path: Path) -> list[dict[str, float]]:
    """The logs of a run, each with the tokens that it is of under `"tokens"`."""
    if path.suffix == ".csv":
        return _lines(path)
    if path.is_file():
        data = read_json(path)
        return _record(data, path) if "sources" in data else _rows(data, str(path))
    if (path / provenance.FILE).exists():
        return _record(read_json(path / provenance.FILE), path)
    checkpoint = Checkpoint(path)
    found = [_last(checkpoint.record(step)["history"]) for step in _steps(checkpoint)]
    checkpoint.close()
    return [point for point in found if point]


def _existing(folder: str | os.PathLike) -> Path:
    """Orbax makes a folder that is not there."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"Expected the folder of a Checkpoint. Received: {folder}.")
    return Path(folder)


def _steps(checkpoint: Checkpoint) -> list[int]:
    steps = checkpoint.saved_steps()
    if not steps:
        raise ValueError(
            "Expected a history of fit (.json, .csv), the folder of a "
            f"keras_encdec.training.Checkpoint or a saved model. Received: {checkpoint.folder}, "
            "which holds none of these."
        )
    return steps


def _rows(history: Mapping[str, Any], where: str) -> list[dict[str, float]]:
    """Of columns of numbers, one for each log."""
    columns = {k: v for k, v in history.items() if isinstance(v, (list, tuple))}
    if not columns or len({len(column) for column in columns.values()}) != 1:
        raise ValueError(
            f"Expected logs of epochs in {where}, as history.history of fit has them. Received: "
            f"{ {k: len(v) for k, v in columns.items()} or sorted(history)!r}."
        )
    count = len(next(iter(columns.values())))
    return [
        {name: _float(column[i], f"{name}[{i}] of {where}") for name, column in columns.items()}
        for i in range(count)
    ]


def _lines(path: Path) -> list[dict[str, float]]:
    """Of a CSVLogger, which writes NA where an epoch has no such log."""
    with path.open(newline="") as file:
        lines = [{k: v for k, v in line.items() if v not in _NONE} for line in csv.DictReader(file)]
    return [
        {name: _float(value, f"{name} in row {i} of {path}") for name, value in line.items()}
        for i, line in enumerate(lines)
    ]


def _float(value: Any, place: str) -> float:
    """A number, NaN among them."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"Expected a number as {place}. Received: {value!r}.") from None


def _record(data: Mapping[str, Any], where: Path) -> list[dict[str, float]]:
    """Where each run of a record ended; and, where the first began, what its first batch said."""
    record = provenance.Provenance()
    record.take(data, where)
    points: list[dict[str, float]] = []
    for number, entry in enumerate(record.history):
        if entry.get("what") == "fit":
            if not points and entry.get("first"):
                points.append({**entry["first"], "tokens": _tokens(record.history[:number])})
            points += [point] if (point := _last(record.history[: number + 1])) else []
    return points


def _last(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The latest logs of a record's last run, or nothing where it has none."""
    runs = [entry for entry in history if entry.get("what") == "fit"]
    if not runs or not runs[-1].get("last"):
        return {}
    return {**runs[-1]["last"], "tokens": _tokens(history)}


def _tokens(history: Sequence[Mapping[str, Any]]) -> int:
    """Read and written by all runs of a record."""
    return sum(sum(entry.get("tokens", {}).values()) for entry in history)


def _of_rows(name: str, rows: Sequence[Mapping[str, float]], metric: str | None) -> Curve:
    known = sorted({log for row in rows for log in row} - {"tokens"})
    if metric is None:
        metric = next((m for m in DEFAULT_METRICS if m in known), DEFAULT_METRICS[0])
    check.one_of(f"metric of {name}", metric, known or ["(no logs)"])
    if not any("tokens" in row for row in rows):
        raise ValueError(
            f"Expected a log 'tokens' in {name}. Received: {known}. Compile with it among `logs`, "
            "as it is by default."
        )
    points = {
        int(row["tokens"]): float(row[metric])
        for row in rows
        if metric in row and "tokens" in row and math.isfinite(row[metric])
    }
    tokens = tuple(sorted(points))
    return Curve(name, metric, tokens, tuple(points[t] for t in tokens))


def to_json(curves: Iterable[Curve]) -> list[dict[str, Any]]:
    """Curves as JSON types."""
    return json.loads(json.dumps([dataclasses.asdict(curve) for curve in curves]))
