"""Grouped-query attention with a soft cap, for self- and cross-attention alike.

Knows projections, scale, cap and softmax, in plain operations that are the reference.
Leaves who may see whom to `keras_encdec.layers.masks`, the same numbers in less memory to
`keras_encdec.layers.fused`, and where keys are kept to `keras_encdec.layers.cache`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec.layers import cache as caches
from keras_encdec.layers import choice, fused, masks
from keras_encdec.layers.cache import KeysValues
from keras_encdec.layers.masks import KeyRange, Limits, Visible
from keras_encdec.layers.norm import RMSNorm, normalized
from keras_encdec.layers.rotary import Positions, rotate
from keras_encdec.layers.rows import project
from keras_encdec.layers.softmax import softmax
from keras_encdec.private import in_float32
from keras_encdec.spec import (
    AttentionSpec,
    InputShape,
    RotarySpec,
    Tensor,
    attention_from_json,
    rotary_from_json,
)

Part = tuple[Tensor, Tensor, Visible]  # keys, values, and which of them each query may see


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: KeyRange,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    limits: Limits | None = None,
    path: str = "auto",
) -> Tensor:
    """Softmax attention in groups: G query heads share each key/value head.

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H).
        value: (B, S, K, H).
        visible: `masks.KeyRange`, the keys that each query may see.
        scale: multiplies the queries.
        soft_cap: cap on the logits, before the mask.
        sinks: (N,), a logit of each query head that takes part in its softmax and brings no value,
            as of `AttentionSpec`; or None.
        limits: that `visible` was made with; None if not known, which some kernels need.
        path: one of `keras_encdec.layers.choice.PATHS`.

    Returns:
        (B, T, N, H); zeros for a query that may see nothing, as in
        gemma/research/t5gemma/modules.py.

    Raises:
        ValueError: if `path` is not `"auto"` and cannot be, saying why.
    """
    known = None if visible.segments is None else limits
    dtype = keras.backend.standardize_dtype(query.dtype)
    shapes = tuple(query.shape), tuple(key.shape)
    spec: dict[str, Any] = {"scale": scale, "soft_cap": soft_cap}
    problem = fused.Problem(*shapes, dtype, **spec, limits=known, sinks=sinks is not None)
    chosen = choice.choose(path, problem)
    if chosen.path == "plain":
        parts = (*caches.keep((key, value)), visible)
        return attend_cached(query, parts, **spec, sinks=sinks)
    output = fused.attend(chosen.path, problem, query, key, value, _never_empty(visible), sinks)
    sees_any = (visible.end > visible.start)[..., None, None]
    return ops.where(sees_any, output, ops.zeros_like(output))


def _never_empty(visible: KeyRange) -> KeyRange:
    """With the first key for those who see nothing, whose softmax would have no sum."""
    some = visible.end > visible.start
    start, end = ops.where(some, visible.start, 0), ops.where(some, visible.end, 1)
    return visible._replace(start=start, end=end)


def attend_cached(
    query: Tensor,
    *parts: Part,
    scale: float,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `attend`, plain, on keys and values in the order of axes of a cache, (B, K, S, H).

    A row of keys serves n rows of queries, the samples or beams of one input: rows b * n
    to b * n + n - 1 of the queries attend to row b, which is neither stored nor read n
    times. Several parts are attended to under one softmax, as if they were concatenated
    along S, which would copy the cache at every step.

    Args:
        query: (B * n, T, N, H).
        *parts: `(keys, values, visible)`, each of the same B, and of an S of its own: keys
            and values are (B, K, S, H), and `visible` is the same for the n rows.
        scale: multiplies the queries.
        soft_cap: as in `attend`.
        sinks: as in `attend`; once for all parts together.

    Returns:
        (B * n, T, N, H); zeros for a query that may see nothing in any part.
    """
    keys, (n, h) = parts[0][0], query.shape[2:]
    (rows, k), length = ops.shape(keys)[:2], ops.shape(query)[1]
    # Queries of one key side by side, so that no array of T * S has its axes moved.
    query = ops.reshape(query * scale, (rows, -1, length, k, n // k, h))
    query = ops.reshape(ops.transpose(query, (0, 3, 1, 4, 2, 5)), (rows, k, -1, h))
    logits = _joined([ops.einsum("bkgh,bksh->bkgs", query, key) for key, _, _ in parts])
    mask = _joined(_same([masks.dense(visible, ops.shape(key)[2]) for key, _, visible in parts]))
    total = ops.shape(logits)[-1]
    logits = ops.reshape(logits, (rows, k, -1, length, total))  # TensorFlow's softmax takes five
    if sinks is not None:
        each = ops.shape(logits)[2] // (n // k)
        sinks = ops.reshape(ops.tile(ops.reshape(sinks, (k, -1)), (1, each)), (k, -1, 1, 1))
    weights = softmax(logits, mask[:, None, None], soft_cap, query.dtype, sinks)
    weights = ops.reshape(weights, (rows, k, -1, total))
    output: Tensor = 0.0
    at = 0
    for key, value, _ in parts:
        output += ops.matmul(weights[..., at : at + ops.shape(key)[2]], value)
        at += ops.shape(key)[2]
    output = ops.reshape(output, (rows, k, -1, n // k, length, h))
    output = ops.transpose(output, (0, 2, 4, 1, 3, 5))
    sees_any = functools.reduce(ops.logical_or, [masks.sees_any(part[2]) for part in parts])
    output = ops.where(sees_any[:, None, :, None, None, None], output, ops.zeros_like(output))
    return ops.reshape(output, (-1, length, n, h))


def _on_rows_of(key: Tensor, query: Tensor) -> Tensor:
    """Queries (B * n, T, N, H) as (B, n * T, N, H), for keys of B rows that n rows each share."""
    rows, (count, length, *heads) = key.shape[0], query.shape
    if None in (rows, count, length) or rows == count:
        return query
    return ops.reshape(query, (rows, count // rows * length, *heads))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=-1)


def _same(arrays: Sequence[Tensor]) -> Sequence[Tensor]:
    """Broadcast to one shape, but for the last axis."""
    if len(arrays) == 1 or len({tuple(x.shape[:-1]) for x in arrays}) == 1:
        return arrays
    every = ops.ones_like(functools.reduce(ops.logical_or, [x[..., :1] for x in arrays]))
    return [ops.logical_and(x, every) for x in arrays]


@keras.saving.register_keras_serializable(package="keras_encdec")
class Attention(keras.layers.Layer):
    """Projections around `attend`. Kernels are (D, N, H) in and (N, H, D) out.

    Args:
        spec: `AttentionSpec`, or its fields as a dict.
        rotary: `RotarySpec`, or its fields; None for attention without positions.
        borrows: whether keys and values are another layer's, always.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(
        self,
        spec: AttentionSpec | dict[str, Any],
        rotary: RotarySpec | dict[str, Any] | None = None,
        borrows: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec, self.rotary = attention_from_json(spec), rotary_from_json(rotary)
        self.borrows = borrows

    def build(self, query_shape: InputShape, context_shape: InputShape | None = None) -> None:
        width, context_shape = query_shape[-1], context_shape or query_shape
        s = self.spec
        heads = (None, s.num_heads, s.head_dim)
        kv_heads = (None, s.num_kv_heads, s.head_dim)
        biases = ("nh", "kh") if s.bias else (None, None)
        if s.sinks:  # of a head that has one key more, whose logit is 0
            self.sinks = self.add_weight(name="sinks", shape=(s.num_heads,), initializer="zeros")
        self.query = self._dense("btd,dnh->btnh", heads, "query", query_shape, biases[0])
        self.query_norm = self._norm("query_norm", heads)
        if not self.borrows:
            self.key = self._dense("bsd,dkh->bskh", kv_heads, "key", context_shape, biases[1])
            self.key_norm = self._norm("key_norm", kv_heads)
        if not (self.borrows or s.values_are_keys):
            self.value = self._dense("bsd,dkh->bskh", kv_heads, "value", context_shape, biases[1])
        # Contracted axes in alphabetical order: JAX sorts them, and would permute the kernel.
        shapes = (None, width), "attention_output", (None, None, *heads[1:])
        self.output_dense = self._dense("btgh,ghd->btd", *shapes, "d" if s.output_bias else None)

    def _dense(
        self,
        equation: str,
        output_shape: InputShape,
        name: str,
        input_shape: InputShape,
        bias_axes: str | None = None,
    ) -> keras.layers.EinsumDense:
        fan_in = math.prod(input_shape[2:])
        initializer = keras.initializers.RandomNormal(stddev=fan_in**-0.5)
        dense = keras.layers.EinsumDense(
            equation,
            output_shape,
            bias_axes=bias_axes,
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build(input_shape)
        return dense

    def _norm(self, name: str, heads: InputShape) -> Callable[[Tensor], Tensor]:
        """Of each head or of all together, or nothing."""
        if self.spec.query_key_norm is None:
            return lambda x: x
        axes = 2 if self.spec.norm_across_heads else 1
        norm = RMSNorm(self.spec.query_key_norm, axes, dtype=self.dtype_policy, name=name)
        norm.build((None, *heads))
        return norm

    def keys_and_values(self, context: Tensor, positions: Positions | None = None) -> KeysValues:
        """Keys and values of `context` (B, S, D'), each (B, S, K, H)."""
        key = project(self.key, context)
        value = key if self.spec.values_are_keys else project(self.value, context)
        if self.spec.value_norm is not None:
            value = ops.cast(normalized(value, self.spec.value_norm), self.compute_dtype)
        return self._rotate(self.key_norm(key), positions), value

    def call(
        self,
        x: Tensor,
        visible: KeyRange,
        positions: Positions | None = None,
        context: Tensor | KeysValues | None = None,
        context_positions: Positions | None = None,
        also: Sequence[Part] = (),
        cache: Part | None = None,
        borrowed: KeysValues | None = None,
        limits: Limits | None = None,
        path: str = "auto",
    ) -> tuple[Tensor, KeysValues]:
        """Attends from `x`.

        Args:
            x: (B, T, D).
            visible: the keys that each token of `x` may see.
            positions: (B, T) int of `x`, or `rotary.InTexts`; unused without rotary positions.
            context: what is attended to, by default `x`: (B, S, D') states, or their `(keys,
                values)` in a cache's order, each (B, K, S, H), and turned; of one row for every
                n of `x`, where every token of these sees the same.
            context_positions: (B, S) int of states that are attended to, as `positions`.
            also: what is attended to under the same softmax, as `cache`.
            cache: `(keys, values, visible)` of the tokens before `x`, keys and values each
                (B, K, R, H).
            borrowed: keys and values of `x` as a call in another layer returned them.
            limits: of `attend`.
            path: of `attend`; where a cache or its order comes in, it changes nothing.

        Returns:
            `(output (B, T, D), (keys, values))` of the context; of `x` in a cache's order
            where there is one.

        Raises:
            ValueError: from `attend`.
        """
        query = self._rotate(self.query_norm(project(self.query, x)), positions)
        keys_values = borrowed
        if keys_values is None:
            states = (x, positions) if context is None else (context, context_positions)
            keys_values = self._read(*states, cached=cache is not None)
        scale, soft_cap = self.spec.query_scale, self.spec.logit_soft_cap
        spec: dict[str, Any] = {"scale": scale, "soft_cap": soft_cap, "sinks": self._sinks()}
        if cache is not None:
            output = attend_cached(query, cache, (*keys_values, visible), *also, **spec)
        elif isinstance(context, tuple):
            output = attend_cached(query, (*keys_values, visible), **spec)
        elif also:
            choice.check_path(path, merged=True)
            output = attend_cached(query, (*caches.keep(keys_values), visible), *also, **spec)
        else:
            key, value = keys_values
            shape = ops.shape(query)
            query = _on_rows_of(key, query)
            output = attend(query, key, value, visible, **spec, limits=limits, path=path)
            output = ops.reshape(output, shape)
        return project(self.output_dense, output), keys_values

    def _sinks(self) -> Tensor | None:
        """In float32 whatever the policy, as the softmax is."""
        return in_float32(self.sinks) if self.spec.sinks else None

    def _read(
        self, states: Tensor | KeysValues, positions: Positions | None, *, cached: bool
    ) -> KeysValues:
        """Keys and values of states, if they are not these already; in a cache's order or not."""
        if isinstance(states, tuple):
            return states
        keys_values = self.keys_and_values(states, positions)
        return caches.keep(keys_values) if cached else keys_values

    def _rotate(self, x: Tensor, positions: Positions | None) -> Tensor:
        return x if self.rotary is None or positions is None else rotate(x, positions, self.rotary)

    def get_config(self) -> dict[str, Any]:
        rotary = self.rotary and dataclasses.asdict(self.rotary)
        own = {"spec": dataclasses.asdict(self.spec), "rotary": rotary, "borrows": self.borrows}
        return {**super().get_config(), **own}
