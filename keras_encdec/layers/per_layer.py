"""What each block is told of its tokens beside the states: a second embedding, cut by layer.

Knows the parts, and how a block adds its own. Leaves where it is called to
`keras_encdec.layers.stack` and `keras_encdec.layers.block`.
Source: transformers 5.23, modeling_gemma4.py (`project_per_layer_inputs`, the decoder layer).
"""

from collections.abc import Sequence

import keras
from keras import ops

from keras_encdec.layers.feedforward import gated
from keras_encdec.layers.norm import RMSNorm
from keras_encdec.layers.rows import project
from keras_encdec.spec import InputShape, StackSpec, Tensor


class PerLayerEmbedding(keras.layers.Layer):
    """Tokens, and their states before the first block, to a part for each block.

    Args:
        spec: `StackSpec` with a `per_layer_dim`, P.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, spec: StackSpec, **kwargs: object) -> None:
        super().__init__(**kwargs)
        assert spec.per_layer_dim is not None
        self.spec, self.dim = spec, spec.per_layer_dim

    def build(self, input_shape: InputShape) -> None:
        policy = {"dtype": self.dtype_policy}
        units = self.spec.num_layers * self.dim
        normal = keras.initializers.RandomNormal
        self.embedding = keras.layers.Embedding(
            self.spec.vocabulary_size,
            units,
            embeddings_initializer=normal(self.dim**-0.5),
            name="embedding",
            **policy,
        )
        self.embedding.build()
        self.projection = keras.layers.Dense(
            units, use_bias=False, kernel_initializer=normal(1.0), name="projection", **policy
        )
        self.projection.build(input_shape)
        self.norm = RMSNorm(self.spec.norm, name="norm", **policy)
        self.norm.build((None, self.dim))

    def call(self, token_ids: Tensor, x: Tensor) -> Sequence[Tensor]:
        """(B, T) ids and (B, T, D) states to L parts, each (B, T, P)."""
        parts = (*ops.shape(token_ids), self.spec.num_layers, self.dim)
        own = ops.reshape(self.embedding(token_ids), parts)
        own = own * ops.cast(self.dim**0.5, own.dtype)
        seen = project(self.projection, x) * ops.cast(self.spec.width**-0.5, x.dtype)
        both = (self.norm(ops.reshape(seen, parts)) + own) * ops.cast(2**-0.5, own.dtype)
        return [both[:, :, i] for i in range(self.spec.num_layers)]


class PerLayerInput(keras.layers.Layer):
    """What a block makes of its part: `norm(output(gated(gate(x), part)))`.

    Args:
        spec: `StackSpec` with a `per_layer_dim`, P.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, spec: StackSpec, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def build(self, input_shape: InputShape) -> None:
        self.gate = self._dense("gate", input_shape, self.spec.per_layer_dim)
        part = (*input_shape[:-1], self.spec.per_layer_dim)
        self.output_dense = self._dense("output", part, self.spec.width)
        self.norm = RMSNorm(self.spec.norm, name="norm", dtype=self.dtype_policy)
        self.norm.build(input_shape)

    def _dense(self, name: str, input_shape: InputShape, units: int | None) -> keras.layers.Dense:
        initializer = keras.initializers.RandomNormal(input_shape[-1] ** -0.5)
        policy = {"dtype": self.dtype_policy}
        dense = keras.layers.Dense(
            units, use_bias=False, kernel_initializer=initializer, name=name, **policy
        )
        dense.build(input_shape)
        return dense

    def call(self, x: Tensor, part: Tensor) -> Tensor:
        """(B, T, D) states and (B, T, P) to (B, T, D)."""
        opened = gated(self.spec.activation, project(self.gate, x), part)
        return self.norm(project(self.output_dense, opened))
