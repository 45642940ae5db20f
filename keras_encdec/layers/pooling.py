"""From states of a row to one vector or to fewer states, and from choices to rows and back.

Knows which tokens are a row's. Leaves what the vector is used for to `keras_encdec.models`.
"""

from typing import Any, Literal, get_args

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.layers import masks
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
class PoolGroups(keras.layers.Layer):
    """(B, S, D) states and (B, S) mask to (B, G, D) states and (B, G) mask, G = S / r rounded up.

    Each is the mean, in float32, of r tokens that stand one behind the other, the last of a row of
    those that are left (arXiv 2606.22807). Padding is in no mean, wherever it stands.

    Args:
        size: r; 1 leaves states as they are.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ValueError: if `size` is no whole number of 1 or more.
    """

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = check.whole("pooling", size)

    def build(self, *input_shapes: InputShape) -> None:
        """Nothing: it has no weights."""

    def call(self, states: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The mask holds 1 for a group of some tokens, 0 for one of none, whose state is 0."""
        groups = ops.arange(0, self._groups(ops.shape(states)[1]), dtype="int32")
        group = masks.positions(ops.cast(padding_mask != 0, "int32")) // self.size
        member = (group[:, None] == groups[:, None]) & (padding_mask != 0)[:, None]
        member = ops.cast(member, "float32")  # (B, G, S)
        counts = ops.sum(member, axis=-1)
        shares = member / ops.maximum(counts, 1.0)[..., None]
        means = ops.einsum("bgs,bsd->bgd", shares, ops.cast(states, "float32"))
        return ops.cast(means, states.dtype), ops.cast(counts > 0, "int32")

    def _groups(self, length: Any) -> Any:
        return -(-length // self.size)

    def compute_output_spec(
        self, states: Tensor, padding_mask: Tensor
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        rows, length, width = states.shape
        groups = None if length is None else self._groups(length)
        means = keras.KerasTensor((rows, groups, width), states.dtype)
        return means, keras.KerasTensor((rows, groups), "int32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}


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
