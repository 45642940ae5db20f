"""What a reference model says of answers: computed once, before anything trains, and kept.

Knows of which weights and which data log-probabilities are, in memory and on disk. Leaves how
answers are scored to `keras_encdec.generation.scoring`, files to `keras_encdec.data.shards`.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from keras_encdec import check, hosts
from keras_encdec.data.shards import Shards, ShardWriter, is_finished
from keras_encdec.generation import jobs
from keras_encdec.generation.scoring import in_groups
from keras_encdec.models.lora import factors
from keras_encdec.objectives.rows import Inputs
from keras_encdec.progress import track

KIND = "reference log-probabilities"
INITIAL = "initial"
_SHARD = 1024  # rows


class Reference:
    """A model that another one stays near to.

    Args:
        model: the task that trains.
        loss: says which: `reference` is `"initial"`, for `model` as it is now, or another task;
            and `path` is a folder to keep log-probabilities in, or None.

    Raises:
        ValueError: if it is no task of the same vocabularies.
    """

    def __init__(self, model: Any, loss: Any):
        self.path = loss.path
        self.task = model if loss.reference == INITIAL else loss.reference
        check_reference(model, self.task)
        self._is_model = self.task is model
        self._weights = _identity(self.task.backbone)
        self._found: dict[str, np.ndarray] = {}

    def log_probs(self, x: Inputs, labels: np.ndarray, batch_size: int) -> np.ndarray:
        """(N, n) float32 log-probabilities of whole answers, in nats.

        Args:
            x: model inputs, of the encoder (N, S) and of the decoder (N, n, T).
            labels: (N, n, T).
            batch_size: inputs at a time.

        Raises:
            ValueError: if the model has trained since and this data is new, or the folder holds
                log-probabilities of other weights.
        """
        of_data = _digest({**x, "labels": labels})
        if of_data not in self._found:
            self._check_unmoved()
            about = {"weights": self._weights, "data": of_data}
            self._found[of_data] = self._computed(about, x, labels, batch_size)
        return self._found[of_data]

    def _check_unmoved(self) -> None:
        if self._is_model and _identity(self.task.backbone) != self._weights:
            raise ValueError(
                "Expected data that the reference has seen: it is the model as compile found it. "
                "Received: other data, after training. Pass it as validation_data of the first "
                "fit, compile again to begin from the weights as they are, or give the loss a "
                "task as reference."
            )

    def _computed(
        self, about: dict[str, str], x: Inputs, labels: np.ndarray, batch_size: int
    ) -> np.ndarray:
        if self.path is None:
            return self._scored(x, labels, range(len(labels)), batch_size)
        folder = Path(self.path) / about["data"]
        if (kept := hosts.of_first(partial(_kept, folder, about))) is not None:
            return np.array(kept, "float32")
        begun = hosts.of_first(partial(_rows_begun, folder, about))
        for first in track(range(begun, len(labels), _SHARD), "Reference"):
            rows = range(first, min(first + _SHARD, len(labels)))
            found = self._scored(x, labels, rows, batch_size)
            hosts.of_first(partial(_add, folder, about, found, len(labels)))
        return np.array(hosts.of_first(partial(_kept, folder, about)), "float32")

    def _scored(self, x: Inputs, labels: np.ndarray, rows: range, batch_size: int) -> np.ndarray:
        """(r, n) of some rows."""
        some = slice(rows.start, rows.stop)
        part = {name: array[some] for name, array in x.items()}
        return answers_scored(self.task, part, labels[some], batch_size)


def _identity(backbone: Any) -> str:
    """A digest of the weights that decide what a model says.

    Those of LoRA that adds nothing yet do not: a run that begins again may draw others.
    """
    idle: set[int] = set()
    for layer in backbone._flatten_layers(include_self=False):
        found = factors(layer)
        if not any(ops.any(v != 0) for name, v in found.items() if name.endswith("_b")):
            idle |= {id(v) for v in found.values()}
    return jobs.identity(v for v in backbone.weights if id(v) not in idle)


def answers_scored(
    task: Any, x: Inputs, labels: np.ndarray, batch_size: int, temperature: float = 1.0
) -> np.ndarray:
    """(N, n) float32 log-probabilities of whole answers, in nats.

    Args:
        task: that says how likely they are.
        x: model inputs, of the encoder (N, S) and of the decoder (N, n, T).
        labels: (N, n, T).
        batch_size: inputs at a time.
        temperature: that logits are divided by.
    """
    each, length = labels.shape[1:]
    flat = {
        name: (
            np.repeat(array, each, axis=0)
            if name.startswith("encoder")
            else array.reshape(-1, length)
        )
        for name, array in x.items()
    }
    weights = (flat["decoder_padding_mask"] != 0).astype("float32")
    targets = labels.reshape(-1, length)
    engine = task.make_generate_function()
    write = in_groups(engine, flat, targets, weights, batch_size, temperature)
    found = jobs.run(write, (flat["encoder_padding_mask"] > 0).sum(axis=1))
    sums = np.array([log_probs.sum() for log_probs, _ in found], "float32")
    return sums.reshape(-1, each)


def check_reference(model: Any, task: Any) -> None:
    """Raises ValueError where a reference is no task of the model's vocabularies."""
    mine = model.backbone.spec.vocabulary_sizes
    spec = getattr(getattr(task, "backbone", None), "spec", None)
    sizes = getattr(spec, "vocabulary_sizes", None)
    if sizes != mine or not hasattr(task, "make_generate_function"):
        received = repr(task) if sizes is None else str(sizes)
        raise ValueError(
            f"Expected reference as 'initial' or a task of the same vocabularies, {mine}. "
            f"Received: {received:.80}."
        )


def _kept(folder: Path, about: dict[str, str]) -> list | None:
    """What a folder holds, if it is whole."""
    if not is_finished(folder):
        return None
    shards = Shards(folder, KIND)
    if shards.about != about:
        where, *_ = check.difference(shards.about, about)
        raise ValueError(
            f"Expected log-probabilities of this reference. Received: {folder}, of other {where}. "
            "Choose another folder as path, or remove it."
        )
    return np.concatenate([shards.array(i, "log_probs") for i in range(len(shards))]).tolist()


def _rows_begun(folder: Path, about: dict[str, str]) -> int:
    with ShardWriter(folder, KIND, about) as writer:
        return sum(facts["rows"] for facts in writer.shards)


def _add(folder: Path, about: dict[str, str], found: np.ndarray, count: int) -> None:
    with ShardWriter(folder, KIND, about) as writer:
        writer.write({"log_probs": found}, {"rows": len(found)})
        if sum(facts["rows"] for facts in writer.shards) == count:
            writer.finish({"rows": count})


def _digest(arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
