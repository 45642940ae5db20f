"""RMS normalisation with a zero-centred scale, the norm of the Gemma family."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_encdec")
class RMSNorm(keras.layers.Layer):
    """Divides by the root mean square over the last axis, multiplies by `1 + scale`.

    Computed in float32 whatever the policy, as KerasHub and transformers do. The
    scale is stored zero-centred, so that bfloat16 keeps its digits around 1.

    Args:
        epsilon: added to the mean square.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, epsilon, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=input_shape[-1:], initializer="zeros")

    def call(self, x):
        x = ops.cast(x, "float32")
        x = x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + self.epsilon)
        return ops.cast(x * (1.0 + ops.cast(self.scale, "float32")), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
