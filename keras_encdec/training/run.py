"""A run of `fit` that can begin in the middle, and ends when the loss is no number.

Knows epochs and places in the data. Leaves what a batch is to `keras_encdec.models`, and
the state of a run to `keras_encdec.training.checkpoint`.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras

from keras_encdec.training.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches with a place to begin.

    Args:
        at: epoch and batches behind in it, to what Keras' `fit` takes for the rest.
        steps: batches of an epoch, or None where only their end tells.
    """

    at: Callable[[int, int], Any]
    steps: int | None = None


class StopAtNaN(keras.callbacks.Callback):
    """Ends a run at the first loss that is no number, and says where it was.

    Raises:
        FloatingPointError: in `fit`.
    """

    async_safe = True  # Keras may look at logs while the next step runs

    def __init__(self, checkpoint: Checkpoint | None = None):
        super().__init__()
        self._checkpoint = checkpoint

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"Expected a finite loss. Received: {loss} at batch {batch} of epoch "
                f"{self._epoch} (both counted from 0). {self._advice()}"
            )

    def _advice(self):
        if self._checkpoint is None:
            return "Nothing was saved: fit with a keras_encdec.training.Checkpoint."
        self._checkpoint.close()
        steps = self._checkpoint.saved_steps()
        if not steps:
            return "No checkpoint was due yet."
        return f"The last good checkpoint is {self._checkpoint.folder / str(steps[-1])}."


def run(model, feed: Feed, *, epochs, initial_epoch, callbacks, verbose="auto", **kwargs):
    """`keras.Model.fit` over a feed, from where its checkpoint stands.

    Args:
        model: a compiled task.
        feed: `Feed`.
        epochs: the last epoch's number, as in Keras.
        initial_epoch: the first one's, where no checkpoint says otherwise.
        callbacks: list.
        verbose: as in Keras.
        **kwargs: of `keras.Model.fit`.

    Returns:
        `keras.callbacks.History`.
    """
    checkpoint, position = find(callbacks), (0, 0)
    if checkpoint is not None:
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        position = checkpoint.resume(model)
    epoch, batch = max(position, (initial_epoch, 0))
    kwargs = {"verbose": verbose, **kwargs}
    if not batch:
        return _fit(model, feed, epoch, 0, epochs, callbacks, kwargs)
    parts = _Parts(callbacks, model, verbose=verbose, epochs=epochs)
    _fit(model, feed, epoch, batch, epoch + 1, parts, kwargs)
    if not model.stop_training:
        _fit(model, feed, epoch + 1, 0, epochs, parts, kwargs)
    parts.finish()
    return model.history


def find(callbacks) -> Checkpoint | None:
    """The checkpoint among some callbacks."""
    return next((c for c in callbacks if isinstance(c, Checkpoint)), None)


@contextlib.contextmanager
def guarded(callbacks):
    """Tells callbacks when an error or a key ends `fit`, which Keras does not."""
    try:
        yield
    except BaseException:
        for callback in callbacks:
            if hasattr(callback, "on_fit_interrupted"):
                callback.on_fit_interrupted()
        raise


def _fit(model, feed, epoch, batch, epochs, callbacks, kwargs):
    steps = feed.steps and feed.steps - batch
    if isinstance(callbacks, _Parts):
        callbacks.set_params({**callbacks.params, "steps": steps})
    return keras.Model.fit(
        model,
        feed.at(epoch, batch),
        epochs=epochs,
        initial_epoch=epoch,
        steps_per_epoch=steps,
        callbacks=callbacks,
        **kwargs,
    )


class _Parts(keras.callbacks.CallbackList):
    """Callbacks for which several calls of `fit` are one."""

    def __init__(self, callbacks, model, *, verbose, epochs):
        show = {"add_progbar": verbose != 0, "verbose": verbose}
        super().__init__(callbacks, add_history=True, **show, epochs=epochs, model=model)
        self._begun, self._logs = False, None

    def on_train_begin(self, logs=None):
        if not self._begun:
            super().on_train_begin(logs)
        self._begun = True

    def on_train_end(self, logs=None):
        self._logs = logs

    def finish(self):
        super().on_train_end(self._logs)
