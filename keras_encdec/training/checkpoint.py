"""Everything that a run needs to go on as if nothing had happened, in one folder.

Knows what a state is (weights, optimizer, seeds, running metrics, place in the data) and
when it is written. Orbax writes it: in the background, whole or not at all, each device
its own share. Leaves finding the place in the data to `keras_encdec.training.run`, and where
the files lie to `keras_encdec.training.checkpoint_files`.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encdec import check, formats
from keras_encdec.spec import Tensor
from keras_encdec.training.calls import batches_behind, steps_done
from keras_encdec.training.checkpoint_about import (
    Facts,
    check_goes_on,
    check_same,
    model_facts,
    run_facts,
    variables_of,
)
from keras_encdec.training.checkpoint_files import (
    is_of_the_disk,
    location,
    orbax,
    reason,
    shows_damage,
)
from keras_encdec.warn import warn

State = dict[str, list[Tensor]]


class Checkpoint(keras.callbacks.Callback):
    """Saves the state of a run, and lets the same `fit` go on where a kill left it.

    In a new process, build and compile the model as before and call the same `fit`: the
    weights after it are, bit for bit, those of a run that nobody interrupted. What other
    callbacks remember is theirs to keep. What the call has changed since (data, batch size,
    objective, loss, learning rate, ...) is said by a warning and taken at the end of an epoch;
    in the middle of one, other batches are an error.

    Args:
        folder: of the run; a new one begins from the start. A URL such as
            `"gs://bucket/run"` too. On several hosts, one that all of them see.
        every: batches between checkpoints; there is one at the end of each epoch, too.
        keep: how many of the latest are kept, at least 2: one may be in the making.
        best: a log of the end of an epoch, such as `"val_loss"`: the checkpoint with the
            best value is kept, too.
        mode: `"min"` or `"max"`, what is best.

    Raises:
        ValueError: if an argument is out of range, or the folder a URL that Orbax does
            not know.
        ImportError: if Orbax is not installed.

    Example:
        >>> checkpoint = keras_encdec.training.Checkpoint("./run", best="val_loss")
        >>> lm.fit(texts, epochs=3, callbacks=[checkpoint])
        >>> checkpoint.restore(lm, "best")
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        every: int = 500,
        keep: int = 2,
        best: str | None = None,
        mode: str = "min",
    ):
        super().__init__()
        self.every, self.keep = check.whole("every", every), check.whole("keep", keep, least=2)
        self.best, self.mode = best, check.one_of("mode", mode, ("min", "max"))
        if best is not None and not isinstance(best, str):
            raise ValueError(f"Expected best as the name of a log. Received: {best!r}.")
        self.folder = location(folder)
        self._manager: Any = None
        self._offset = 0  # of an epoch that is resumed
        self._metrics: list = []
        self._run: Facts = {}

    # What a state is.

    def restore(self, model: Any, which: str | int = "latest") -> tuple[int, int] | None:
        """Puts a checkpoint into a compiled model.

        Args:
            model: the model that was saved, compiled as it was.
            which: `"latest"`, `"best"` or the number of a step.

        Returns:
            `(epoch, batch)` where training goes on, or None where nothing was saved.

        Raises:
            ValueError: if it is of another model or optimizer, damaged, or no
                checkpoint of this package.
        """
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        step = self._step(self._open(), which)
        return None if step is None else self._restore(model, step)

    def _restore(self, model: Any, step: int, run: Facts | None = None) -> tuple[int, int]:
        """Puts a step into a model, if it and the run, where one goes on, are as they were."""
        folder = self.folder / str(step)
        about = self._about(step)
        check_same(about, model_facts(model), str(folder))
        made = about.get("run") or {}  # none in those of earlier versions
        if run and made:
            check_goes_on(made, run, about["batch"], str(folder))
        found = self._state(model, step)
        _assign(model, found.state)
        if model.averaging is not None:
            model.averaging.take([ops.convert_to_tensor(v) for v in found.average])
        self._metrics = found.state["metrics"]
        if "provenance" in about:  # of a version that kept one
            model.backbone.record.take(about["provenance"], folder, goes_on=run is not None)
        rate = (run or {}).get("learning_rate")
        if made and isinstance(rate, float) and rate != made["learning_rate"]:
            model.optimizer.learning_rate = rate  # a schedule is not saved
        return about["epoch"], about["batch"]

    def weights(self, model: Any, step: int, variables: Sequence[keras.Variable]) -> list[Tensor]:
        """The values that some variables of a model have in a checkpoint.

        Args:
            model: as of `restore`; it stays as it is.
            step: the number of one.
            variables: of the model.

        Raises:
            ValueError: as `restore`.
        """
        check_same(self._about(step), model_facts(model), str(self.folder / str(step)))
        values = zip(model.variables, self._state(model, step).state["model"], strict=True)
        by_variable = {id(variable): value for variable, value in values}
        return [by_variable[id(variable)] for variable in variables]

    def _state(self, model: Any, step: int) -> Any:
        """What is stored of a model, as `state`, and as `average` where one is followed."""
        return self._read(
            step,
            **{
                name: orbax().args.StandardRestore(_abstract(values))
                for name, values in _stored(model).items()
            },
        )

    def _about(self, step: int) -> Facts:
        """What a checkpoint is of.

        Raises:
            ValueError: if it is damaged, or no checkpoint of this package.
        """
        folder = self.folder / str(step)
        if not (folder / "about").exists():
            raise ValueError(
                f"Expected a checkpoint of keras_encdec. Received: {folder}, without its 'about'. "
                "Use another folder, or copy the checkpoint again."
            )
        about = self._read(step, about=orbax().args.JsonRestore()).about
        formats.check_known("checkpoint", about, folder)
        return about

    def record(self, step: int) -> dict[str, Any]:
        """What was known of the model's past at a step: see `keras_encdec.provenance`.

        Raises:
            ValueError: if there is no such checkpoint, or it is damaged.
        """
        about = self._about(check.one_of("step", step, self.saved_steps()))
        return about.get("provenance", {"sources": {}, "history": []})  # none in early versions

    def saved_steps(self) -> list[int]:
        """Numbers of the steps whose checkpoints are whole, oldest first."""
        return sorted(self._open().all_steps())

    def save(self, epoch: int, batch: int, metrics: dict[str, float] | None = None) -> None:
        """Writes the state in the background.

        Args:
            epoch: the epoch that goes on.
            batch: its batches that are behind.
            metrics: logs that `best` chooses by.

        Raises:
            OSError: if there was no room or no right to write it, or the one before.
                Older ones are as they were.
        """
        model, args = self.model, orbax().args
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        step = steps_done(model)
        if model.averaging is not None:
            model.averaging.note()
        if model.recording is not None:
            model.recording.note()
        about = {**model_facts(model), "run": self._run, "epoch": epoch, "batch": batch}
        about |= {**formats.mark("checkpoint"), "provenance": model.backbone.record.to_json()}
        with self._writing() as manager:
            if step in manager.all_steps():
                manager.wait_until_finished()
                manager.delete(step)
            stored = {name: args.StandardSave(v) for name, v in _stored(model).items()}
            manager.save(
                step, args=args.Composite(**stored, about=args.JsonSave(about)), metrics=metrics
            )

    # When it is written.

    def resume(self, model: Any, batches: Mapping[str, Any]) -> tuple[int, int]:
        """As `restore`, for `fit`: also remembers the run, and that its next epoch is half done.

        Args:
            model: as of `restore`.
            batches: what the batches of the run follow from.

        Raises:
            ValueError: as `restore`; or if an epoch is half done, and now has other batches.
        """
        self._run = run_facts(model, batches)
        step = self._step(self._open(), "latest")
        position = (0, 0) if step is None else self._restore(model, step, self._run)
        self._offset = position[1]
        return position

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        together = getattr(self.model, "steps_per_execution", 1)
        if together > 1 and not self.params.get("steps"):
            raise ValueError(
                "Expected data that knows its number of batches, to find one again with "
                f"steps_per_execution. Received: a stream, and {together}. Give fit "
                "steps_per_epoch, or leave steps_per_execution at 1."
            )
        self._epoch, self._first, self._batch = epoch, self._offset, self._offset
        if self._offset:  # Keras has reset the metrics: they go on, too
            for variable, value in zip(self.model.metrics_variables, self._metrics, strict=True):
                variable.assign(value)
        self._offset = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        steps = self.params.get("steps")
        before, self._batch = self._batch, self._first + batches_behind(batch, steps)
        with self._writing() as manager:
            manager.check_for_errors()
        due = self._batch // self.every > before // self.every
        last = bool(steps) and batch + 1 >= steps  # the epoch's end saves
        if due and not last and np.isfinite(float(logs["loss"])):
            self.save(self._epoch, self._batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not np.isfinite(logs["loss"]):
            return
        if self.best is not None and self.best not in logs:
            raise ValueError(
                f"Expected best to be one of {sorted(logs)}. Received: {self.best!r}. "
                "Give fit validation_data for a val_loss."
            )
        self.save(epoch + 1, 0, {self.best: float(logs[self.best])} if self.best else None)

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def on_fit_interrupted(self) -> None:
        """`lm.fit` calls this when an error ends it, which stays the one that is raised."""
        try:
            self.close()
        except Exception as error:  # Orbax raises errors of many types
            warn(f"The last checkpoint was not written: {error}")

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            OSError: as `save`.
        """
        if self._manager is not None:
            with self._writing() as manager:
                manager.wait_until_finished()
            self._drop()

    # Orbax.

    def _open(self) -> Any:
        if self._manager is None:
            policy = orbax().checkpoint_managers.preservation_policy
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
            options = orbax().CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(kept),
                best_fn=None if self.best is None else lambda metrics: metrics[self.best],
                best_mode=self.mode,
            )
            self._manager = orbax().CheckpointManager(self.folder, options=options)
        return self._manager

    def _drop(self) -> None:
        """Lets go of the folder; what is there is read anew."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def _step(self, manager: Any, which: str | int) -> int | None:
        if which in ("latest", "best"):
            return manager.latest_step() if which == "latest" else manager.best_step()
        if which not in manager.all_steps():
            raise ValueError(
                f"Expected 'latest', 'best' or a step of {self.saved_steps()}. Received: {which!r}."
            )
        return int(which)

    def _read(self, step: int, **items: Any) -> Any:
        folder = self.folder / str(step)
        try:
            return self._open().restore(step, args=orbax().args.Composite(**items))
        except Exception as error:  # Orbax raises errors of many types
            if not shows_damage(error):
                error.add_note(f"This came from reading {folder}.")
                raise
            others = [other for other in self.saved_steps() if other != step]
            raise ValueError(
                f"Expected a whole checkpoint. Received: {folder}, which cannot be read "
                f"({reason(error)}). Delete that folder to go on from {others or 'the start'}."
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        """The manager. After an error it is closed, and one of the disk says what is still good."""
        try:
            yield self._open()
        except Exception as error:  # Orbax raises errors of many types
            # On disk, as the one that failed is among those that the manager remembers.
            steps = [] if self._manager is None else sorted(self._manager.all_steps(read=True))
            with contextlib.suppress(Exception):  # it tells of the same error once more
                self._drop()
            if not is_of_the_disk(error):
                error.add_note(f"This came from writing to {self.folder}.")
                raise
            good = (
                f"The last good one (step {steps[-1]}) is as it was"
                if steps
                else "No checkpoint was written"
            )
            raise OSError(
                f"Expected room for a checkpoint in {self.folder}, and the right to write there. "
                f"Received: {reason(error)}. {good}: mend the disk and call the same fit."
            ) from error


def _stored(model: Any) -> dict[str, Any]:
    """What a checkpoint holds beside `about`, by name."""
    state = {"state": _values(model)}
    if model.averaging is None:
        return state
    averages = model.averaging.values
    if keras.backend.backend() != "jax":
        averages = [np.array(ops.convert_to_numpy(value)) for value in averages]
    return {**state, "average": averages}


def _values(model: Any) -> State:
    if keras.backend.backend() == "jax":
        return {kind: [v.value for v in some] for kind, some in variables_of(model).items()}
    values: State = {
        kind: [np.array(ops.convert_to_numpy(v.value)) for v in some]
        for kind, some in variables_of(model).items()
    }
    return values | {"random": [get().numpy() for get, _ in _generators()]}


def _generators() -> list[tuple[Callable, Callable]]:
    """What gets and sets the state of PyTorch's own generators.

    Keras draws dropout without a seed from them (keras/src/backend/torch/random.py).
    """
    if keras.backend.backend() != "torch":
        return []
    import torch

    found: list[tuple[Callable, Callable]] = [(torch.get_rng_state, torch.set_rng_state)]
    if torch.cuda.is_available():
        found.append((torch.cuda.get_rng_state, torch.cuda.set_rng_state))
    return found


def _abstract(values: State) -> Any:
    """What Orbax is to restore: shapes, dtypes and where each device's share goes."""
    if keras.backend.backend() != "jax":
        return values
    import jax

    return jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding), values
    )


def _assign(model: Any, state: State) -> None:
    for kind, some in variables_of(model).items():
        for variable, value in zip(some, state[kind], strict=True):
            variable.assign(value)
    for (_, put), value in zip(_generators(), state.get("random", ()), strict=True):
        put(ops.convert_to_tensor(value).cpu())
