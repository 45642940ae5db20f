"""Attention in less memory than its logits take, where the backend has it.

Knows which kernel serves which backend and device. On JAX they are Tokamax's, and memory
grows linearly with the text, forward and backward. PyTorch's own takes no soft cap and
keeps a (B, 1, T, S) mask; TensorFlow has none. Leaves when to use them, and the reference,
to `keras_encdec.layers.attention`.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_encdec.layers import masks, shards
from keras_encdec.layers.masks import KeyRange
from keras_encdec.private import tokamax_attention
from keras_encdec.spec import Tensor
from keras_encdec.warn import warn

# Queries at a time; at 8192 x 8192 on two CPU cores faster than 128, 512 and 1024. Also the
# largest tile of queries in Tokamax's Hopper and Blackwell kernels.
_BLOCK = 256

# Tokamax's kernels by platform, the fastest first; its chunked XLA code is for the rest.
# Version 0.0.12's TPU kernel does not take key ranges yet and so gives way to that.
_KERNELS = {"gpu": ("mosaic_gpu", "triton"), "tpu": ("mosaic_tpu",)}

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # and the KeyRange's two


def obstacle(soft_cap: float | None) -> str | None:
    """Why this backend fuses no attention under this soft cap; None where it does."""
    backend = keras.backend.backend()
    if backend == "torch" and soft_cap is not None:
        return f"under a soft cap ({soft_cap}), which PyTorch's kernel does not take"
    return None if backend in ("jax", "torch") else f"on {backend}, which has no kernel for it"


def takes(soft_cap: float | None) -> bool:
    """Whether `attend` works here, Tokamax included; what `"auto"` asks."""
    installed = keras.backend.backend() != "jax" or importlib.util.find_spec("tokamax") is not None
    return installed and obstacle(soft_cap) is None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: KeyRange,
    *,
    scale: float,
    soft_cap: float | None,
) -> Tensor:
    """As `keras_encdec.layers.attention.attend`, where `obstacle` finds none.

    Every query must see something.

    Raises:
        ImportError: on JAX without Tokamax.
    """
    if keras.backend.backend() == "jax":
        return _attend_jax(query, key, value, visible, scale=scale, soft_cap=soft_cap)
    mask = masks.dense(visible, ops.shape(key)[1])[:, None]
    return ops.dot_product_attention(query, key, value, mask=mask, scale=scale)


def _attend_jax(
    query: Tensor, key: Tensor, value: Tensor, visible: KeyRange, **spec: Any
) -> Tensor:
    import jax
    import jax.numpy as jnp

    cut = shards.cut(query.shape, key.shape)
    rows, keys = shards.shapes(cut, query.shape, key.shape)
    shapes = tuple(jax.ShapeDtypeStruct(s, query.dtype) for s in (rows, keys, keys))
    interval = jax.ShapeDtypeStruct(rows[:2], "int32")
    kernel = _kernel(_candidates(), (*shapes, interval, interval), **spec)
    visible = KeyRange(*(jnp.broadcast_to(x, query.shape[:2]) for x in visible))
    inputs = (query, key, value, visible)
    return shards.attend(lambda q, k, v, seen: kernel(q, k, v, *seen), cut, *inputs)


def _candidates() -> tuple[str, ...]:
    """Names of kernels to try before the chunked XLA code."""
    from jax.extend.backend import get_default_device

    return _KERNELS.get(get_default_device().platform, ())


@functools.cache
def _kernel(names: tuple[str, ...], shapes: tuple[Any, ...], **spec: Any) -> Kernel:
    """The first of `names` that takes inputs of these shapes, else the chunked XLA code."""
    for name in names:
        kernel = _tokamax(name, **spec)
        if _has_gradient(name, kernel, shapes):
            return kernel
    return _tokamax("xla_chunked", **spec)


def _has_gradient(name: str, kernel: Kernel, shapes: tuple[Any, ...]) -> bool:
    """Tokamax refuses what it has not got when it is traced, some of it only backward.

    A version that is not for this JAX fails there, too: 0.0.12 of all kernels on JAX 0.11.
    """
    import jax

    def gradient(query: Tensor, key: Tensor, value: Tensor, *visible: Tensor) -> Any:
        output, vjp = jax.vjp(lambda *x: kernel(*x, *visible), query, key, value)
        return vjp(output)

    try:
        jax.eval_shape(gradient, *shapes)
    except NotImplementedError:
        return False
    except Exception as error:
        warn(
            f"Tokamax's attention {name!r} does not work with JAX {jax.__version__} "
            f"({type(error).__name__}: {str(error)[:100]}): slower code takes its place. Install "
            'versions that fit each other: pip install --upgrade "keras-encdec[jax]".'
        )
        return False
    return True


def _tokamax(name: str, *, scale: float, soft_cap: float | None) -> Kernel:
    """A Tokamax implementation as a function of query, key, value, start and end."""
    try:
        implementations, make_mask = tokamax_attention()
        logging.getLogger("absl").addFilter(_says_more_than_tuning)
    except ImportError as error:
        raise ImportError(
            f"Expected Tokamax for fused attention on JAX. Received: {error}. Install it: "
            'pip install "keras-encdec[jax]", or set attention to "plain".'
        ) from error

    def kernel(query: Tensor, key: Tensor, value: Tensor, start: Tensor, end: Tensor) -> Tensor:
        mask = make_mask(k_start=start[:, None], k_end=end[:, None])
        spec = {"mask": mask, "logits_scale": scale, "logits_soft_cap": soft_cap}
        return implementations[name](query, key, value, **spec)

    return _aligned(kernel) if name.startswith("mosaic") else _by_blocks(kernel)


def _says_more_than_tuning(record: logging.LogRecord) -> bool:
    """Tokamax tells all there is to a shape that it has no tuned tiles for, at each trace."""
    return not str(record.msg).startswith("Autotuning cache miss")


def _aligned(kernel: Kernel) -> Kernel:
    """`kernel` on lengths filled up to whole tiles.

    Others fail in Hopper's kernel where it has key ranges, and in Blackwell's backward
    (pallas_mosaic_gpu_kernel_sm90.py and pallas_mosaic_gpu_vjp_kernel_sm100.py).
    """

    def run(query: Tensor, key: Tensor, value: Tensor, start: Tensor, end: Tensor) -> Tensor:
        length = query.shape[1]
        inputs = (
            _fill(x, -(-x.shape[1] // _BLOCK) * _BLOCK) for x in (query, key, value, start, end)
        )
        return kernel(*inputs)[:, :length]

    return run


def _by_blocks(kernel: Kernel) -> Kernel:
    """`kernel` on one block of queries after another, for kernels that make a (T, S) mask.

    Only a block's mask exists, and what a block computes is computed again in the
    backward pass.
    """
    import jax
    import jax.numpy as jnp

    def run(query: Tensor, key: Tensor, value: Tensor, start: Tensor, end: Tensor) -> Tensor:
        length = query.shape[1]
        count = -(-length // _BLOCK)
        size = -(-length // count)

        def split(x: Tensor) -> Tensor:
            """(B, T, ...) to (count, B, size, ...)."""
            return jnp.moveaxis(_fill(x, count * size).reshape(-1, count, size, *x.shape[2:]), 1, 0)

        @jax.checkpoint
        def one(block: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            query, start, end = block
            return kernel(query, key, value, start, end)

        output = jax.lax.map(one, tuple(split(x) for x in (query, start, end)))
        return jnp.moveaxis(output, 0, 1).reshape(-1, count * size, *query.shape[2:])[:, :length]

    return run


def _fill(x: Tensor, length: int) -> Tensor:
    """(B, T, ...) to (B, length, ...), which repeats the last of T."""
    import jax.numpy as jnp

    widths = [(0, 0)] * x.ndim
    widths[1] = (0, length - x.shape[1])
    return jnp.pad(x, widths, mode="edge")
