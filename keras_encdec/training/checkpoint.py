"""Everything that a run needs to go on as if nothing had happened, in one folder.

Knows what a state is (weights, optimizer, seeds, running metrics, place in the data) and
when it is written. Orbax writes it: in the background, whole or not at all, each device
its own share. Leaves finding the place in the data to `keras_encdec.training.run`.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np


class Checkpoint(keras.callbacks.Callback):
    """Saves the state of a run, and lets the same `fit` go on where a kill left it.

    In a new process, build and compile the model as before and call the same `fit`: the
    weights after it are, bit for bit, those of a run that nobody interrupted. What other
    callbacks remember is theirs to keep.

    Args:
        folder: of the run; a new one begins from the start. On several hosts, one that
            all of them see.
        every: steps between checkpoints; there is one at the end of each epoch, too.
        keep: how many of the latest are kept, at least 2: one may be in the making.
        best: a log of the end of an epoch, such as `"val_loss"`: the checkpoint with the
            best value is kept, too.
        mode: `"min"` or `"max"`, what is best.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> checkpoint = keras_encdec.training.Checkpoint("./run", best="val_loss")
        >>> lm.fit(texts, epochs=3, callbacks=[checkpoint])
        >>> checkpoint.restore(lm, "best")
    """

    def __init__(self, folder, *, every=500, keep=2, best=None, mode="min"):
        super().__init__()
        if every < 1 or keep < 2 or mode not in ("min", "max"):
            raise ValueError(
                "Expected every >= 1, keep >= 2, mode 'min' or 'max'. "
                f"Received: {every}, {keep}, {mode!r}."
            )
        self.folder = Path(folder).absolute()
        self.every, self.keep, self.best, self.mode = every, keep, best, mode
        self._manager: Any = None
        self._offset = 0  # of an epoch that is taken up
        self._metrics: list = []

    # What a state is.

    def restore(self, model, which="latest"):
        """Puts a checkpoint into a compiled model.

        Args:
            model: the model that was saved, built and compiled as it was.
            which: `"latest"`, `"best"` or the number of a step.

        Returns:
            `(epoch, batch)` where training goes on, or None where nothing was saved.

        Raises:
            ValueError: if it is of another model or optimizer, or damaged.
        """
        manager = self._open()
        step = self._step(manager, which)
        if step is None:
            return None
        about = self._read(step, about=_orbax().args.JsonRestore()).about
        _check_same(about, _about(model), self.folder / str(step))
        wanted = _orbax().args.StandardRestore(_abstract(_values(model)))
        state = self._read(step, state=wanted).state
        _assign(model, state)
        self._metrics = state["metrics"]
        return about["epoch"], about["batch"]

    def saved_steps(self) -> list[int]:
        """Numbers of the steps whose checkpoints are whole, oldest first."""
        return sorted(self._open().all_steps())

    def save(self, epoch, batch, metrics=None):
        """Writes the state in the background.

        Args:
            epoch: the epoch that goes on.
            batch: its batches that are behind.
            metrics: logs that `best` chooses by.

        Raises:
            OSError: if the last one could not be written. Older ones are as they were.
        """
        model, manager, args = self.model, self._open(), _orbax().args
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        step = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        about = {**_about(model), "epoch": epoch, "batch": batch}
        with self._explained():
            if step in manager.all_steps():
                manager.wait_until_finished()
                manager.delete(step)
            manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(_values(model)), about=args.JsonSave(about)
                ),
                metrics=metrics,
            )

    # When it is written.

    def resume(self, model):
        """As `restore`, for `fit`: also remembers that the next epoch is half done."""
        position = self.restore(model)
        self._offset = position[1] if position else 0
        return position or (0, 0)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batch = epoch, self._offset
        if self._offset:  # Keras has reset the metrics: they go on, too
            for variable, value in zip(self.model.metrics_variables, self._metrics, strict=True):
                variable.assign(value)
        self._offset = 0

    def on_train_batch_end(self, batch, logs=None):
        self._batch += self.model.steps_per_execution
        with self._explained():
            self._open().check_for_errors()
        due = self._batch % self.every < self.model.steps_per_execution
        last = batch + 1 >= (self.params.get("steps") or np.inf)  # the epoch's end saves
        if due and not last and np.isfinite(float(logs["loss"])):
            self.save(self._epoch, self._batch)

    def on_epoch_end(self, epoch, logs=None):
        if not np.isfinite(logs["loss"]):
            return
        if self.best is not None and self.best not in logs:
            raise ValueError(
                f"Expected best to be one of {sorted(logs)}. Received: {self.best!r}. "
                "Give fit validation_data for a val_loss."
            )
        self.save(epoch + 1, 0, self.best and {self.best: float(logs[self.best])})

    def on_train_end(self, logs=None):
        self.close()

    def on_fit_interrupted(self):
        self.close()

    def close(self):
        """Waits for what is being written."""
        if self._manager is not None:
            with self._explained():
                self._manager.wait_until_finished()
            self._manager.close()
            self._manager = None

    # Orbax.

    def _open(self):
        if self._manager is None:
            orbax = _orbax()
            policy = orbax.checkpoint_managers.preservation_policy
            kept = [policy.LatestN(n=self.keep)]
            if self.best is not None:
                kept.append(
                    policy.BestN(
                        get_metric_fn=lambda metrics: metrics[self.best],
                        reverse=self.mode == "min",
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    )
                )
            options = orbax.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(kept),
                best_fn=None if self.best is None else lambda metrics: metrics[self.best],
                best_mode=self.mode,
            )
            self._manager = orbax.CheckpointManager(self.folder, options=options)
        return self._manager

    def _step(self, manager, which):
        if which in ("latest", "best"):
            return manager.latest_step() if which == "latest" else manager.best_step()
        if which not in manager.all_steps():
            raise ValueError(
                f"Expected 'latest', 'best' or a step of {self.saved_steps()}. Received: {which!r}."
            )
        return which

    def _read(self, step, **items):
        try:
            return self._manager.restore(step, args=_orbax().args.Composite(**items))
        except Exception as error:  # Orbax raises errors of many types
            others = [other for other in self.saved_steps() if other != step]
            raise ValueError(
                f"Expected a whole checkpoint. Received: {self.folder / str(step)}, which cannot "
                f"be read ({error}). Delete that folder to go on from {others or 'the start'}."
            ) from error

    @contextlib.contextmanager
    def _explained(self):
        """Says of an error in writing what is still good."""
        try:
            yield
        except Exception as error:  # Orbax raises errors of many types
            steps = self.saved_steps()
            good = f"step {steps[-1]}" if steps else "none yet"
            raise OSError(
                f"Expected room for a checkpoint in {self.folder}. Received: {error}. The last "
                f"good one ({good}) is as it was: mend the disk and call the same fit."
            ) from error


def _orbax():
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            'Checkpoints need Orbax: pip install "keras-encdec[checkpoint]"'
        ) from error
    return orbax.checkpoint


def _variables(model) -> dict[str, list]:
    return {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }


def _values(model) -> dict[str, list]:
    if keras.backend.backend() == "jax":
        return {kind: [v.value for v in some] for kind, some in _variables(model).items()}
    return {
        kind: [np.array(keras.ops.convert_to_numpy(v)) for v in some]
        for kind, some in _variables(model).items()
    }


def _abstract(values):
    if keras.backend.backend() != "jax":
        return values
    import jax

    return jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding), values
    )


def _assign(model, state) -> None:
    for kind, some in _variables(model).items():
        for variable, value in zip(some, state[kind], strict=True):
            variable.assign(value)


def _about(model) -> dict:
    """What must be the same for a checkpoint to be this model's."""
    named = {id(v) for v in model.weights}  # others are numbered by what a process has built
    about: dict[str, Any] = {"pair": dataclasses.asdict(model.backbone.spec)}
    about["compiled with"] = type(model.optimizer).__name__
    for kind, some in _variables(model).items():
        about[kind] = [
            [v.path if id(v) in named else "", list(v.shape), str(v.dtype)] for v in some
        ]
    return about


def _check_same(saved: dict, ours: dict, folder: Path) -> None:
    ours = json.loads(json.dumps(ours))
    for key, expected in ours.items():
        if saved.get(key) != expected:
            raise ValueError(
                f"Expected a checkpoint of this model, compiled as it is. Received: {folder}, "
                f"where {key} differs: {_difference(saved.get(key), expected)}. Build and compile "
                "the model as in the run, or use another folder."
            )


def _difference(saved, ours) -> str:
    if isinstance(saved, dict) and isinstance(ours, dict):
        key = next(key for key in ours if saved.get(key) != ours[key])
        return f"{key}, {_difference(saved.get(key), ours[key])}"
    if isinstance(saved, list) and isinstance(ours, list):
        if len(saved) != len(ours):
            return f"{len(saved)} there, {len(ours)} here"
        return next(f"{a} there, {b} here" for a, b in zip(saved, ours, strict=True) if a != b)
    return f"{saved!r} there, {ours!r} here"
