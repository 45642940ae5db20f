"""Batches of drawn and rewarded answers, each made by the weights right before its step.

Knows what a batch is made of, and the file of all that was drawn. Leaves when it is made to
`keras_encdec.models.on_policy`, drawing to `keras_encdec.models.drawing`, rewards to
`keras_encdec.models.rewards`, and what is made of them to `keras_encdec.training.policy`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_encdec import disk, progress
from keras_encdec.data.batching import Batching, of_rows
from keras_encdec.data.prompted import Prompted
from keras_encdec.data.ready import Rows
from keras_encdec.models.anchor import Anchor
from keras_encdec.models.drawing import Answered, Answering
from keras_encdec.models.on_policy import OnPolicy, Position
from keras_encdec.models.reference import answers_scored
from keras_encdec.models.rewards import rewarded
from keras_encdec.objectives.rows import Batch
from keras_encdec.training.policy import EMA, Policy

_SCORED_AT_ONCE = 32  # answers, by the reference


class Rollouts(OnPolicy):
    """Batches to train on: prompts in their order, with answers of the model as it then is.

    Args:
        model: a task, compiled with a `Policy`.
        source: `Prompted`.
        batching: `Batching`.
        reference: `Anchor`, `Other` or None.
        path: a file to keep all that is drawn, or None.
    """

    def __init__(
        self,
        model: Any,
        source: Prompted,
        batching: Batching,
        reference: Any,
        path: str | None = None,
    ):
        self.loss: Policy = model._policy
        self.source, self._reference, self._model = source, reference, model
        converter, loss = model._converter, self.loss
        order = batching.order(converter, len(source))
        given = loss.num_samples, loss.max_length, loss.temperature
        self._draw = Answering(model, source, *given, order.padded(order.batch_size))
        rows = np.ones(len(source), "float32") if source.weights is None else source.weights
        numbers = Rows({"numbers": np.arange(len(source))}, None, rows)
        super().__init__(of_rows(numbers, order, batching.steps))
        self._seed = converter.seed
        self._file = None if path is None else RolloutFile(path)

    def read(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if self._file is not None:
            self._file.begin((epoch, start))
        yield from super().read(epoch, start)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        follows = [Following(self._reference, self.loss.ema_rate)]
        return [*super().callbacks(), *(follows if self.loss.reference == EMA else [])]

    def _made(self, position: Position, batch: Batch) -> Batch:
        x, _, weight = batch
        numbers, weight = np.asarray(x["numbers"]), np.asarray(weight)
        there = np.flatnonzero(weight > 0)  # the others fill the batch up
        steps = progress.track(range(3), f"Rollouts of batch {position[1]}")
        next(steps)
        answers = self._draw(numbers[there].tolist(), (self._seed, *position))
        next(steps)
        rewards = self._rewards(numbers[there], answers)
        next(steps)
        y = {"labels": answers.labels, "rewards": rewards, "truncated": answers.truncated}
        if self._reference is not None:
            how = _SCORED_AT_ONCE, self.loss.temperature
            y["reference"] = self._reference.scored(answers.x, answers.labels, *how)
        if self._file is not None:
            self._file.add(position, self._lines(numbers[there], answers, rewards))
        counts = self.loss.row_weights(weight[there], answers.lengths.sum(axis=1))
        y["rows"] = weight[there]
        some = there, len(numbers)
        x, y = ({k: _filled(a, *some) for k, a in part.items()} for part in (answers.x, y))
        return x, y, _filled(counts.astype("float32"), *some)

    def _rewards(self, numbers: np.ndarray, answers: Answered) -> np.ndarray:
        """(b, G, n)."""
        rows = np.repeat(numbers, self.loss.num_samples)
        records = {k: [column[i] for i in rows] for k, column in self.source.records.items()}
        prompts = [self.source.prompts[i] for i in rows]
        found = rewarded(self.loss, prompts, answers.texts, records)
        return found.reshape(*answers.lengths.shape, -1)

    def _lines(
        self, numbers: np.ndarray, answers: Answered, rewards: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        """What the file keeps of each answer."""
        total = (rewards * np.asarray(self.loss.weights, "float32")).sum(axis=-1)
        texts = iter(answers.texts)
        for row, number in enumerate(numbers.tolist()):
            for i in range(self.loss.num_samples):
                by_name = zip(self.loss.names, rewards[row, i].tolist(), strict=True)
                yield {
                    "row": number,
                    "prompt": self.source.prompts[number],
                    "text": next(texts),
                    "reward": float(total[row, i]),
                    "rewards": dict(by_name),
                    "length": int(answers.lengths[row, i]),
                    "truncated": bool(answers.truncated[row, i]),
                }

    def means(self) -> dict[str, float]:
        """What is reported of rewards, lengths and divergence, over one pass."""
        sums: dict[str, float] = {}
        total = 0.0
        for x, y, _ in self.read(0):
            rows = y["rows"]
            total += float(rows.sum())
            for name, column in self._found(x, y).items():
                sums[name] = sums.get(name, 0.0) + float((column.mean(axis=1) * rows).sum())
        return {name: value / total for name, value in sums.items()}

    def _found(self, x: Any, y: Any) -> dict[str, np.ndarray]:
        """(B, G) of each number."""
        by_name = zip(self.loss.names, np.moveaxis(y["rewards"], -1, 0), strict=True)
        found = {
            "reward": y["rewards"] @ np.asarray(self.loss.weights),
            **{f"reward_{name}": column for name, column in by_name},
            "length": x["decoder_padding_mask"].sum(axis=-1),
            "truncated": y["truncated"],
        }
        if "reference" in y:
            given = y["labels"], _SCORED_AT_ONCE, self.loss.temperature
            found["kl"] = answers_scored(self._model, x, *given) - y["reference"]
        return {name: found[name] for name in self.loss.reports if name in found}


class Following(keras.callbacks.Callback):
    """Moves a reference that follows the weights after each step of `fit`."""

    def __init__(self, reference: Anchor, rate: float):
        super().__init__()
        self._reference, self._rate = reference, rate

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.make_generate_function()  # puts the weights where they can be read
        self._reference.follow(self._rate)


class RolloutFile:
    """JSON lines of all that a run drew; a run that goes on cuts what it will draw again."""

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def begin(self, position: Position) -> None:
        """Cuts the file at the first line that is not before a batch of an epoch."""
        if not self._path.exists():
            return
        kept = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or _position(line) >= position:
                    break
                kept += len(line)
        os.truncate(self._path, kept)

    def add(self, position: Position, lines: Iterator[Mapping[str, Any]]) -> None:
        where = dict(zip(("epoch", "batch"), position, strict=True))
        texts = (json.dumps({**where, **line}, ensure_ascii=False, default=str) for line in lines)
        disk.append(self._path, "".join(f"{text}\n" for text in texts))


def _position(line: bytes) -> Position:
    found = json.loads(line)
    return found["epoch"], found["batch"]


def _filled(array: np.ndarray, there: np.ndarray, count: int) -> np.ndarray:
    """`count` rows, of which those `there` are of an array and the others 0."""
    whole = np.zeros((count, *array.shape[1:]), array.dtype)
    whole[there] = array
    return whole
