"""Products of groups of rows with a matrix each, on JAX on CPUs, as a loop over blocks.

XLA multiplies all rows by all matrices there for a ragged product (JAX 0.10.2,
`_ragged_dot_general_impl` in jax/_src/lax/lax.py). A block here is rows of one group, and there
are as many as the groups need, forward and backward.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from keras_encdec.layers import ragged
from keras_encdec.spec import Tensor

# Rows of a block, at most. Large blocks read a matrix less often; small ones compute less that is
# thrown away, as a group's last block is filled up with rows behind it.
_BLOCK = 128


class _Blocks(NamedTuple):
    """The blocks of groups: up to each, how many there are; where each begins and ends."""

    height: int
    until: Tensor
    starts: Tensor
    ends: Tensor

    def of(self, i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of block i: its group, its first row, and (height, 1) which of its rows are its own."""
        group = jnp.searchsorted(self.until, i, side="right")
        before = jnp.where(group > 0, self.until[group - 1], 0)
        first = self.starts[group] + (i - before) * self.height
        return group, first, (first + jnp.arange(self.height) < self.ends[group])[:, None]


def _blocks(rows: Tensor, sizes: Tensor) -> _Blocks:
    """Each half as high as a group of the mean size, as a power of 2."""
    half = -(-rows.shape[0] // (2 * sizes.shape[0]))
    height = min(_BLOCK, 1 << (half - 1).bit_length())
    ends = jnp.cumsum(sizes)
    return _Blocks(height, jnp.cumsum(-(-sizes // height)), ends - sizes, ends)


@jax.custom_vjp
def product(rows: Tensor, matrices: Tensor, sizes: Tensor, scales: Tensor | None = None) -> Tensor:
    """As `keras_encdec.layers.ragged.product`; codes have no gradients."""
    return _multiplied(rows, matrices, sizes, scales)


def _multiplied(
    rows: Tensor, matrices: Tensor, sizes: Tensor, scales: Tensor | None, axis: int = 0
) -> Tensor:
    """Each row times its matrix along this axis of it."""
    blocks = _blocks(rows, sizes)
    rows = _padded(rows, blocks)

    def body(i: Tensor, out: Tensor) -> Tensor:
        group, first, own = blocks.of(i)
        some = jax.lax.dynamic_slice_in_dim(rows, first, blocks.height)
        scale = None if scales is None else scales[group]
        matrix = ragged.decoded(matrices[group], scale, rows.dtype)
        made = jax.lax.dot_general(some, matrix, (((1,), (axis,)), ((), ())))
        # Rows behind the group are those of later blocks, which write them again.
        return jax.lax.dynamic_update_slice_in_dim(out, jnp.where(own, made, 0), first, 0)

    out = jnp.zeros((rows.shape[0], matrices.shape[2 - axis]), rows.dtype)
    return jax.lax.fori_loop(0, blocks.until[-1], body, out)[: -blocks.height]


def _of_matrices(rows: Tensor, given: Tensor, sizes: Tensor) -> Tensor:
    """(E, D, F): each group's rows, transposed, times what its products were given."""
    blocks = _blocks(rows, sizes)
    rows, given = _padded(rows, blocks), _padded(given, blocks)

    def body(i: Tensor, out: Tensor) -> Tensor:
        group, first, own = blocks.of(i)
        some, other = (jax.lax.dynamic_slice_in_dim(x, first, blocks.height) for x in (rows, given))
        made = jnp.where(own, some, 0).T @ other
        return out.at[group].add(made.astype(out.dtype))

    out = jnp.zeros((sizes.shape[0], rows.shape[1], given.shape[1]), "float32")
    return jax.lax.fori_loop(0, blocks.until[-1], body, out).astype(rows.dtype)


def _padded(rows: Tensor, blocks: _Blocks) -> Tensor:
    """With a block's rows behind, so that the last block is whole."""
    return jnp.pad(rows, ((0, blocks.height), (0, 0)))


_Kept = tuple[Tensor, Tensor, Tensor, Tensor | None]


def _forward(
    rows: Tensor, matrices: Tensor, sizes: Tensor, scales: Tensor | None
) -> tuple[Tensor, _Kept]:
    return _multiplied(rows, matrices, sizes, scales), (rows, matrices, sizes, scales)


def _backward(kept: _Kept, given: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
    rows, matrices, sizes, scales = kept
    of_matrices = _of_matrices(rows, given, sizes) if scales is None else None
    return _multiplied(given, matrices, sizes, scales, axis=1), of_matrices, None, None


product.defvjp(_forward, _backward)
