"""A function compiled once for each set of shapes, how often that was, and some at a time.

Knows what each backend needs for it: JAX the variables as arguments, TensorFlow a graph,
PyTorch no gradients. Leaves what is computed to `keras_encdec.generation.engine`.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Sequence
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
    ):
        self.function, self.variables, self.count = function, variables, 0
        self.eager = eager
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

    def shapes(self, *tensors: Any, **static: Any) -> Any:
        """What a call would return, as `jax.ShapeDtypeStruct`s; JAX traces it and keeps that."""
        return self._traced(tensors, static).out_info

    def ahead(self, *tensors: Any, **static: Any) -> Any:
        """Compiles what a call will run, on JAX; tensors may be `jax.ShapeDtypeStruct`s.

        Returns:
            As `shapes`.
        """
        lowered = self._traced(tensors, static).lower()
        lowered.compile()
        return lowered.out_info

    def _traced(self, tensors: tuple, static: dict[str, Any]) -> Any:
        import jax

        def known(x: Any) -> Any:
            return x if isinstance(x, jax.ShapeDtypeStruct) else ops.convert_to_tensor(x)

        *first, last = tree.map_structure(known, tensors)
        values = [variable.value for variable in self.variables]
        return self._program.trace(values, first, last, tuple(sorted(static.items())))

    def _jax(self, donate: bool) -> Callable:
        import jax

        @functools.partial(jax.jit, static_argnums=3, donate_argnums=2 if donate else ())
        def program(values: list, first: list, last: Any, static: tuple) -> Any:
            mapping = list(zip(self.variables, values, strict=True))
            with keras.StatelessScope(mapping):
                return self._counted(*first, last, **dict(static))

        self._program: Any = program

        def run(*tensors: Any, **static: Any) -> Any:
            *first, last = tensors
            values = [variable.value for variable in self.variables]
            return program(values, first, last, tuple(sorted(static.items())))

        return run

    def _tensorflow(self, donate: bool) -> Callable:
        import tensorflow as tf

        return tf.function(self._counted, jit_compile=True)

    def _torch(self, donate: bool) -> Callable:
        import torch

        return torch.no_grad()(self.function)


class Meanwhile:
    """Work beside what this thread compiles; XLA lets other threads go on."""

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._threads: list[threading.Thread] = []

    def is_new(self, case: Hashable) -> bool:
        """Whether this is asked for the first time."""
        there = case in self._seen
        self._seen.add(case)
        return not there

    def start(self, work: Callable[[], None]) -> None:
        """Begins work in a thread; what it raises is left to who asks for the same again."""

        def run() -> None:
            with contextlib.suppress(Exception):
                work()

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def wait(self) -> None:
        """Until all work has ended that was begun."""
        for thread in self._threads:
            thread.join()
        self._threads = [thread for thread in self._threads if thread.is_alive()]
