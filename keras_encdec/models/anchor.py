"""What a policy stays near to: its weights of a moment, a mean over its training, or another task.

Knows copies of what trains, which take its place for a moment; what is frozen is shared. Leaves
how answers are scored to `keras_encdec.models.reference`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encdec.models.reference import answers_scored, check_reference
from keras_encdec.spec import Tensor
from keras_encdec.training.averaging import nearer


class _Kept:
    """A copy of a variable, as a checkpoint takes it."""

    path = ""

    def __init__(self, variable: Any, dtype: str | None = None):
        self.of, self.shape = variable, variable.shape
        self.dtype = dtype or variable.dtype
        self.assign(variable.value)

    def assign(self, value: Any) -> None:
        value = ops.cast(ops.convert_to_tensor(value), self.dtype)
        self.value: Tensor = ops.copy(ops.stop_gradient(value))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """On JAX without a copy: there an array never changes."""
        variable = self.of
        if keras.backend.backend() == "jax":
            own, variable._value = variable._value, ops.cast(self.value, variable.dtype)
            try:
                yield
            finally:
                variable._value = own
            return
        own = ops.copy(ops.stop_gradient(variable.value))
        variable.assign(ops.cast(self.value, variable.dtype))
        try:
            yield
        finally:
            variable.assign(own)


class Anchor:
    """The weights of a model that train, as they are now.

    Args:
        model: a task.
        follows: whether they are to follow the model, for which they are kept in float32.
    """

    def __init__(self, model: Any, follows: bool = False):
        dtype = "float32" if follows else None
        self._model = model
        self.variables = [_Kept(v, dtype) for v in model.trainable_variables]

    def scored(self, *args: Any) -> np.ndarray:
        """(B, G) log-probabilities of answers; see `answers_scored`."""
        with self._in_place():
            return answers_scored(self._model, *args)

    def follow(self, rate: float) -> None:
        """Takes a share of the model's weights: a + rate (w - a)."""
        weights = [kept.of.value for kept in self.variables]
        values = nearer([kept.value for kept in self.variables], weights, rate)
        for kept, value in zip(self.variables, values, strict=True):
            kept.value = value

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """While it is open, the model has these weights."""
        with contextlib.ExitStack() as stack:
            for kept in self.variables:
                stack.enter_context(kept.in_place())
            yield


class Other:
    """Another task, which stays as it is.

    Args:
        model: that is compared with it.
        task: of the same vocabularies.

    Raises:
        ValueError: if it is none.
    """

    def __init__(self, model: Any, task: Any):
        check_reference(model, task)
        self._task, self.variables = task, list[Any]()

    def scored(self, *args: Any) -> np.ndarray:
        """As of `Anchor`."""
        return answers_scored(self._task, *args)
