"""A product of rows with matrices, where rows that stand together share one.

Knows how each backend multiplies groups of unlike sizes, and that no row meets a matrix that is
not its own. Leaves which rows belong together to `keras_encdec.layers.experts`.
"""

import functools
from typing import Any

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.spec import Tensor

# Rows that meet a matrix at once on CPUs. Of a group of 40 rows the last 8 are a block of
# their own, so smaller blocks waste less, and larger ones read a matrix less often.
_BLOCK = 128


def product(rows: Tensor, matrices: Tensor, sizes: Tensor) -> Tensor:
    """Each group of rows times its matrix.

    Args:
        rows: (R, D), those of the first group first.
        matrices: (E, D, F).
        sizes: (E,) int32, rows of each group; together at most R. What stands behind them
            belongs to none.

    Returns:
        (R, F); rows of no group are 0.
    """
    rows, matrices, sizes = map(ops.convert_to_tensor, (rows, matrices, sizes))
    if keras.backend.backend() != "jax":
        return _one_by_one(rows, matrices, sizes)
    if layout.platform() == "cpu":
        return _in_blocks()(rows, matrices, sizes)
    import jax

    return jax.lax.ragged_dot(rows, matrices, sizes)


def _one_by_one(rows: Tensor, matrices: Tensor, sizes: Tensor) -> Tensor:
    """A product for each group, of however many rows it has."""
    rest = ops.shape(rows)[0] - ops.sum(sizes)
    groups = _split(rows, ops.concatenate([sizes, ops.reshape(rest, (1,))]))
    products = [ops.matmul(group, matrices[i]) for i, group in enumerate(groups[:-1])]
    nothing = ops.matmul(groups[-1] * 0, matrices[0])
    return ops.concatenate([*products, nothing])


def _split(rows: Tensor, sizes: Tensor) -> Any:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.split(rows, sizes, num=sizes.shape[0])
    import torch

    return torch.split(rows, sizes.tolist())


@functools.cache
def _in_blocks() -> Any:
    """`product` on CPUs, where XLA multiplies all rows by all matrices for a ragged product.

    (JAX 0.10.2, `_ragged_dot_general_impl` in jax/_src/lax/lax.py.) Here it is a loop over
    blocks of rows of one group, as many as there are, forward and backward.
    """
    import jax
    import jax.numpy as jnp

    def blocks(sizes: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """How many there are up to each group; where each group begins and ends."""
        ends = jnp.cumsum(sizes)
        return jnp.cumsum(-(-sizes // size)), ends - sizes, ends

    def block(i: Tensor, until: Tensor, starts: Tensor, sizes: Tensor, size: int) -> Any:
        """Group and first row of block i."""
        group = jnp.searchsorted(until, i, side="right")
        before = until[group] - (-(-sizes[group] // size))
        return group, starts[group] + (i - before) * size

    def height(rows: Tensor) -> int:
        return min(_BLOCK, rows.shape[0])

    def multiplied(rows: Tensor, matrices: Tensor, sizes: Tensor, axis: int = 0) -> Tensor:
        """Along this axis of a matrix."""
        size = height(rows)
        until, starts, ends = blocks(sizes, size)
        rows = jnp.pad(rows, ((0, size), (0, 0)))

        def body(i: Tensor, out: Tensor) -> Tensor:
            group, first = block(i, until, starts, sizes, size)
            some = jax.lax.dynamic_slice_in_dim(rows, first, size)
            own = (first + jnp.arange(size) < ends[group])[:, None]
            made = jax.lax.dot_general(some, matrices[group], (((1,), (axis,)), ((), ())))
            made = jnp.where(own, made, 0)
            return jax.lax.dynamic_update_slice_in_dim(out, made, first, 0)  # in rising order

        out = jnp.zeros((rows.shape[0], matrices.shape[2 - axis]), rows.dtype)
        return jax.lax.fori_loop(0, until[-1], body, out)[:-size]

    def of_matrices(rows: Tensor, given: Tensor, sizes: Tensor) -> Tensor:
        """(E, D, F), each group's rows transposed times what its product was given."""
        size = height(rows)
        until, starts, ends = blocks(sizes, size)
        rows, given = (jnp.pad(x, ((0, size), (0, 0))) for x in (rows, given))

        def body(i: Tensor, out: Tensor) -> Tensor:
            group, first = block(i, until, starts, sizes, size)
            some, other = (jax.lax.dynamic_slice_in_dim(x, first, size) for x in (rows, given))
            own = (first + jnp.arange(size) < ends[group])[:, None]
            made = jnp.where(own, some, 0).T @ other
            return out.at[group].add(made.astype(out.dtype))

        out = jnp.zeros((sizes.shape[0], rows.shape[1], given.shape[1]), "float32")
        return jax.lax.fori_loop(0, until[-1], body, out).astype(rows.dtype)

    @jax.custom_vjp
    def run(rows: Tensor, matrices: Tensor, sizes: Tensor) -> Tensor:
        return multiplied(rows, matrices, sizes)

    def forward(rows: Tensor, matrices: Tensor, sizes: Tensor) -> tuple[Tensor, tuple]:
        return multiplied(rows, matrices, sizes), (rows, matrices, sizes)

    def backward(kept: tuple, given: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, matrices, sizes = kept
        return multiplied(given, matrices, sizes, axis=1), of_matrices(rows, given, sizes), None

    run.defvjp(forward, backward)
    return run
