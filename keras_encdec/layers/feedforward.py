"""The gated feed-forward sublayer."""

import functools
from typing import Any

import keras
from keras import ops

from keras_encdec.layers.rows import project
from keras_encdec.spec import Activation, InputShape, Tensor
from keras_encdec.spec.stack import SWIGLU_ALPHA, SWIGLU_LIMIT

_ACTIVATIONS = {"gelu_tanh": functools.partial(ops.gelu, approximate=True), "silu": ops.silu}


def gated(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """What a gate lets through, by `StackSpec.activation`."""
    if activation == "clamped_swiglu":
        gate, up = ops.minimum(gate, SWIGLU_LIMIT), ops.clip(up, -SWIGLU_LIMIT, SWIGLU_LIMIT)
        return (up + 1) * gate * ops.sigmoid(SWIGLU_ALPHA * gate)
    return _ACTIVATIONS[activation](gate) * up


@keras.saving.register_keras_serializable(package="keras_encdec")
class GatedFeedForward(keras.layers.Layer):
    """`down(gated(gate(x), up(x)))`, no biases.

    Args:
        hidden_dim: F, the width of the gate and of the up projection each.
        activation: as of `StackSpec`.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(
        self, hidden_dim: int, activation: Activation = "gelu_tanh", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.activation = activation

    def build(self, input_shape: InputShape) -> None:
        width = input_shape[-1]
        self.gate = self._dense(self.hidden_dim, "gate", input_shape)
        self.up = self._dense(self.hidden_dim, "up", input_shape)
        self.down = self._dense(width, "down", (*input_shape[:-1], self.hidden_dim))

    def _dense(self, units: int, name: str, input_shape: InputShape) -> keras.layers.Dense:
        dense = keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=input_shape[-1] ** -0.5),
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build(input_shape)
        return dense

    def call(self, x: Tensor) -> Tensor:
        gate, up = project(self.gate, x), project(self.up, x)
        return project(self.down, gated(self.activation, gate, up))

    def compute_output_shape(self, input_shape: InputShape) -> InputShape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "activation": self.activation,
        }
