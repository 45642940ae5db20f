"""Between an encoder's layers and what reads them: one state of several, of another width.

Knows their sum and the projection. Leaves which layers' states come to
`keras_encdec.layers.stack`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec.layers.rows import project
from keras_encdec.spec import AdaptorSpec, InputShape, Shape, Tensor
from keras_encdec.spec.sublayers import adaptor_from_json


@keras.saving.register_keras_serializable(package="keras_encdec")
class Adaptor(keras.layers.Layer):
    """Adds up states of groups of layers, and projects the sum.

    Args:
        spec: `AdaptorSpec`, or its fields as a dict.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, spec: AdaptorSpec | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        read = adaptor_from_json(spec)
        assert read is not None
        self.spec = read

    def build(self, input_shape: InputShape) -> None:
        groups, width = self.spec.groups, self.spec.width
        if groups > 1:
            self.scale = self.add_weight(name="scale", shape=(groups,), initializer=_last_alone)
        if width is None:
            return
        kinds = keras.initializers.Identity, keras.initializers.Orthogonal
        self.projection = keras.layers.Dense(
            width,
            use_bias=False,
            kernel_initializer=kinds[width != input_shape[-1]](),
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build(input_shape)

    def call(self, states: Sequence[Tensor]) -> Tensor:
        """Normalised states behind each group, each (B, S, D), to (B, S, D') of `spec.width`."""
        x = states[-1]
        if self.spec.groups > 1:  # in float32, as a norm
            scale = ops.cast(self.scale, "float32")
            x = sum(scale[i] * ops.cast(state, "float32") for i, state in enumerate(states))
            x = ops.cast(x, self.compute_dtype)
        return x if self.spec.width is None else project(self.projection, x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "spec": dataclasses.asdict(self.spec)}


def _last_alone(shape: Shape, dtype: str | None = None) -> Tensor:
    """1 for the last of a vector, 0 for all others."""
    return ops.one_hot(shape[0] - 1, shape[0], dtype=dtype)
