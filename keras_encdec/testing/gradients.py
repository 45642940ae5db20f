"""Gradients by Keras variables, on any backend, and by differences of NumPy.

Knows each backend's way to take them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encdec.spec import Tensor

Function = Callable[[], Tensor]
Variables = Sequence[keras.Variable]
ValueAndGradients = tuple[Tensor, Sequence[Tensor | None]]


def value_and_gradients(function: Function, variables: Variables) -> tuple[float, list[np.ndarray]]:
    """`function()` and its gradients.

    Args:
        function: takes nothing, returns a scalar tensor made of `variables`.
        variables: Keras variables.

    Returns:
        A float, and an array for each variable; zeros where nothing depends on it.
    """
    take = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[keras.backend.backend()]
    value, gradients = take(function, variables)
    return float(ops.convert_to_numpy(value)), [
        np.zeros(v.shape) if g is None else np.asarray(ops.convert_to_numpy(g), "float32")
        for v, g in zip(variables, gradients, strict=True)
    ]


def differences(
    function: Callable[..., Any], arrays: Sequence[np.ndarray], step: float = 1e-5
) -> list[np.ndarray]:
    """The gradient by each array, by central differences.

    Args:
        function: of float64 arrays, returns a number.
        arrays: where; they are as before in the end.
        step: to either side.
    """
    found = []
    for array in arrays:
        gradient = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            before, ends = array[place], []
            for end in (before + step, before - step):
                array[place] = end
                ends.append(function(*arrays))
            array[place] = before
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
        found.append(gradient)
    return found


def _jax(function: Function, variables: Variables) -> ValueAndGradients:
    import jax

    def of(values: Sequence[Tensor]) -> Tensor:
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function()

    return jax.jit(jax.value_and_grad(of))([v.value for v in variables])


def _tensorflow(function: Function, variables: Variables) -> ValueAndGradients:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = function()
    gradients = tape.gradient(value, [v.value for v in variables])
    return value, [g if g is None else tf.convert_to_tensor(g) for g in gradients]


def _torch(function: Function, variables: Variables) -> ValueAndGradients:
    for variable in variables:
        variable.value.grad = None
    value = function()
    value.backward()
    return value, [v.value.grad for v in variables]
