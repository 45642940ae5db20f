"""Batches that follow from a model's weights, each made right before its step.

Knows when a batch may be made, and its place in the run. Leaves what it is made of to
`keras_encdec.models.rollouts` and `keras_encdec.models.own_outputs`.
"""

import abc
from collections.abc import Iterator
from typing import Any

import keras

from keras_encdec import hosts
from keras_encdec.data.batching import BatchSource
from keras_encdec.objectives.rows import Batch

Position = tuple[int, int]  # epoch, and batch in it


class OnPolicy(BatchSource):
    """Batches made of others by the weights as they are when it is their turn.

    Args:
        order: the others.

    Raises:
        ValueError: in one of several processes, which would draw apart.
    """

    ahead = False

    def __init__(self, order: BatchSource):
        if hosts.count() > 1:
            raise ValueError(
                f"Expected one process for answers that are drawn. Received: {hosts.count()}. "
                "Several devices of one process work together."
            )
        self.order, self.again, self.name = order, order.again, order.name
        self._todo: Iterator[tuple[Position, Batch]] = iter(())
        self._ready: list[Batch] = []

    def steps(self, epoch: int) -> int | None:
        return self.order.steps(epoch)

    def read(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        todo = enumerate(self.order.read(epoch, start), start)
        self._todo, self._ready = (((epoch, number), batch) for number, batch in todo), []
        while self.prepare():
            yield self._ready.pop()

    def prepare(self) -> bool:
        """Makes the next batch, if it is not there; whether there is one."""
        if not self._ready:
            found = next(self._todo, None)
            if found is None:
                return False
            self._ready.append(self._made(*found))
        return True

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs beside the batches."""
        return [Rolling(self)]

    @abc.abstractmethod
    def _made(self, position: Position, batch: Batch) -> Batch:
        """The batch that one of the others becomes."""


class Rolling(keras.callbacks.Callback):
    """Makes each batch of `fit` right before its step, when the last step's weights are there."""

    def __init__(self, batches: OnPolicy):
        super().__init__()
        self._batches = batches

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # The first is made before Keras takes the weights; on PyTorch each has been read by now.
        if batch and keras.backend.backend() != "torch":
            self._batches.prepare()
