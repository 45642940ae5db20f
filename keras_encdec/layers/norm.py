"""RMS normalisation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec.spec import InputShape, NormSpec, Tensor


def normalized(x: Tensor, epsilon: float, axes: Sequence[int] = (-1,)) -> Tensor:
    """`x` by its root mean square over some axes, in float32."""
    x = ops.cast(x, "float32")
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=axes, keepdims=True) + epsilon)


@keras.saving.register_keras_serializable(package="keras_encdec")
class RMSNorm(keras.layers.Layer):
    """Divides by the root mean square over the last axes, multiplies by the scale.

    Computed in float32 whatever the policy, as KerasHub and transformers do. Where the
    scale is stored zero-centred, bfloat16 keeps its digits around 1.

    Args:
        spec: `NormSpec`, or its fields as a dict.
        axes: how many axes are normalised together; the scale has them.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, spec: NormSpec | dict[str, Any], axes: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axes = axes
        self.spec = NormSpec(**spec) if isinstance(spec, dict) else spec

    def build(self, input_shape: InputShape) -> None:
        initializer = "zeros" if self.spec.zero_centered else "ones"
        shape = input_shape[-self.axes :]
        self.scale = self.add_weight(name="scale", shape=shape, initializer=initializer)

    def call(self, x: Tensor) -> Tensor:
        x = normalized(x, self.spec.epsilon, tuple(range(-self.axes, 0)))
        scale = ops.cast(self.scale, "float32")
        if self.spec.zero_centered:
            scale = 1.0 + scale
        return ops.cast(x * scale, self.compute_dtype)

    def compute_output_shape(self, input_shape: InputShape) -> InputShape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"spec": dataclasses.asdict(self.spec), "axes": self.axes}
        return {**super().get_config(), **own}
