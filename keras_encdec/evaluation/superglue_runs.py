"""One run of SuperGLUE: a fresh head on an encoder, all of it tuned, stopped by the dev set.

Knows how a run trains and what is kept of it. Leaves which runs there are to
`keras_encdec.evaluation.superglue`.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_encdec import formats
from keras_encdec.data.labelled import ReadyRows
from keras_encdec.evaluation.superglue_data import Split, Task
from keras_encdec.evaluation.superglue_metrics import all_metrics, measure
from keras_encdec.files import atomic_file, digest_of, read_json
from keras_encdec.models import EncDecTextClassifier
from keras_encdec.models.encoder_preprocessor import inputs_of

_FORMAT = "superglue run"


@dataclasses.dataclass(frozen=True)
class Point:
    """A place of the grid.

    Args:
        learning_rate: of AdamW, with gradients clipped at norm 1, the same for all steps.
        batch_size: examples of a step.
        dropout: in front of the head.
    """

    learning_rate: float
    batch_size: int
    dropout: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs share.

    Args:
        epochs: at most.
        patience: epochs without a better score of the development set that end a run.
        metric: that they are judged by.
        sequence_length: tokens of a row at most.
    """

    epochs: int
    patience: int
    metric: str
    sequence_length: int


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model of the comparison.

    Args:
        name: in the table.
        preset: name, handle or folder.
        options: of `EncDecTextClassifier.from_preset`.
    """

    name: str
    preset: str
    options: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """What decides its numbers, as JSON types: of a folder also names, sizes and times."""
        found: dict[str, Any] = {"preset": self.preset, "options": dict(self.options)}
        folder = Path(self.preset)
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            found["files"] = [
                [path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
                for path in files
            ]
        return found


@dataclasses.dataclass(frozen=True)
class Run:
    """One model, task, place of the grid and seed."""

    arm: Arm
    task: Task
    point: Point
    seed: int

    def file(self, folder: Path, plan: Plan, splits: tuple[Split, Split]) -> Path:
        """Where what it found is kept: a name that changes with all that decides it."""
        about = {
            "model": self.arm.describe(),
            "task": self.task.name,
            "point": dataclasses.asdict(self.point),
            "seed": self.seed,
            "plan": dataclasses.asdict(plan),
            "data": [split.digest for split in splits],
        }
        model = re.sub(r"[^\w.-]+", "_", self.arm.name)[:40]
        return folder / f"{self.task.name}-{model}-{self.seed}-{digest_of(about)}.json"


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run has found.

    Args:
        scores: of each epoch, by the plan's metric; NaN for one that diverged.
        metrics: of the best epoch, by name; none if the first diverged.
        predicted: (n,) numbers of classes on the development set, of the best epoch.
        seconds: it took.
    """

    scores: tuple[float, ...]
    metrics: Mapping[str, float]
    predicted: np.ndarray
    seconds: float

    @property
    def best_epoch(self) -> int:
        """Counted from 1; 0 if there was none."""
        known = [-math.inf if math.isnan(score) else score for score in self.scores]
        return 1 + int(np.argmax(known)) if self.metrics else 0

    def write(self, run: Run, path: Path) -> None:
        """Keeps it: the file is there whole or not at all."""
        about = {"model": run.arm.name, "task": run.task.name, "seed": run.seed}
        data = {
            **formats.mark(_FORMAT),
            **about,
            **dataclasses.asdict(run.point),
            "best_epoch": self.best_epoch,
            "epochs": [None if math.isnan(score) else score for score in self.scores],
            "metrics": self.metrics,
            "seconds": round(self.seconds, 2),
            "predicted": "".join(map(str, self.predicted)),
        }
        with atomic_file(path) as part:
            part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Finished":
        """What was kept.

        Raises:
            ValueError: if the file is not whole, or of a later version.
        """
        data = read_json(path)
        formats.check_known(_FORMAT, data, path)
        try:
            scores = tuple(math.nan if x is None else float(x) for x in data["epochs"])
            predicted = np.array([int(digit) for digit in data["predicted"]], int)
            return cls(scores, data["metrics"], predicted, float(data["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Expected a finished run in {path}. Received: {error!r}. Delete it, and it is "
                "run again."
            ) from error


class Trainee:
    """A classifier of one model for one task, set back for each run: its programs are kept.

    Args:
        arm: the model.
        task: its task.
        splits: training and development set.
        dropout: in front of the head.
        plan: what all runs share.

    Raises:
        ValueError: if there is no such model, or it has no tokenizer.
    """

    def __init__(
        self, arm: Arm, task: Task, splits: tuple[Split, Split], dropout: float, plan: Plan
    ):
        self._task, self._val, self._plan = task, splits[1], plan
        classes: dict[str, Any] = {"num_choices": task.num_choices}
        if not task.num_choices:
            classes = {"label_names": list(task.classes)}
        self._model = EncDecTextClassifier.from_preset(
            arm.preset,
            dropout=dropout,
            **{"sequence_length": plan.sequence_length, **arm.options},
            **classes,
        )
        self._model.compile(keras.optimizers.AdamW(1.0, global_clipnorm=1.0), logs=())
        self._model.optimizer.build(self._model.trainable_variables)
        if self._model.preprocessor is None:
            raise ValueError(
                f"Expected a model with a tokenizer. Received: {arm.preset!r}, which has none. "
                "Save it with a preprocessor."
            )
        reader = self._model.preprocessor.reader
        self._x = [ReadyRows(inputs_of(split.data, reader), split.labels) for split in splits]
        self._start = [keras.ops.convert_to_numpy(v) for v in self._model.backbone.weights]

    def train(self, point: Point, seed: int) -> Finished:
        """A run, of which nothing stays in the model that a next one could see."""
        begin = time.monotonic()
        self._set_back(point, seed)
        scores: list[float] = []
        best: np.ndarray | None = None
        for epoch in range(self._plan.epochs):
            predicted = self._epoch(epoch, point)
            if predicted is None:
                scores.append(math.nan)
                break
            score = measure(self._plan.metric, self._task, self._val, predicted)
            if best is None or score > max(scores):
                best = predicted
            scores.append(score)
            if len(scores) - scores.index(max(scores)) > self._plan.patience:
                break
        metrics = {} if best is None else all_metrics(self._task, self._val, best)
        predicted = np.zeros(0, int) if best is None else best
        return Finished(tuple(scores), metrics, predicted, time.monotonic() - begin)

    def _epoch(self, epoch: int, point: Point) -> np.ndarray | None:
        """What is predicted of the development set after one more epoch; None if it diverged."""
        train, val = self._x
        options: dict[str, Any] = {"batch_size": point.batch_size, "verbose": 0}
        try:
            self._model.fit(train, initial_epoch=epoch, epochs=epoch + 1, **options)
        except FloatingPointError:
            return None
        logits = np.asarray(self._model.predict(val, **options), "float32")
        return logits.argmax(axis=-1) if np.isfinite(logits).all() else None

    def _set_back(self, point: Point, seed: int) -> None:
        """Weights, optimizer and chance as at the begin of the only run of a process."""
        model = self._model
        for variable, value in zip(model.backbone.weights, self._start, strict=True):
            variable.assign(value)
        for variable in model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        model.optimizer.learning_rate = point.learning_rate
        initial = model.head.kernel_initializer
        drawn = type(initial).from_config({**initial.get_config(), "seed": seed})
        model.head.kernel.assign(drawn(model.head.kernel.shape))
        model.head.bias.assign(np.zeros(model.head.bias.shape))
        for number, variable in enumerate(_chances(model)):
            variable.assign(np.array([seed, number], "uint32"))
        model.preprocessor.seed = seed


def _chances(model: Any) -> Iterator[Any]:
    """The states of what dropout draws by."""
    for variable in model.variables:
        if variable.path.endswith("seed_generator_state"):
            yield variable
