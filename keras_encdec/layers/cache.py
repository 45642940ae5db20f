"""Keys and values kept between decoding steps.

A cache is plain data: for each layer a `(keys, values)` pair of (B, S, K, H). The
self-attention's grows from an index; the cross-attention's is made once.
"""

from keras import ops

from keras_encdec.spec import StackSpec


def empty(spec: StackSpec, batch_size, length, dtype):
    """Caches for `length` tokens of each layer, all zeros."""
    attention = spec.attention
    shape = (batch_size, length, attention.num_kv_heads, attention.head_dim)
    return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in spec.windows]


def write(cache, update, index):
    """Puts `update` (B, T, K, H) at `index` of `cache`, for keys and values."""
    start = [0, index, 0, 0]
    return tuple(
        ops.slice_update(old, start, ops.cast(new, old.dtype))
        for old, new in zip(cache, update, strict=True)
    )
