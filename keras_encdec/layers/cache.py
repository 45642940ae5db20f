"""Keys and values kept between decoding steps.

A cache is plain data: for each layer `(keys, values)`, each (B, K, R, H), an order of axes
in which a step reads them whole without a copy. Cross-attention's is made once, of the
encoder's states. Self-attention's holds the tokens before the current one, which attends to
them and to itself and is then written: R is room for all, or, in a layer with a window of W,
for W - 1. Token i stands at i % R, over the one that leaves the window.
"""

from collections.abc import Iterable

from keras import ops

from keras_encdec.layers.masks import KeyRange
from keras_encdec.spec import StackSpec, Tensor, Window, window_lengths

KeysValues = tuple[Tensor, Tensor]


def room(length: int, window: Window) -> int:
    """R: earlier tokens that a layer keeps, of `length`."""
    return max(1, _seen(length, window))


def _seen(length: int, window: Window) -> int:
    """Earlier tokens that a query sees, of `length`."""
    return length if window is None else min(length, window_lengths(window)[0] - 1)


def empty(spec: StackSpec, batch_size: int, length: int, dtype: str) -> list[KeysValues]:
    """Caches for `length` tokens of each layer, all zeros."""
    heads, size = spec.attention.num_kv_heads, spec.attention.head_dim
    shapes = [(batch_size, heads, room(length, window), size) for window in spec.windows]
    return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for shape in shapes]


def keep(keys_values: Iterable[Tensor]) -> KeysValues:
    """Keys and values (B, S, K, H) in a cache's order, (B, K, S, H)."""
    keys, values = (ops.transpose(x, (0, 2, 1, 3)) for x in keys_values)
    return keys, values


def fill(keys_values: KeysValues, count: Tensor, size: int) -> KeysValues:
    """A layer's cache after the first tokens.

    Args:
        keys_values: of P tokens, each (B, P, K, H).
        count: int, how many of them are to be kept, from the first.
        size: R.
    """
    last = ops.cast(count, "int32") - 1
    newest = last - ops.mod(last - ops.arange(size, dtype="int32"), size)  # below 0: nothing yet
    index = ops.clip(newest, 0, ops.shape(keys_values[0])[1] - 1)
    return keep(ops.take(x, index, axis=1) for x in keys_values)


def write(cache: KeysValues, own: KeysValues, index: Tensor, after: Tensor) -> KeysValues:
    """Puts keys and values of a token where they belong.

    Args:
        cache: `(keys, values)`, each (B, K, R, H).
        own: those of the token, each (B, K, 1, H).
        index: int, the number of the token.
        after: (B, 1, N, H), what was computed from the cache as it was. Writing waits
            for it, so that XLA writes in place: else it copies the cache, each time.
    """
    place = ops.mod(ops.cast(index, "int32"), cache[0].shape[2])
    waits = 0.0 * ops.transpose(after, (0, 2, 1, 3))[:, : own[0].shape[1]]
    keys, values = (
        ops.slice_update(old, [0, 0, place, 0], ops.cast(new + waits, old.dtype))
        for old, new in zip(cache, own, strict=True)
    )
    return keys, values


def visible(index: Tensor, length: int, window: Window) -> KeyRange:
    """What token `index` sees of a cache for `length` tokens."""
    end = ops.minimum(ops.cast(index, "int32"), _seen(length, window))
    end = ops.reshape(end, (1, 1))
    return KeyRange(ops.zeros_like(end), end)
