"""From states of a row to one vector, and from choices to rows and back.

Knows which tokens are a row's. Leaves what the vector is used for to `keras_encdec.models`.
"""

from typing import Any, Literal, get_args

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import InputShape, Tensor

Pooling = Literal["last", "mean", "first"]


@keras.saving.register_keras_serializable(package="keras_encdec")
class Pool(keras.layers.Layer):
    """(B, S, D) states and (B, S) mask to (B, D).

    Args:
        pooling: `"last"`, the state of the last token (arXiv 2504.06225, section 4); `"mean"`, of
            all tokens, in float32; or `"first"`.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ValueError: if there is no such pooling.
    """

    def __init__(self, pooling: Pooling = "last", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check.one_of("pooling", pooling, get_args(Pooling))
        self.pooling = pooling

    def build(self, *input_shapes: InputShape) -> None:
        """Nothing: it has no weights."""

    def call(self, states: Tensor, padding_mask: Tensor) -> Tensor:
        """A row of padding alone gives its first state, or 0 for the mean."""
        there = padding_mask != 0
        if self.pooling == "mean":
            counts = ops.cast(there, "float32")
            total = ops.maximum(ops.sum(counts, axis=1, keepdims=True), 1.0)
            mean = ops.einsum("bs,bsd->bd", counts / total, ops.cast(states, "float32"))
            return ops.cast(mean, states.dtype)
        places = ops.arange(0, ops.shape(states)[1], dtype="int32")
        if self.pooling == "last":
            place = ops.max(ops.where(there, places, 0), axis=1)
        else:
            place = ops.argmax(ops.cast(there, "int32"), axis=1)
        place = ops.cast(place, "int32")[:, None, None]
        return ops.squeeze(ops.take_along_axis(states, place, axis=1), 1)

    def compute_output_spec(self, states: Tensor, padding_mask: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor((states.shape[0], states.shape[-1]), states.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pooling": self.pooling}


@keras.saving.register_keras_serializable(package="keras_encdec")
class ChoicesToRows(keras.layers.Layer):
    """(B, C, S) to (B * C, S)."""

    def call(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (-1, ops.shape(x)[-1]))

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor((None, x.shape[-1]), x.dtype)


@keras.saving.register_keras_serializable(package="keras_encdec")
class RowsToChoices(keras.layers.Layer):
    """(B * C, 1) to (B, C).

    Args:
        count: C.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = count

    def call(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (-1, self.count))

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor((None, self.count), x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "count": self.count}
