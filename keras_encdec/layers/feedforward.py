"""The gated feed-forward sublayer."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_encdec")
class GatedFeedForward(keras.layers.Layer):
    """`down(gelu(gate(x)) * up(x))` with the tanh approximation of gelu, no biases.

    Args:
        hidden_dim: F, the width of the gate and of the up projection each.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim

    def build(self, input_shape):
        width = input_shape[-1]
        self.gate = self._dense(self.hidden_dim, "gate", input_shape)
        self.up = self._dense(self.hidden_dim, "up", input_shape)
        self.down = self._dense(width, "down", (*input_shape[:-1], self.hidden_dim))

    def _dense(self, units, name, input_shape):
        dense = keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=input_shape[-1] ** -0.5),
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build(input_shape)
        return dense

    def call(self, x):
        return self.down(ops.gelu(self.gate(x), approximate=True) * self.up(x))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim}
