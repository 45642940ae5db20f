"""A run of `fit`: one epoch after another, from any place on, safe against errors.

Knows epochs, callbacks and what Keras does at their edges. Leaves which batches there are to
`keras_encdec.data.batching`, and the state of a run to `keras_encdec.training.checkpoint`.

Keras is called once for each epoch, as an objective may make another number of batches in
each; to callbacks it is one run.
"""

import contextlib
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from keras_encdec.private import read_ahead
from keras_encdec.training.adapter import BatchAdapter, own_errors
from keras_encdec.training.checkpoint import Checkpoint
from keras_encdec.warn import warn


class Batches(Protocol):
    """What a run reads: `keras_encdec.data.batching.BatchSource`."""

    again: bool
    ahead: bool

    def steps(self, epoch: int) -> int | None: ...

    def read(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


class StopAtNaN(keras.callbacks.Callback):
    """Ends a run at the first loss that is NaN or Inf, and says where it was.

    Raises:
        FloatingPointError: in `fit`.
    """

    async_safe = True  # Keras may look at logs while the next step runs

    def __init__(self, checkpoint: Checkpoint | None = None):
        super().__init__()
        self._checkpoint = checkpoint

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"Expected a finite loss. Received: {loss} at batch {batch} of epoch "
                f"{self._epoch} (both counted from 0). {self._advice()}"
            )

    def _advice(self) -> str:
        if self._checkpoint is None:
            return "Nothing was saved: fit with a keras_encdec.training.Checkpoint."
        self._checkpoint.close()
        steps = self._checkpoint.saved_steps()
        if not steps:
            return "No checkpoint was due yet."
        return f"The last good checkpoint is {self._checkpoint.folder / str(steps[-1])}."


class TokensPerSecond(keras.callbacks.Callback):
    """Adds tokens per second, padding not counted, to the logs of an epoch so far.

    Args:
        logs: names of the logs that are wanted.
    """

    async_safe = True

    def __init__(self, logs: Sequence[str]):
        super().__init__()
        self._wanted, self._lock = logs, threading.Lock()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start: tuple[float, float] | None = None
        self._speed: dict[str, float] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not logs or "tokens" not in logs:
            return
        now, tokens = time.perf_counter(), float(logs["tokens"])
        with self._lock:
            # The first step may compile, so the time begins behind it.
            begun, before = self._start = self._start or (now, tokens)
            if now > begun and "tokens_per_second" in self._wanted:
                self._speed = {"tokens_per_second": (tokens - before) / (now - begun)}
        self._complete(logs, tokens)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs and "tokens" in logs:
            self._complete(logs, self.model.token_counter.count())

    def _complete(self, logs: dict[str, Any], tokens: float) -> None:
        logs["tokens"] = tokens
        logs.update(self._speed)
        if "tokens" not in self._wanted:
            del logs["tokens"]


def run(
    model: Any,
    batches: Batches,
    *,
    epochs: int,
    initial_epoch: int,
    callbacks: list,
    made_of: Callable[[], dict[str, Any]],
    verbose: Any = "auto",
    validation: Batches | None = None,
    validation_freq: Any = 1,
) -> Any:
    """`keras.Model.fit` over batches, from where its checkpoint stands.

    Args:
        model: a compiled task.
        batches: `Batches` to train on.
        epochs: the last epoch's number, as in Keras.
        initial_epoch: the first one's, where no checkpoint says otherwise.
        callbacks: list.
        made_of: what batches follow from, for a checkpoint.
        verbose: as in Keras.
        validation: `Batches` to evaluate on, or None.
        validation_freq: as in Keras.

    Returns:
        `keras.callbacks.History`.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model.token_counter.begin()
    if model.averaging is not None:
        model.averaging.follow(model)
    checkpoint = find(callbacks)
    position = (0, 0) if checkpoint is None else checkpoint.resume(model, made_of())
    epoch, batch = max(position, (initial_epoch, 0))
    parts = _Parts(callbacks, model, verbose=verbose, epochs=epochs)
    options = {"validation_freq": validation_freq, "verbose": verbose}
    with _averaged_once(model), protected(model) as hold:
        parts.append(hold)
        epoch, batch = parts.begin(epoch, batch)
        for number in range(epoch, epochs):
            start = batch if number == epoch else 0
            if not _fit_epoch(model, batches, number, start, parts, validation, options):
                break
            if model.stop_training:
                break
    parts.finish()
    return model.history


def _fit_epoch(
    model: Any,
    batches: Batches,
    epoch: int,
    start: int,
    parts: "_Parts",
    validation: Batches | None,
    options: dict[str, Any],
) -> bool:
    """Whether there was a batch left in this epoch, which is then trained on."""
    steps = batches.steps(epoch)
    left = None if steps is None else steps - start
    adapter = opened(batches, epoch, start, left)
    if adapter is None:
        if left is None or left:
            warn(f"The data ended before epoch {epoch} (counted from 0): training stops.")
        return not left and left is not None
    more, held = dict(options), None
    if validation is not None:
        more["validation_data"] = held = opened(validation, 0, 0, validation.steps(0))
    parts.set_params({**parts.params, "steps": left})
    unknown = None in (left, validation.steps(0) if validation else 0)
    with quiet_ends(unknown), own_errors(adapter, held), read_ahead(batches.ahead):
        keras.Model.fit(
            model,
            adapter,
            epochs=epoch + 1,
            initial_epoch=epoch,
            callbacks=parts,
            shuffle=False,
            **more,
        )
    return True


def opened(batches: Batches, epoch: int, start: int, steps: int | None) -> BatchAdapter | None:
    """The batches of an epoch as Keras takes them; None where there are none.

    Their first one is made here: an error in the data comes before Keras takes the weights
    out of the model.
    """
    begun = batches.read(epoch, start)
    first = next(begun, None)
    if first is None:
        return None
    waiting = [begun]

    def begin() -> Iterator[Any]:
        """The first batch as often as Keras looks at it, and what follows it."""
        if not waiting:
            yield from batches.read(epoch, start)
            return
        yield first
        yield from waiting.pop() if waiting else batches.read(epoch, start + 1)

    return BatchAdapter(begin, steps, batches.ahead)


@contextlib.contextmanager
def one_pass(model: Any, batches: Batches) -> Iterator[BatchAdapter]:
    """The batches of one pass, for Keras to evaluate or predict on.

    Raises:
        ValueError: if there are none.
    """
    with protected(model), quiet_ends(batches.steps(0) is None):
        found = opened(batches, 0, 0, batches.steps(0))
        if found is None:
            raise ValueError("Expected at least one batch. Received: data of none.")
        with own_errors(found):
            yield found


class InputsAlone:
    """Batches without labels, as prediction takes them.

    Args:
        batches: `Batches`, whose rows that fill a batch up have no weight.

    Attributes:
        kept: for each batch that was read, which of its rows are data.
    """

    def __init__(self, batches: Batches):
        self.again, self.ahead, self.steps = batches.again, batches.ahead, batches.steps
        self._batches = batches
        self.kept: list[np.ndarray] = []

    def read(self, epoch: int, start: int = 0) -> Iterator[Any]:
        self.kept = []
        for x, _, weight in self._batches.read(epoch, start):
            count = len(next(iter(x.values())))
            counts = np.ones(count) if weight is None else weight
            self.kept.append(np.any(counts.reshape(count, -1), axis=1))
            yield x, None, None

    def data(self, found: np.ndarray) -> np.ndarray:
        """Of what was found for all rows, what was found for data."""
        return found[np.concatenate(self.kept)[: len(found)]]


@contextlib.contextmanager
def quiet_ends(unknown: bool) -> Iterator[None]:
    """Without Keras' warning that data ended, where only its end tells how much there is."""
    with warnings.catch_warnings():
        if unknown:
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield


def find(callbacks: Iterable[Any]) -> Checkpoint | None:
    """The checkpoint among some callbacks."""
    return next((c for c in callbacks if isinstance(c, Checkpoint)), None)


@contextlib.contextmanager
def guarded(callbacks: Iterable[Any]) -> Iterator[None]:
    """Tells callbacks when an error or a key ends `fit`, which Keras does not."""
    try:
        yield
    except BaseException:
        for callback in callbacks:
            if hasattr(callback, "on_fit_interrupted"):
                callback.on_fit_interrupted()
        raise


class _Hold(keras.callbacks.Callback):
    """Holds the values of variables from before a first step to after it.

    On JAX, Keras takes them out of the model and gives them to the step; an error in it
    would leave a model without weights.
    """

    async_safe = True

    def __init__(self, model: Any):
        super().__init__()
        self._of = model
        self._held: list[tuple[Any, Any]] = []
        self.hold()

    def hold(self) -> None:
        """Holds what there is now."""
        optimizer = getattr(self._of, "optimizer", None)
        variables = [
            *self._of.trainable_variables,
            *self._of.non_trainable_variables,
            *self._of.metrics_variables,
            *(optimizer.variables if optimizer is not None else []),
        ]
        self._held = [(v, v._value) for v in variables if v._value is not None]

    def give_back(self) -> None:
        """Puts values back where there are none."""
        for variable, value in self._held:
            if variable._value is None and not getattr(value, "is_deleted", bool)():
                variable.assign(value)
        self._held = []

    def _drop(self, *args: Any, **kwargs: Any) -> None:
        self._held = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.hold()

    def on_test_begin(self, logs: Any = None) -> None:
        self.hold()

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _drop


@contextlib.contextmanager
def protected(model: Any) -> Iterator[_Hold]:
    """After an error the model has the weights of the last whole step.

    Yields:
        A callback for what Keras runs inside the block.
    """
    hold = _Hold(model)
    try:
        yield hold
    except BaseException:
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        hold.give_back()
        raise


@contextlib.contextmanager
def _averaged_once(model: Any) -> Iterator[None]:
    """Keras puts averaged weights in place at the end of each `fit`; here several are one."""
    optimizer = model.optimizer
    finalize = optimizer.finalize_variable_values
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values
        finalize(model.trainable_weights)


class _Parts(keras.callbacks.CallbackList):
    """Callbacks for which several calls of `fit` are one."""

    def __init__(self, callbacks: list, model: Any, *, verbose: Any, epochs: int):
        show = {"add_progbar": verbose != 0, "verbose": verbose}
        show |= {"epochs": epochs, "steps": None}
        super().__init__(callbacks, add_history=True, model=model, **show)
        self._begun, self._logs = False, None

    def append(self, callback: Any) -> None:
        """Adds one more, behind the others."""
        callback.set_model(self.model)
        self.callbacks.append(callback)

    def begin(self, epoch: int, batch: int) -> tuple[int, int]:
        """Begins the run; where it goes on, if a callback such as BackupAndRestore knows."""
        model = self.model
        model.stop_training = False
        model._initial_epoch = None
        self.on_train_begin()
        self._begun = True
        restored, model._initial_epoch = model._initial_epoch, None
        return (epoch, batch) if restored is None else max((restored, 0), (epoch, batch))

    def on_train_begin(self, logs: Any = None) -> None:
        if not self._begun:
            super().on_train_begin(logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._logs = logs

    def finish(self) -> None:
        """Ends the run."""
        super().on_train_end(self._logs)
