"""Means of weights: over the steps of a run, and over its checkpoints.

Knows what is averaged, and when it stands in the model in place of the last step's weights. Leaves
files to `keras_encdec.training.checkpoint`, which keeps the averages of a run that goes on, and
finished models to `keras_encdec.sharing.merge`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor
from keras_encdec.training.calls import steps_done
from keras_encdec.training.checkpoint import Checkpoint


class WeightAverage(keras.callbacks.Callback):
    """Keeps an exponential mean of what trains, in float32.

    a_0 = w_0, the weights when training begins, and a_t = d a_(t-1) + (1 - d) w_t after each step
    of the optimizer. It starts at the weights, unlike that of Keras' optimizers
    (`use_ema`), which are therefore refused beside it. WARP anchors a policy at such a mean
    (arXiv 2406.16768, section 3.1).

    With a `keras_encdec.training.Checkpoint` it goes on exactly. Under LoRA, what trains is
    averaged, and nothing else.

    Args:
        decay: d.
        start: steps of the optimizer before which the mean is the weights themselves.
        in_place: whether the mean is what training gives: `validation_data` is evaluated on it,
            and it is put into the model at the end of `fit`. Otherwise the model keeps the weights
            of the last step, and the mean is there by `swapped` and `put`.

    Raises:
        ValueError: if an argument is out of range; in `fit`, with `steps_per_execution`, which
            hides steps, or beside what puts other weights into the model.

    Example:
        >>> average = keras_encdec.training.WeightAverage(decay=0.999)
        >>> lm.fit(texts, validation_data=held_out, callbacks=[average])
    """

    def __init__(self, decay: float = 0.999, *, start: int = 0, in_place: bool = True):
        super().__init__()
        self.decay = check.real("decay", decay, least=0, below=1)
        self.start = check.whole("start", start, least=0)
        self.in_place = check.flag("in_place", in_place)
        self.values: list[Tensor] = []
        self._variables: list[keras.Variable] = []
        self._kept: list[Tensor] = []  # of the last step, while the mean is in their place

    def facts(self) -> dict[str, Any]:
        """What is said of it in the record of a run."""
        return {"decay": self.decay, "start": self.start, "in_place": self.in_place}

    def follow(self, model: Any) -> None:
        """Begins at the weights as they are; `fit` calls this.

        By hand, it lets `Checkpoint.restore` bring back averages of an earlier process.

        Args:
            model: a compiled task.

        Raises:
            ValueError: as the class.
        """
        if model.steps_per_execution > 1:
            raise ValueError(
                "Expected steps_per_execution=1, to see the weights after each step. Received: "
                f"{model.steps_per_execution}."
            )
        if getattr(getattr(model.optimizer, "inner_optimizer", model.optimizer), "use_ema", False):
            raise ValueError(
                "Expected one mean of the weights. Received: an optimizer with use_ema=True, which "
                "keeps its own. Leave that out."
            )
        self.set_model(model)
        model.averaging = self
        self._variables, self._kept = list(model.trainable_variables), []
        self.take([_copy(variable, "float32") for variable in self._variables])

    def take(self, values: Sequence[Tensor]) -> None:
        """Takes over averages that belong to the weights as they are."""
        self.values, self._step = list(values), steps_done(self.model)

    def note(self) -> None:
        """Follows the last step, if it has not yet: whoever looks first may call this."""
        _sync(self.model)
        step = steps_done(self.model)
        if step == self._step:
            return
        share = 1.0 if step <= self.start else 1 - self.decay
        self.values = nearer(self.values, [v.value for v in self._variables], share)
        self._step = step

    def put(self) -> None:
        """Puts the mean into the model, rounded to the dtype of its weights.

        Raises:
            ValueError: before a `fit`.
        """
        if not self.values:
            raise ValueError("Expected a mean of weights. Received: none before fit. Call fit.")
        _sync(self.model)
        for variable, value in zip(self._variables, self.values, strict=True):
            variable.assign(_copy(value, variable.dtype))

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """In the block the model has the mean; behind it, its own weights again.

        Example:
            >>> with average.swapped():
            ...     lm.evaluate(held_out)
        """
        self._swap()
        try:
            yield
        finally:
            self._swap_back()

    def _swap(self) -> None:
        _sync(self.model)
        self._kept = [_copy(variable, variable.dtype) for variable in self._variables]
        self.put()

    def _swap_back(self) -> None:
        """Gives the model back what `_swap` took, if it did."""
        for variable, value in zip(self._variables, self._kept, strict=False):
            variable.assign(value)
        self._kept = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.note()

    def on_test_begin(self, logs: Any = None) -> None:
        if self.in_place:
            self._swap()

    def on_test_end(self, logs: Any = None) -> None:
        self._swap_back()

    def on_train_end(self, logs: Any = None) -> None:
        if self.in_place:
            self.put()

    def on_fit_interrupted(self) -> None:
        """`lm.fit` calls this when an error ends it: the weights of the last step stay."""
        self._swap_back()


def find(callbacks: Iterable[Any]) -> WeightAverage | None:
    """The one among some callbacks.

    Raises:
        ValueError: if there are two, or another one puts weights into the model as well.
    """
    every = list(callbacks)
    found = [callback for callback in every if isinstance(callback, WeightAverage)]
    if len(found) > 1:
        raise ValueError(f"Expected one WeightAverage. Received: {len(found)}.")
    in_place = any(average.in_place for average in found)
    if in_place and any(getattr(other, "restore_best_weights", False) for other in every):
        raise ValueError(
            "Expected one callback that says which weights training gives. Received: WeightAverage "
            "and one with restore_best_weights=True. Use a Checkpoint with best=..., or "
            "in_place=False."
        )
    return found[0] if found else None


def mean_of_checkpoints(
    model: Any, checkpoint: Checkpoint, steps: Sequence[int] | None = None
) -> list[int]:
    """Puts the mean of the weights of several checkpoints into a model.

    As of the last checkpoints of the Transformer (arXiv 1706.03762, section 6.1). Means are taken
    in float32; optimizer, seeds and record are those of the last one.

    Args:
        model: as of `Checkpoint.restore`.
        checkpoint: with the folder of the run; its `keep` decided how many there are.
        steps: their numbers; all that are kept if None.

    Returns:
        The numbers.

    Raises:
        ValueError: if there is no checkpoint, or as `Checkpoint.restore`.

    Example:
        >>> checkpoint = keras_encdec.training.Checkpoint("./run", keep=5)
        >>> lm.fit(texts, epochs=5, callbacks=[checkpoint])
        >>> keras_encdec.training.mean_of_checkpoints(lm, checkpoint)
    """
    saved = checkpoint.saved_steps()
    chosen = sorted({check.one_of("steps", step, saved) for step in steps or saved})
    if not chosen:
        raise ValueError(f"Expected checkpoints in {checkpoint.folder}. Received: none.")
    checkpoint.restore(model, chosen[-1])
    variables = [v for v in model.variables if "float" in v.dtype]  # others are states of seeds
    means = [_copy(variable, "float32") for variable in variables]
    for count, step in enumerate(chosen[:-1], 2):
        for place, value in enumerate(checkpoint.weights(model, step, variables)):
            means[place] = means[place] + (ops.cast(value, "float32") - means[place]) / count
    for variable, mean in zip(variables, means, strict=True):
        variable.assign(ops.cast(mean, variable.dtype))
    model.backbone.record.add("averaged", steps=chosen)
    return chosen


def nearer(values: list[Tensor], weights: list[Tensor], share: float) -> list[Tensor]:
    """Means in float32, by a share nearer to weights: a + s (w - a)."""
    return _program()(values, weights, share)


@functools.cache
def _program() -> Callable[[list[Tensor], list[Tensor], float], list[Tensor]]:
    """`_nearer`, on JAX as one program instead of some for each weight."""
    if keras.backend.backend() != "jax":
        return _nearer
    import jax

    return jax.jit(_nearer)


def _nearer(values: list[Tensor], weights: list[Tensor], share: float) -> list[Tensor]:
    pairs = zip(values, weights, strict=True)
    return [value + share * (_copy(weight, "float32") - value) for value, weight in pairs]


def _copy(value: Any, dtype: str) -> Tensor:
    """Of its own memory: a step of JAX gives away that of the weights."""
    return ops.cast(ops.stop_gradient(value), dtype) * 1.0


def _sync(model: Any) -> None:
    """On JAX, Keras keeps the state of a run outside the variables."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
