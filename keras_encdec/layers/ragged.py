"""A product of rows with matrices, where rows that stand together share one.

Knows how each backend multiplies groups of unlike sizes, and that no row meets a matrix that is
not its own. Leaves which rows belong together to `keras_encdec.layers.experts`.
"""

from typing import Any

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.spec import Tensor


def product(rows: Tensor, matrices: Tensor, sizes: Tensor, scales: Tensor | None = None) -> Tensor:
    """Each group of rows times its matrix.

    Args:
        rows: (R, D), those of the first group first.
        matrices: (E, D, F), of the dtype of rows; or codes in int8.
        sizes: (E,) int32, rows of each group; together at most R. What stands behind them
            belongs to none.
        scales: (E, F) float32, what the columns of codes are divided by; None without codes. On
            accelerators all codes are decoded before the product, elsewhere those that are used.

    Returns:
        (R, F); rows of no group are 0.
    """
    rows, matrices, sizes = map(ops.convert_to_tensor, (rows, matrices, sizes))
    if keras.backend.backend() != "jax":
        return _one_by_one(rows, matrices, sizes, scales)
    if layout.platform() == "cpu":
        from keras_encdec.layers import ragged_blocks

        return ragged_blocks.product(rows, matrices, sizes, scales)
    import jax

    made = jax.lax.ragged_dot(rows, decoded(matrices, scales, rows.dtype), sizes)
    there = ops.arange(rows.shape[0]) < ops.sum(sizes)  # of others it says nothing
    return ops.where(there[:, None], made, 0)


def decoded(codes: Tensor, scales: Tensor | None, dtype: Any) -> Tensor:
    """(..., D, F) matrices of codes with scales (..., F); without scales, what they are."""
    if scales is None:
        return codes
    return ops.cast(ops.cast(codes, "float32") / scales[..., None, :], dtype)


def _one_by_one(rows: Tensor, matrices: Tensor, sizes: Tensor, scales: Tensor | None) -> Tensor:
    """A product for each group, of however many rows it has."""

    def matrix(i: int) -> Tensor:
        return decoded(matrices[i], None if scales is None else scales[i], rows.dtype)

    rest = ops.shape(rows)[0] - ops.sum(sizes)
    groups = _split(rows, ops.concatenate([sizes, ops.reshape(rest, (1,))]))
    products = [ops.matmul(group, matrix(i)) for i, group in enumerate(groups[:-1])]
    nothing = ops.matmul(ops.zeros_like(groups[-1]), matrix(0))
    return ops.concatenate([*products, nothing])


def _split(rows: Tensor, sizes: Tensor) -> Any:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.split(rows, sizes, num=sizes.shape[0])
    import torch

    return torch.split(rows, sizes.tolist())
