"""`fit`, `evaluate`, `predict` and their like: Keras' signatures, for every task.

Knows which batches each of them reads. What data is and which batches it makes, a task says;
epochs are `keras_encdec.training.run`'s and steps `keras_encdec.training.step`'s.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_encdec import check, hosts, layout
from keras_encdec.accelerators import check_seen
from keras_encdec.data.batching import Batching, BatchSource, split
from keras_encdec.data.facts import described, made_of
from keras_encdec.data.kinds import Source
from keras_encdec.data.labelled import Classes
from keras_encdec.data.recognize import unpacked
from keras_encdec.training import averaging, run
from keras_encdec.training.checkpoint_about import run_facts
from keras_encdec.training.recording import Recording
from keras_encdec.training.trainer import Trainer


class Learner(Trainer):
    """Gives a task what trains and evaluates it.

    A task says what data is (`_source`), which converter makes batches of it (`_converter`) and
    which they are (`_batch_source`); some also how they are made (`_batching`, `_classes`).
    """

    preprocessor: Any

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
    ) -> Any:
        """Trains; arguments as in `keras.Model.fit`, and the class says what `x` may be.

        Rows in memory are shuffled by the preprocessor's seed and the epoch, and what an
        objective leaves to chance is drawn anew in each epoch. With a
        `keras_encdec.training.Checkpoint` the same call goes on where a killed one was.
        After an error the model has the weights of the last whole step.

        Args:
            x: data.
            y: targets of texts, or labels of model inputs; -100 counts nothing.
            batch_size: B, 32 if None, or fewer where there are fewer rows.
            callbacks: one or a list.
            validation_split: share of the last rows, kept for validation.
            validation_data: what `x` may be, or `(x, y)`, or `(x, y, sample_weight)`.
            class_weight: what each token counts as a label, by id.
            sample_weight: what each row, or each of its targets, counts.
            steps_per_epoch: batches of an epoch, over as many passes as they need.

        Returns:
            `keras.callbacks.History`. Losses and metrics are means over tokens by weight.

        Raises:
            FloatingPointError: at the first loss that is NaN or Inf.
            ValueError: if data, teacher or optimizer cannot do what they are asked to.
        """
        self._assert_compile_called("fit")
        _check(batch_size, epochs, initial_epoch, validation_batch_size, validation_split, shuffle)
        source, held_out = self._source(x, y, sample_weight), None
        if validation_data is not None:
            held_out = self._source(*unpacked(validation_data))
        elif validation_split:
            source, held_out = split(self._in_memory(source), validation_split)
        rules = {"shuffle": shuffle, "steps": steps_per_epoch}
        batching = self._batching(batch_size, class_weight, epochs, **rules)
        batches = self._batches(source, batching)
        size, held = validation_batch_size or batch_size, None
        if held_out is not None:
            held = self._evaluated(held_out, size, validation_steps)
        made = source, self._converter, batching
        options = {"epochs": epochs, "verbose": verbose, "initial_epoch": initial_epoch}
        options |= {"validation_freq": validation_freq, "made_of": partial(made_of, *made)}
        return self._run(batches, held, callbacks, described(*made), **options)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Evaluates; takes what `fit` takes, and means are over tokens, as there."""
        if kwargs.pop("_use_cached_eval_dataset", False):  # Keras' own call, within `fit`
            return self._evaluate_within_fit(x, callbacks)
        self._assert_compile_called("evaluate")
        batches = self._evaluated(self._source(x, y, sample_weight), batch_size, steps)
        options = {"verbose": verbose, "callbacks": callbacks, **kwargs}
        return self._evaluate_batches(batches, return_dict, **options)

    def _evaluate_within_fit(self, x: Any, callbacks: Any) -> dict[str, Any]:
        options = {"return_dict": True, "_use_cached_eval_dataset": True}
        return keras.Model.evaluate(self, x, callbacks=callbacks, **options)

    def _evaluate_batches(self, batches: BatchSource, return_dict: bool, **options: Any) -> Any:
        with run.one_pass(self, batches) as adapter:
            return keras.Model.evaluate(self, adapter, return_dict=return_dict, **options)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """What the model says of each row that `fit` would train on, such as logits (N, T, V).

        Raises:
            ValueError: in one of several processes, each of which would hold a part of them.
        """
        if hosts.count() > 1:
            raise ValueError(
                f"Expected one process for logits. Received: {hosts.count()}. score and generate "
                "work on several."
            )
        batching = self._batching(
            batch_size, steps=steps, fill=False, last_stage=True, inputs_only=True
        )
        inputs = run.InputsAlone(self._made(self._source(x), batching))
        with run.one_pass(self, inputs) as adapter:
            return inputs.data(
                keras.Model.predict(self, adapter, verbose=verbose, callbacks=callbacks)
            )

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """As in Keras, on one batch of what `fit` takes."""
        source = self._source(x, y, sample_weight)
        batch = self._one_batch(source, class_weight=class_weight)
        with run.protected(self):
            found = keras.Model.train_on_batch(self, *batch, return_dict=return_dict)
        self.backbone.record.count("train_on_batch")
        return found

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """As in Keras, on one batch of what `fit` takes."""
        batch = self._one_batch(self._source(x, y, sample_weight))
        with run.protected(self):
            return keras.Model.test_on_batch(self, *batch, return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """As in Keras, on one batch of what `fit` takes."""
        inputs, *_ = self._one_batch(self._source(x), inputs_only=True)
        with run.protected(self):
            return keras.Model.predict_on_batch(self, inputs)

    # What a task says.

    @property
    def _converter(self) -> Any:
        """What makes batches of text, or None."""
        raise NotImplementedError

    def _source(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """What data is."""
        raise NotImplementedError

    def _batching(
        self,
        batch_size: int | None,
        class_weight: Mapping[int, float] | None = None,
        epochs: int | None = None,
        **options: Any,
    ) -> Batching:
        """How data is batched, in order unless `shuffle`.

        Args:
            batch_size: B, or None.
            class_weight: what each class counts.
            epochs: of a run that trains.
            **options: fields of `Batching` in place of the task's own.
        """
        own = {"shuffle": False, "epochs": epochs or 1, "multiple": layout.replicas()}
        return Batching(batch_size, **{**own, "classes": self._classes(class_weight), **options})

    def _classes(self, class_weight: Mapping[int, float] | None) -> Classes | None:
        """Which labels there may be; None for any."""
        if class_weight is not None:
            raise ValueError(
                "Expected no class_weight: there are no classes. Received: one. Weigh rows by "
                "sample_weight."
            )
        return None

    def _batch_source(self, source: Any, batching: Batching) -> BatchSource:
        """The batches of data."""
        raise NotImplementedError

    def _in_memory(self, source: Any) -> Any:
        """Data that can be split."""
        return source

    def _check_data(self, source: Any) -> None:
        """Raises ValueError where what is compiled cannot train on it."""

    # What `fit` and the others have in common.

    def _batches(self, source: Source, batching: Batching) -> BatchSource:
        """Batches to train on."""
        self.check_optimizer()
        self._check_data(source)
        batches = self._made(source, batching)
        if not batches.again and batching.epochs > 1 and batching.steps is None:
            raise ValueError(
                f"Expected data that can be gone through again for epochs={batching.epochs}. "
                f"Received: a {batches.name}, which is spent after one. Give steps_per_epoch, or "
                "a list or dataset."
            )
        return batches

    def _evaluated(self, source: Source, batch_size: int | None, steps: int | None) -> BatchSource:
        """Batches to evaluate on, in their order."""
        return self._made(source, self._batching(batch_size, steps=steps, last_stage=True))

    def _made(self, source: Source, batching: Batching) -> BatchSource:
        """Batches of data, which every process has given alike, for a model where it belongs."""
        optimizer = [] if self.optimizer is None else self.optimizer.variables
        layout.check_placed({"model": self.variables, "optimizer": optimizer})
        hosts.check_same(
            "data and options",
            lambda: [made_of(source, self._converter, batching), batching.epochs],
        )
        return self._batch_source(source, batching)

    def _facts(self, data: dict[str, Any]) -> dict[str, Any]:
        """What a record says of a run."""
        facts = run_facts(self, data)
        trained = sum(math.prod(v.shape) for v in self.trainable_variables)
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        facts |= {"optimizer": type(optimizer).__name__, "trained_parameters": trained}
        return {"data": facts.pop("batches"), **facts}

    def _run(
        self,
        batches: BatchSource,
        validation: BatchSource | None,
        callbacks: Any,
        data: dict[str, Any],
        **options: Any,
    ) -> Any:
        """Trains, from where a Checkpoint among the callbacks stands."""
        check_seen()
        given = listed(callbacks)
        checkpoint = run.find(given)
        if checkpoint is not None and not batches.again:
            raise ValueError(
                "Expected data whose batches can be found again, with a Checkpoint: texts, pairs, "
                f"arrays, a tf.data or a Grain dataset. Received: {batches.name}."
            )
        if checkpoint is not None:
            self._build_metrics(batches)
        self.averaging = averaging.find(given)
        own = Recording(self._facts(data)), run.TokensPerSecond(self._logs)
        every = [*own, *given, run.StopAtNaN(checkpoint)]
        with run.guarded(every):
            return run.run(self, batches, callbacks=every, validation=validation, **options)

    def _build_metrics(self, batches: BatchSource) -> None:
        """Gives metrics of the user's the variables that Keras makes at a first batch.

        A checkpoint of a run has them.
        """
        if self._compile_metrics is None:
            return
        first = next(iter(batches.read(0)), None)
        if first is not None:
            self._symbolic_build(data_batch=first)

    def _one_batch(self, source: Source, **options: Any) -> tuple:
        """All rows as one batch."""
        batching = self._batching(10**9, fill=False, multiple=1, last_stage=True, **options)
        return next(iter(self._batch_source(source, batching).read(0)))


def _check(
    batch_size: Any,
    epochs: Any,
    initial_epoch: Any,
    validation_batch_size: Any,
    split: Any,
    shuffle: Any,
) -> None:
    """What Keras would fail at later."""
    check.flag("shuffle", shuffle)
    check.whole("epochs", epochs, least=0)
    check.whole("initial_epoch", initial_epoch, least=0)
    check.real("validation_split", split, least=0, below=1)
    for name, size in (
        ("batch_size", batch_size),
        ("validation_batch_size", validation_batch_size),
    ):
        if size is not None:
            check.whole(name, size)


def listed(callbacks: Any) -> list:
    """One callback, several or none, as a list.

    Raises:
        ValueError: if there is something else among them.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    several = isinstance(callbacks, (list, tuple)) or callbacks is None
    found = list(callbacks or []) if several else [callbacks]
    for callback in found:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(f"Expected callbacks of Keras. Received: {callback!r}.")
    return found
