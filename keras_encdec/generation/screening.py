"""When the output projection is screened: where it can be, and where it is measured to pay.

Knows the decoder's `Table`, made once for the weights there are, and what was measured of this
machine. Leaves the mathematics to `keras_encdec.generation.screen`.
"""

import logging
import statistics
import threading
import time
import weakref
from typing import Any

import keras
import numpy as np
from keras import ops
from keras_hub.samplers import GreedySampler

from keras_encdec.generation.choosing import Screened, choose
from keras_encdec.generation.screen import Table, table_of
from keras_encdec.spec import Tensor

_LEAST = 2**25  # numbers in a matrix that no cache of a CPU holds: what is saved is reading it
_MOST_ROWS = 32
_SHORT = 64  # tokens that there is room for, which do not earn the second that a table takes
_SHARE = 0.9  # of the whole projection's time, from which on a screen pays
_ROUNDS = 4

_SHARES: dict[tuple[Any, ...], float] = {}  # measured in this process
_MEASURING = threading.Lock()


class Screening:
    """The table of a decoder, and which steps use it.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
    """

    def __init__(self, decoder: Any):
        self.decoder = decoder
        self._lock = threading.Lock()
        self._made: tuple[Any, Table] | None = None

    def table(self, sampler: Any, rows: int, length: int) -> Table | tuple[()]:
        """`Table` for steps of `rows` tokens, or () where they ask the whole projection.

        Args:
            sampler: `keras_hub.samplers.Sampler`.
            rows: tokens of a step, of all rows of the batch.
            length: tokens that each row has room for.
        """
        setting, matrix = self.decoder.output_screen, self._matrix()
        if matrix is None or setting is False or type(sampler) is not GreedySampler:
            return ()
        if setting is True:
            return self._table_of(matrix)
        if matrix.size < _LEAST or rows > _MOST_ROWS or length <= _SHORT:
            return ()
        if self.decoder.compute_dtype != "float32":
            return ()  # rounding makes ties: of the embedded pair's tokens 27% are not certain
        sizes = matrix.shape, matrix.dtype, rows
        with _MEASURING:
            if sizes not in _SHARES:
                _SHARES[sizes] = self._measured(sampler, rows, matrix)
        return self._table_of(matrix) if _SHARES[sizes] < _SHARE else ()

    def _matrix(self) -> Tensor | None:
        """(V, D), the value of the variable that writes logits, or None where none can be screened.

        What is computed from several variables (LoRA, quantised) or read by columns is not.
        """
        embedding = self.decoder.embedding
        variables = embedding.variables
        if keras.backend.backend() != "jax" or keras.distribution.distribution() is not None:
            return None
        if len(variables) != 1 or not embedding.tie_weights or embedding.reverse_dtype:
            return None
        floats = {variables[0].dtype, self.decoder.compute_dtype}
        on_cpu = variables[0].value.devices().pop().platform == "cpu"
        return variables[0].value if on_cpu and floats <= {"float32", "bfloat16"} else None

    def _table_of(self, matrix: Tensor) -> Table:
        import jax

        with self._lock:
            made = self._made
            # An array of JAX never changes: while it is the same one, so are the weights.
            if made is None or made[0]() is not matrix:
                self._made = None  # two tables are never held
                dtype = self.decoder.compute_dtype
                table = jax.jit(lambda x: table_of(x.astype(dtype)))(matrix)
                self._made = made = weakref.ref(matrix), table
            return made[1]

    def _measured(self, sampler: Any, rows: int, matrix: Tensor) -> float:
        """The time of screened steps as a share of those that are not; logged."""
        import jax

        rng, width = np.random.default_rng(0), matrix.shape[1]
        states = rng.normal(size=(_ROUNDS, rows, 1, width))
        states = ops.cast(states.astype("float32"), self.decoder.compute_dtype)
        variable, index = self.decoder.embedding.variables[0], ops.zeros(rows, "int32")

        @jax.jit
        def ids(value: Tensor, states: Tensor, table: Table | tuple[()]) -> Tensor:
            with keras.StatelessScope([(variable, value)]):
                chooser = Screened(sampler, table) if table else sampler
                return choose(self.decoder, chooser, states, index, np.float32(1), [])

        seconds: dict[bool, list[float]] = {False: [], True: []}
        for i in range(_ROUNDS + 1):  # the first of which compiles
            for screened, times in seconds.items():
                table = self._table_of(matrix) if screened else ()
                start = time.perf_counter()
                jax.block_until_ready(ids(matrix, states[i % _ROUNDS], table))
                times.append(time.perf_counter() - start)
        whole, less = (statistics.median(times[1:]) for times in seconds.values())
        logging.getLogger("keras_encdec").info(
            "The output projection of %d tokens takes %.1f ms, screened in int8 %.1f ms (%d MB "
            "more memory): it is %s. backbone.output_screen decides otherwise.",
            *(rows, whole * 1e3, less * 1e3, self._table_of(matrix).nbytes / 1e6),
            "screened" if less < _SHARE * whole else "not screened",
        )
        return less / whole
