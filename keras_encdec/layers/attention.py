"""Grouped-query attention with a soft cap, for self- and cross-attention alike.

Knows projections, scale, cap and softmax. Leaves who may see whom to
`keras_encdec.layers.masks` and where keys are kept to `keras_encdec.layers.cache`.
"""

import dataclasses
import math

import keras
from keras import ops

from keras_encdec.layers import cache as caches
from keras_encdec.layers.rotary import rotate
from keras_encdec.spec import AttentionSpec

_HIDDEN = -1e30  # finite, so that a row with nothing to see stays a number


def attend(query, key, value, mask, *, scale, soft_cap=None):
    """Softmax attention in groups: G query heads share each key/value head.

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H).
        value: (B, S, K, H).
        mask: (B, T, S) bool, true where the query may see the key.
        scale: multiplies the queries.
        soft_cap: cap on the logits, before the mask.

    Returns:
        (B, T, N, H); zeros for a query that may see nothing, as in
        gemma/research/t5gemma/modules.py.
    """
    n, h = query.shape[2:]
    k = key.shape[2]
    query = ops.reshape(query * scale, (-1, ops.shape(query)[1], k, n // k, h))
    logits = ops.cast(ops.einsum("btkgh,bskh->bkgts", query, key), "float32")
    if soft_cap is not None:
        logits = soft_cap * ops.tanh(logits / soft_cap)
    logits = ops.where(mask[:, None, None], logits, _HIDDEN)
    weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)
    output = ops.einsum("bkgts,bskh->btkgh", weights, value)
    output = ops.reshape(output, (-1, ops.shape(output)[1], n, h))
    sees_any = ops.any(mask, axis=-1)[:, :, None, None]
    return ops.where(sees_any, output, ops.zeros_like(output))


@keras.saving.register_keras_serializable(package="keras_encdec")
class Attention(keras.layers.Layer):
    """Projections around `attend`. Kernels are (D, N, H) in and (N, H, D) out.

    Args:
        spec: `AttentionSpec`, or its fields as a dict.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, spec, **kwargs):
        super().__init__(**kwargs)
        self.spec = AttentionSpec(**spec) if isinstance(spec, dict) else spec

    def build(self, query_shape, context_shape=None):
        width, context_shape = query_shape[-1], context_shape or query_shape
        s = self.spec
        heads = (None, s.num_heads, s.head_dim)
        kv_heads = (None, s.num_kv_heads, s.head_dim)
        self.query = self._dense("btd,dnh->btnh", heads, "query", query_shape)
        self.key = self._dense("bsd,dkh->bskh", kv_heads, "key", context_shape)
        self.value = self._dense("bsd,dkh->bskh", kv_heads, "value", context_shape)
        self.output_dense = self._dense(
            "btnh,nhd->btd", (None, width), "attention_output", (None, None, *heads[1:])
        )

    def _dense(self, equation, output_shape, name, input_shape):
        fan_in = math.prod(input_shape[2:])
        initializer = keras.initializers.RandomNormal(stddev=fan_in**-0.5)
        dense = keras.layers.EinsumDense(
            equation,
            output_shape,
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build(input_shape)
        return dense

    def keys_and_values(self, context, positions=None):
        """Keys and values of `context` (B, S, D'), each (B, S, K, H)."""
        return self._rotate(self.key(context), positions), self.value(context)

    def call(self, x, mask, positions=None, keys_values=None, cache=None, index=None):
        """Attends from `x`.

        Args:
            x: (B, T, D).
            mask: (B, T, S) bool.
            positions: (B, T) int of `x`; unused without rotary positions.
            keys_values: ready keys and values; by default they are made of `x`.
            cache: `(keys, values)` of (B, S, K, H) that the new ones are written to.
            index: where in the cache they are written.

        Returns:
            `(output (B, T, D), cache)`.
        """
        query = self._rotate(self.query(x), positions)
        if keys_values is None:
            keys_values = self.keys_and_values(x, positions)
        if cache is not None:
            keys_values = cache = caches.write(cache, keys_values, index)
        (key, value), s = keys_values, self.spec
        output = attend(query, key, value, mask, scale=s.query_scale, soft_cap=s.logit_soft_cap)
        return self.output_dense(output), cache

    def _rotate(self, x, positions):
        return x if self.spec.rope_base is None else rotate(x, positions, self.spec.rope_base)

    def get_config(self):
        return {**super().get_config(), "spec": dataclasses.asdict(self.spec)}
