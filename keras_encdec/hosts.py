"""Several processes of one program: what all of them must know, and what one does for all.

Knows `jax.distributed`. Processes belong together while a `keras.distribution` is active: they
hold parts of the same arrays and make the same calls. Everywhere else there is one, and
everything here is what it would be without this module.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_encdec.private import get_stateless_scope
from keras_encdec.spec import Tensor

_ENDS = -1  # in place of the number of a tensor
_ERRORS = (ValueError, OSError, FloatingPointError)


def count() -> int:
    """How many processes make this call together."""
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is None:
        return 1
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes for all."""
    if count() == 1:
        return True
    import jax

    return jax.process_index() == 0


def whole(value: Tensor) -> np.ndarray:
    """All of a tensor, also where other processes hold parts of it; all of them make the call.

    With JAX on a CPU it is a view: Keras' own conversion copies bfloat16.
    """
    if count() == 1 or _is_here(value):
        as_it_lies = keras.backend.backend() == "jax" or isinstance(value, np.ndarray)
        return np.asarray(value) if as_it_lies else keras.ops.convert_to_numpy(value)
    return np.asarray(_multihost().process_allgather(value, tiled=True))


def check_same(what: str, fact: Any) -> None:
    """Compares what each process was given.

    Args:
        what: is compared, for the message.
        fact: of this process, of JSON types; or a function that makes it.

    Raises:
        ValueError: in all processes, if one has another.
    """
    if count() == 1:
        return
    text = json.dumps(fact() if callable(fact) else fact, sort_keys=True, default=repr)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    every = _multihost().process_allgather(np.frombuffer(digest, "uint8"))
    others = np.flatnonzero((every != every[0]).any(axis=1)).tolist()
    if others:
        raise ValueError(
            f"Expected the same {what} in every process. Received: in {others} other than in 0. "
            "Give all of them the same; each takes its share by itself."
        )


def of_first(function: Callable[[], Any], variables: Sequence[keras.Variable] = ()) -> Any:
    """What `function()` gives in the first process, in all of them; the others do not run it.

    Args:
        function: gives JSON types, such as None.
        variables: whose values it may read, one after another; what processes hold of each is
            put together when it is read.

    Raises:
        Exception: in all processes, what `function` raises in the first.
    """
    if count() == 1 or isinstance(get_stateless_scope(), _Gathered):
        return function()
    return _ask(function, variables) if is_first() else _serve(variables)


def by_first(method: Callable) -> Callable:
    """A method of a model that writes files, run by the first process alone, as in `of_first`."""

    @functools.wraps(method)
    def run(model: Any, *args: Any, **kwargs: Any) -> None:
        of_first(lambda: method(model, *args, **kwargs), model.weights)

    return run


def _ask(function: Callable[[], Any], variables: Sequence[keras.Variable]) -> Any:
    try:
        with _Gathered(variables):
            result = function()
    except BaseException as error:
        kinds = [kind.__name__ for kind in _ERRORS if isinstance(error, kind)]
        _tell({"error": str(error), "kinds": kinds})
        raise
    _tell({"result": result})
    return result


def _serve(variables: Sequence[keras.Variable]) -> Any:
    while (header := _shared(np.zeros(2, "int32")))[0] != _ENDS:
        whole(variables[int(header[0])]._value)
    said = json.loads(_shared(np.zeros(header[1], "uint8")).tobytes())
    if "error" not in said:
        return said["result"]
    kind = next((k for k in _ERRORS if k.__name__ in said["kinds"]), RuntimeError)
    raise kind(f"{said['error']} (said by the first process)")


def _tell(said: Any) -> None:
    message = np.frombuffer(json.dumps(said).encode(), "uint8")
    _shared(np.array([_ENDS, message.size], "int32"))
    _shared(message)


class _Gathered(keras.StatelessScope):
    """While it is open, `variable.value` is the whole array, on the host."""

    def __init__(self, variables: Sequence[keras.Variable]):
        super().__init__()
        self._numbers = {id(variable): number for number, variable in enumerate(variables)}

    def get_current_value(self, variable: keras.Variable) -> Any:
        number, value = self._numbers.get(id(variable)), variable._value
        if number is None or value is None:
            return value
        if not _is_here(value):
            _shared(np.array([number, 0], "int32"))
        return whole(value)


def _is_here(value: Any) -> bool:
    """Whether this process has all of an array."""
    return getattr(value, "is_fully_addressable", True) or value.is_fully_replicated


def _multihost() -> Any:
    from jax.experimental import multihost_utils

    return multihost_utils


def _shared(array: np.ndarray) -> np.ndarray:
    """The array of the first process, where each has one of the same shape."""
    return np.asarray(_multihost().broadcast_one_to_all(array))
