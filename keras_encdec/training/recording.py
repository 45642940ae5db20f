"""What a run of `fit` says of itself in the model's record.

Knows what a run's entry holds and when it is true: after every batch for whoever asks, whether
the run ended, was stopped or goes on in another process. Leaves the record to
`keras_encdec.provenance`.
"""

import math
import threading
from typing import Any

import keras

from keras_encdec import formats
from keras_encdec.provenance import FINISHED, RUNNING, STOPPED, now
from keras_encdec.training.calls import batches_behind, steps_done

_OF_THE_MOMENT = ("tokens", "tokens_per_second", "learning_rate", "gradient_norm")


class Recording(keras.callbacks.Callback):
    """Keeps the entry of a run in `model.backbone.record`.

    Its tokens are those that were read and written by whole steps, padding left out, on all
    devices and hosts, whatever the batches; `first` holds the logs of its first batch, `last`
    those of its last epoch so far. A run of no step leaves no entry. One that a
    `keras_encdec.training.Checkpoint` goes on with goes on in its entry.

    Args:
        facts: of the run, JSON types: data, objective, loss, learning rate and others.
    """

    async_safe = True  # Keras may look at logs in threads, while later steps run

    def __init__(self, facts: dict[str, Any]):
        super().__init__()
        self._facts = facts
        self._entry: dict[str, Any] = {}
        self._logs: Any = None
        self._batches = self._of_epoch = 0
        self._first, self._lock = math.inf, threading.Lock()

    def on_train_begin(self, logs: Any = None) -> None:
        model, record = self.model, self.model.backbone.record
        last = record.history[-1] if record.history else {}
        if record.goes_on and last.get("what") == "fit":
            record.goes_on, self._entry = False, last
            last.update(state=RUNNING, resumed=[*last.get("resumed", []), now()])
        else:
            begun = steps_done(model)
            own = {"state": RUNNING, "first_step": begun, "batches": 0, "epochs": 0}
            made_by = formats.versions(keras.backend.backend())
            self._entry = record.add("fit", **self._facts, **own, versions=made_by)
        self._batches = self._entry["batches"]
        model.recording = self

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._of_epoch, self._logs = 0, None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        behind = batches_behind(batch, self.params.get("steps"))
        with self._lock:
            if behind > self._of_epoch:
                self._of_epoch, self._logs = behind, logs
            if not self._batches and behind < self._first:
                self._first, self._entry["first"] = behind, _numbers(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._batches, self._of_epoch, self._logs = self._batches + self._of_epoch, 0, logs
        self._entry["epochs"] += 1
        self.note()

    def note(self) -> None:
        """Makes the entry say what is true now."""
        model, entry = self.model, self._entry
        done = steps_done(model)
        entry["steps"] = done - entry["first_step"]
        entry["batches"] = self._batches + self._of_epoch
        entry["tokens"] = model.token_counter.counts()
        if self._logs:
            entry["last"] = _numbers(self._logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._end(FINISHED)

    def on_fit_interrupted(self) -> None:
        """`lm.fit` calls this when an error or a key ends it."""
        if self._entry and self._entry["state"] == RUNNING:
            self._end(STOPPED)

    def _end(self, state: str) -> None:
        self.note()
        self._entry |= {"state": state, "ended": now()}
        self.model.recording = None
        history = self.model.backbone.record.history
        if not self._entry["batches"] and history and history[-1] is self._entry:
            history.pop()


def _numbers(logs: Any) -> dict[str, float]:
    """Losses and metrics."""
    return {k: float(v) for k, v in (logs or {}).items() if k not in _OF_THE_MOMENT}
