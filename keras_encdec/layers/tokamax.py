"""Tokamax's kernels of attention for JAX, and its chunked XLA code, where no kernel fits.

Knows what each of them needs of lengths, and how to ask for them. Memory grows linearly with the
text, forward and backward. Leaves which one to take to `keras_encdec.layers.fused`.
"""

import importlib.util
import logging
from typing import Any

from keras_encdec.layers.masks import KeyRange
from keras_encdec.layers.shards import Attend
from keras_encdec.private import tokamax_attention
from keras_encdec.spec import Tensor

# Queries at a time; at 8192 x 8192 on two CPU cores faster than 128, 512 and 1024. Also the
# largest tile of queries in Tokamax's Hopper and Blackwell kernels.
_BLOCK = 256


def is_installed() -> bool:
    return importlib.util.find_spec("tokamax") is not None


def kernel(name: str, *, scale: float, soft_cap: float | None) -> Attend:
    """A Tokamax implementation, on queries that each see something.

    With sinks, one that takes a bias without giving it the memory of logits: they are a key more,
    all zeros, with the sink as bias, and its value is zero.
    """
    import jax.numpy as jnp

    implementations, make_mask = tokamax_attention()
    logging.getLogger("absl").addFilter(_says_more_than_tuning)

    def run(
        query: Tensor, key: Tensor, value: Tensor, visible: KeyRange, sinks: Tensor | None = None
    ) -> Tensor:
        spec: dict[str, Any] = {"logits_scale": scale, "logits_soft_cap": soft_cap}
        if sinks is None:
            mask = make_mask(k_start=visible.start[:, None], k_end=visible.end[:, None])
        else:
            place = jnp.arange(key.shape[1] + 1)
            is_sink = place == key.shape[1]
            start, end = visible.start[..., None], visible.end[..., None]
            mask = make_mask(((place >= start) & (place < end) | is_sink)[:, None])
            spec["bias"] = jnp.where(is_sink, sinks[:, None, None], 0)[None]
            key, value = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (key, value))
        return implementations[name](query, key, value, mask=mask, **spec)

    return _aligned(run) if name.startswith("mosaic") else _by_blocks(run)


def _says_more_than_tuning(record: logging.LogRecord) -> bool:
    """Tokamax tells all there is to a shape that it has no tuned tiles for, at each trace."""
    return not str(record.msg).startswith("Autotuning cache miss")


def _aligned(kernel: Attend) -> Attend:
    """`kernel` on lengths filled up to whole tiles.

    Others fail in Hopper's kernel where it has key ranges, and in Blackwell's backward
    (pallas_mosaic_gpu_kernel_sm90.py and pallas_mosaic_gpu_vjp_kernel_sm100.py).
    """

    def run(
        query: Tensor, key: Tensor, value: Tensor, visible: KeyRange, sinks: Tensor | None = None
    ) -> Tensor:
        length = query.shape[1]
        inputs = (query, key, value, visible.start, visible.end)
        query, key, value, start, end = (
            _fill(x, -(-x.shape[1] // _BLOCK) * _BLOCK) for x in inputs
        )
        return kernel(query, key, value, KeyRange(start, end), sinks)[:, :length]

    return run


def _by_blocks(kernel: Attend) -> Attend:
    """`kernel` on one block of queries after another, for kernels that make a (T, S) mask.

    Only a block's mask exists, and what a block computes is computed again in the
    backward pass.
    """
    import jax
    import jax.numpy as jnp

    def run(
        query: Tensor, key: Tensor, value: Tensor, visible: KeyRange, sinks: Tensor | None = None
    ) -> Tensor:
        length = query.shape[1]
        count = -(-length // _BLOCK)
        size = -(-length // count)

        def split(x: Tensor) -> Tensor:
            """(B, T, ...) to (count, B, size, ...)."""
            return jnp.moveaxis(_fill(x, count * size).reshape(-1, count, size, *x.shape[2:]), 1, 0)

        @jax.checkpoint
        def one(block: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            query, start, end = block
            return kernel(query, key, value, KeyRange(start, end), sinks)

        output = jax.lax.map(one, tuple(split(x) for x in (query, visible.start, visible.end)))
        return jnp.moveaxis(output, 0, 1).reshape(-1, count * size, *query.shape[2:])[:, :length]

    return run


def _fill(x: Tensor, length: int) -> Tensor:
    """(B, T, ...) to (B, length, ...), which repeats the last of T."""
    import jax.numpy as jnp

    widths = [(0, 0)] * x.ndim
    widths[1] = (0, length - x.shape[1])
    return jnp.pad(x, widths, mode="edge")
