"""Grouped-query attention with a soft cap, for self- and cross-attention alike.

Knows projections, scale, cap and softmax, in plain operations that are the reference.
Leaves who may see whom to `keras_encdec.layers.masks`, the same numbers in less memory to
`keras_encdec.layers.fused`, and where keys are kept to `keras_encdec.layers.cache`.
"""

import dataclasses
import math

import keras
from keras import ops

from keras_encdec.layers import cache as caches
from keras_encdec.layers import fused, masks
from keras_encdec.layers.rotary import rotate
from keras_encdec.spec import AttentionSpec

PATHS = ("auto", "plain", "fused")

_HIDDEN = -1e30  # finite, so that a row with nothing to see stays a number
# Where "auto" turns to fused. A gradient with 4 heads of width 32 on two CPU cores: at
# 256 x 256 in equal memory, at 512 x 512 in half of it and twice as fast.
_FUSED_FROM = 512 * 512


def attend(query, key, value, visible, *, scale, soft_cap=None, path="auto"):
    """Softmax attention in groups: G query heads share each key/value head.

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H).
        value: (B, S, K, H).
        visible: `masks.Visible`, the keys that each query may see.
        scale: multiplies the queries.
        soft_cap: cap on the logits, before the mask.
        path: `"plain"`; `"fused"`, in memory that does not grow with T * S where the
            backend has it (`keras_encdec.layers.fused`); or `"auto"`, which is fused
            where T * S is known and large.

    Returns:
        (B, T, N, H); zeros for a query that may see nothing, as in
        gemma/research/t5gemma/modules.py.
    """
    if path == "auto":
        path = "fused" if _is_large(query, key) and fused.is_installed() else "plain"
    spec = {"scale": scale, "soft_cap": soft_cap}
    compute = fused.attend if path == "fused" and fused.takes(soft_cap) else _attend_plain
    output = compute(query, key, value, _never_empty(visible), **spec)
    sees_any = (visible.end > visible.start)[..., None, None]
    return ops.where(sees_any, output, ops.zeros_like(output))


def check_path(path):
    """Raises ValueError if there is no such path."""
    if path not in PATHS:
        raise ValueError(f"Expected attention to be one of {PATHS}. Received: {path!r}")


def _is_large(query, key):
    """Whether T * S is known and large; under a TensorFlow graph it may be unknown."""
    lengths = query.shape[1], key.shape[1]
    return None not in lengths and math.prod(lengths) >= _FUSED_FROM


def _never_empty(visible):
    """With the first key for those who see nothing, whose softmax would have no sum."""
    start, end = visible
    return masks.Visible(ops.where(end > start, start, 0), ops.where(end > start, end, 1))


def _attend_plain(query, key, value, visible, *, scale, soft_cap):
    n, h = query.shape[2:]
    k = key.shape[2]
    query = ops.reshape(query * scale, (-1, ops.shape(query)[1], k, n // k, h))
    logits = ops.cast(ops.einsum("btkgh,bskh->bkgts", query, key), "float32")
    if soft_cap is not None:
        logits = soft_cap * ops.tanh(logits / soft_cap)
    mask = masks.dense(visible, ops.shape(key)[1])
    logits = ops.where(mask[:, None, None], logits, _HIDDEN)
    weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)
    output = ops.einsum("bkgts,bskh->btkgh", weights, value)
    return ops.reshape(output, (-1, ops.shape(output)[1], n, h))


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

    def call(self, x, visible, positions=None, context=None, cache=None, index=None, path="auto"):
        """Attends from `x`.

        Args:
            x: (B, T, D).
            visible: `masks.Visible`, the keys that each token of `x` may see.
            positions: (B, T) int of `x`; unused without rotary positions.
            context: what is attended to, by default `x`: (B, S, D') states, or their
                `(keys, values)`, each (B, S, K, H).
            cache: `(keys, values)` of (B, S, K, H) that the new ones are written to.
            index: where in the cache they are written.
            path: of `attend`.

        Returns:
            `(output (B, T, D), cache)`.
        """
        query = self._rotate(self.query(x), positions)
        keys_values = x if context is None else context
        if not isinstance(keys_values, tuple):
            keys_values = self.keys_and_values(keys_values, positions)
        if cache is not None:
            keys_values = cache = caches.write(cache, keys_values, index)
        (key, value), s = keys_values, self.spec
        spec = {"scale": s.query_scale, "soft_cap": s.logit_soft_cap, "path": path}
        return self.output_dense(attend(query, key, value, visible, **spec)), cache

    def _rotate(self, x, positions):
        return x if self.spec.rope_base is None else rotate(x, positions, self.spec.rope_base)

    def get_config(self):
        return {**super().get_config(), "spec": dataclasses.asdict(self.spec)}
