"""JAX's Splash attention for TPUs, on queries, keys and segments of any length.

Knows how `masks.Limits` and `masks.Segments` are Splash's masks, by which it leaves out whole
tiles and holds no (T, S) array, and what it needs of lengths and widths. Leaves when to take it
to `keras_encdec.layers.fused`.
"""

import functools
from typing import Any

from keras_encdec.layers.masks import KeyRange, Limits
from keras_encdec.layers.shards import Attend
from keras_encdec.spec import Shape, Tensor, window_lengths

# Queries and keys at a time, at most, as MaxText's configuration has it (sa_block_q and others
# in its base.yml); a TPU's registers are 128 wide.
_BLOCK, _LANES = 512, 128


def kernel(*, scale: float, soft_cap: float | None, limits: Limits, interpret: bool) -> Attend:
    """Splash; what a query without a key gets is finite and means nothing.

    Args:
        scale: multiplies the queries.
        soft_cap: on the logits, or None.
        limits: that the key ranges were made with.
        interpret: whether XLA's own operations do what the kernel says, for machines without TPU.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    def run(
        query: Tensor, key: Tensor, value: Tensor, visible: KeyRange, sinks: Tensor | None = None
    ) -> Tensor:
        assert visible.segments is not None
        (_, length, heads, width), keys = query.shape, key.shape[1]
        sizes = _tile(length), _tile(keys)
        shape = -(-length // sizes[0]) * sizes[0], -(-keys // sizes[1]) * sizes[1]
        lanes = -(-width // _LANES) * _LANES
        splash = _splash(limits, heads, shape, sizes, soft_cap, interpret)
        query, key, value = (
            jnp.swapaxes(_fill(x, (x.shape[0], n, x.shape[2], lanes)), 1, 2)
            for x, n in ((query * scale, shape[0]), (key, shape[1]), (value, shape[1]))
        )
        rows, (queries, runs) = query.shape[0], visible.segments
        segments = SegmentIds(
            q=_fill(queries, (rows, shape[0])), kv=_fill(_runs(runs), (rows, shape[1]))
        )
        row = jax.vmap(splash, in_axes=(0, 0, 0, 0, None))
        output = row(query, key, value, segments, sinks)
        return jnp.swapaxes(output, 1, 2)[:, :length, :, :width].astype(query.dtype)

    return run


def _tile(length: int) -> int:
    """The least multiple of the lanes of which as few as of `_BLOCK` hold the length."""
    count = -(-length // _BLOCK)
    return -(-length // (count * _LANES)) * _LANES


@functools.cache
def _splash(
    limits: Limits,
    heads: int,
    shape: tuple[int, int],
    sizes: tuple[int, int],
    soft_cap: float | None,
    interpret: bool,
) -> Any:
    """The kernel of (N, T, H) queries, with its masks as NumPy arrays, which any trace may hold.

    Its gradient keeps dQ apart from dK and dV: in one pass each tile of keys would have a dQ of
    its own, T * S / tile numbers.
    """
    import jax
    import numpy as np
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys = sizes
    tiles = splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    with jax.ensure_compile_time_eval():
        made = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([_mask(limits, shape)] * heads),
            block_sizes=tiles,
            attn_logits_soft_cap=soft_cap,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, made)


def _mask(limits: Limits, shape: tuple[int, int]) -> Any:
    """The limits of a (T, S) attention; its own query and key count in a window."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    if limits.window is not None:
        before, after = window_lengths(limits.window)
        ahead = 0 if limits.causal else after - 1
        return splash.LocalMask(shape, (before - 1, ahead), offset=0)
    return splash.CausalMask(shape) if limits.causal else splash.FullMask(shape)


def _runs(segment: Tensor) -> Tensor:
    """(B, S): each segment from its first token to its last, padding inside it too.

    As `masks` has it: numbers go up from left to right, and padding inside is seen.
    """
    import jax
    import jax.numpy as jnp

    last = jax.lax.cummax(segment, axis=1)
    beyond = jnp.iinfo(segment.dtype).max
    coming = jax.lax.cummin(jnp.where(segment == 0, beyond, segment), axis=1, reverse=True)
    return jnp.where(last == coming, last, 0)


def _fill(x: Tensor, shape: Shape) -> Tensor:
    """With zeros behind, up to `shape`."""
    import jax.numpy as jnp

    return jnp.pad(x, [(0, new - old) for new, old in zip(shape, x.shape, strict=True)])
