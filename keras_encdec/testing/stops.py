"""Runs that end before their time, as by a kill. Nothing but tests imports it."""

from typing import Any

import keras


class Stopped(Exception):
    """What `StopAfter` raises."""


class StopAfter(keras.callbacks.Callback):
    """Stops a `fit` after some calls of its training function.

    Args:
        calls: that are made, at least 1; over epochs.
    """

    def __init__(self, calls: int):
        super().__init__()
        self._left = calls

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if not self._left:
            raise Stopped
