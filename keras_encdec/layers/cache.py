"""Keys and values kept between decoding steps.

A cache is plain data: for each layer `(keys, values)`, each (B, K, R, H), an order of axes
in which a step reads them whole without a copy. Cross-attention's is made once, of the
encoder's states. Self-attention's holds the tokens before those of a step, which attend to
them and to each other; then as many of them are written as are to stay. R is room for all,
or, in a layer with a window of W, for W - 1. Token i stands at i % R, over the one that leaves
the window. Rows may be at different places.
"""

from collections.abc import Iterable

import keras
from keras import ops

from keras_encdec.layers.masks import KeyRange, Visible
from keras_encdec.spec import StackSpec, Tensor, Window, window_lengths

KeysValues = tuple[Tensor, Tensor]
Kept = tuple[Tensor, ...]  # keys and values of a layer; () of one that borrows another's


def room(length: int, window: Window) -> int:
    """R: earlier tokens that a layer keeps, of `length`."""
    return max(1, _seen(length, window))


def _seen(length: int, window: Window) -> int:
    """Earlier tokens that a query sees, of `length`."""
    return length if window is None else min(length, window_lengths(window)[0] - 1)


def empty(spec: StackSpec, batch_size: int, length: int, dtype: str) -> list[Kept]:
    """Caches for `length` tokens of each layer, all zeros; () of one that borrows them."""
    caches: list[Kept] = []
    for i, (window, attention) in enumerate(zip(spec.windows, spec.attentions, strict=True)):
        shape = batch_size, attention.num_kv_heads, room(length, window), attention.head_dim
        own = spec.lender_of(i) is None
        caches.append((ops.zeros(shape, dtype), ops.zeros(shape, dtype)) if own else ())
    return caches


def keep(keys_values: Iterable[Tensor]) -> KeysValues:
    """Keys and values (B, S, K, H) in a cache's order, (B, K, S, H)."""
    keys, values = (ops.transpose(x, (0, 2, 1, 3)) for x in keys_values)
    return keys, values


def fill(keys_values: KeysValues, count: Tensor, size: int) -> KeysValues:
    """A layer's cache after the first tokens.

    Args:
        keys_values: of P tokens, each (B, P, K, H).
        count: int or (B,), how many of them are to be kept, from the first.
        size: R.
    """
    index = ops.clip(_newest(count, size), 0, ops.shape(keys_values[0])[1] - 1)[..., None, None]
    return keep(ops.take_along_axis(x, index, axis=1) for x in keys_values)


def _newest(count: Tensor, size: int) -> Tensor:
    """(B or 1, R): the last of `count` tokens to stand at each place; below 0 if none yet."""
    last = ops.reshape(ops.cast(count, "int32"), (-1, 1)) - 1
    return last - ops.mod(last - ops.arange(size, dtype="int32"), size)


def write(cache: KeysValues, own: KeysValues, index: Tensor, count: Tensor) -> KeysValues:
    """Puts keys and values of tokens where they belong.

    Where `count` follows from what was computed of the cache, XLA writes in place; else it
    copies the cache, each time.

    Args:
        cache: `(keys, values)`, each (B, K, R, H).
        own: those of T tokens, each (B, K, T, H), T at most R.
        index: int or (B,), the number of the first of them.
        count: (B,), how many of them are to be kept, from the first.
    """
    size, tokens = cache[0].shape[2], own[0].shape[2]
    step = ops.arange(tokens, dtype="int32")
    place = ops.mod(ops.reshape(ops.cast(index, "int32"), (-1, 1)) + step, size)
    kept = step < ops.convert_to_tensor(count)[:, None]
    place = ops.broadcast_to(place, kept.shape)
    put = _put_jax if keras.backend.backend() == "jax" else _put
    keys, values = (
        put(old, ops.cast(new, old.dtype), place, kept) for old, new in zip(cache, own, strict=True)
    )
    return keys, values


def _put_jax(old: Tensor, new: Tensor, place: Tensor, kept: Tensor) -> Tensor:
    import jax

    place = ops.where(kept, place, old.shape[2])  # outside: dropped

    def row(old: Tensor, new: Tensor, place: Tensor) -> Tensor:
        return old.at[:, place].set(new, mode="drop")

    return jax.vmap(row)(old, new, place)


def _put(old: Tensor, new: Tensor, place: Tensor, kept: Tensor) -> Tensor:
    """By each token's row, head and place; what is not kept is written as it was."""
    rows, heads, _, width = old.shape
    place = ops.broadcast_to(place[:, None], (rows, heads, place.shape[1]))
    before = ops.take_along_axis(old, place[..., None], axis=2)
    new = ops.where(kept[:, None, :, None], new, before)
    at = (ops.arange(rows)[:, None, None], ops.arange(heads)[None, :, None], place)
    at = ops.stack([ops.broadcast_to(ops.cast(x, "int32"), place.shape) for x in at], axis=-1)
    return ops.scatter_update(old, ops.reshape(at, (-1, 3)), ops.reshape(new, (-1, width)))


def visible(index: Tensor, count: int, length: int, window: Window) -> Visible:
    """What each of some tokens sees of a cache for `length` tokens that holds those before.

    Args:
        index: int or (B,), the number of the first of them.
        count: T, how many they are.
        length: tokens that the cache is for, or the places it has.
        window: W, or None.

    Returns:
        For one token, and without a window, `KeyRange` of (B or 1, 1); else (B or 1, T, R)
        bool, as the oldest of the places leave the window one by one.
    """
    index, seen = ops.reshape(ops.cast(index, "int32"), (-1, 1)), _seen(length, window)
    if window is None or count == 1:
        end = ops.minimum(index, seen)
        return KeyRange(ops.zeros_like(end), end)
    newest = _newest(index, room(length, window))[:, None]
    first = index[..., None] + ops.arange(count, dtype="int32")[:, None] - seen
    return ops.logical_and(newest >= 0, newest >= first)
