"""A function compiled once for each set of shapes, and how often that was.

Knows what each backend needs for it: JAX the variables as arguments, TensorFlow a graph,
PyTorch no gradients. Leaves what is computed to `keras_encdec.generation.engine`.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops, tree


class Compiled:
    """`function(*tensors, **static)`, compiled.

    Args:
        function: of nested tensors by position, and of hashable values by name.
        variables: the `keras.Variable`s that it reads.
        donate: give the last argument's memory to JAX, which writes results there.
        eager: leave it as it is, for a debugger.
        xla: whether TensorFlow compiles its graph, which it cannot with experts.

    Attributes:
        eager: as given.
        count: programs compiled so far; always 0 where nothing is compiled.
    """

    def __init__(
        self,
        function: Callable,
        variables: Sequence[Any],
        donate: bool = False,
        eager: bool = False,
        xla: bool = True,
    ):
        self.function, self.variables, self.count = function, variables, 0
        self.eager, self._xla = eager, xla
        self._lock = threading.Lock()
        make = {"jax": self._jax, "tensorflow": self._tensorflow, "torch": self._torch}
        backend = keras.config.backend()
        self.run = function if eager and backend != "torch" else make[backend](donate)

    def __call__(self, *tensors: Any, **static: Any) -> Any:
        tensors = tree.map_structure(ops.convert_to_tensor, tensors)
        return self.run(*tensors, **static)

    def _counted(self, *tensors: Any, **static: Any) -> Any:
        with self._lock:
            self.count += 1  # runs where the function is traced, not where the program is
        return self.function(*tensors, **static)

    def _jax(self, donate: bool) -> Callable:
        import jax

        @functools.partial(jax.jit, static_argnums=3, donate_argnums=2 if donate else ())
        def program(values: list, first: list, last: Any, static: tuple) -> Any:
            mapping = list(zip(self.variables, values, strict=True))
            with keras.StatelessScope(mapping):
                return self._counted(*first, last, **dict(static))

        def run(*tensors: Any, **static: Any) -> Any:
            *first, last = tensors
            values = [variable.value for variable in self.variables]
            return program(values, first, last, tuple(sorted(static.items())))

        return run

    def _tensorflow(self, donate: bool) -> Callable:
        import tensorflow as tf

        return tf.function(self._counted, jit_compile=self._xla)

    def _torch(self, donate: bool) -> Callable:
        import torch

        return torch.no_grad()(self.function)
