"""Attention in less memory than its logits take, where the backend has it.

Knows which kernel serves which backend and device. On JAX they are Tokamax's, and memory
grows linearly with the text, forward and backward. PyTorch's own takes no soft cap and
keeps a (B, 1, T, S) mask; TensorFlow has none. Leaves when to use them, and the reference,
to `keras_encdec.layers.attention`.
"""

import functools
import importlib.util

import keras
from keras import ops

from keras_encdec.layers import masks

# Queries at a time; at 8192 x 8192 on two CPU cores faster than 128, 512 and 1024. Also the
# largest tile of queries in Tokamax's Hopper and Blackwell kernels.
_BLOCK = 256

# Tokamax's kernels by platform, the fastest first; its chunked XLA code is for the rest.
# Version 0.0.12's TPU kernel does not take key ranges yet and so gives way to that.
_KERNELS = {"gpu": ("mosaic_gpu", "triton"), "tpu": ("mosaic_tpu",)}


def takes(soft_cap):
    """Whether this backend has a kernel for attention with this soft cap, or None."""
    backend = keras.backend.backend()
    return backend == "jax" or (backend == "torch" and soft_cap is None)


def is_installed():
    """Whether what `attend` needs beside the backend is there."""
    return keras.backend.backend() != "jax" or importlib.util.find_spec("tokamax") is not None


def attend(query, key, value, visible, *, scale, soft_cap):
    """As `keras_encdec.layers.attention.attend`; every query must see something.

    Raises:
        ImportError: on JAX without Tokamax.
    """
    if keras.backend.backend() == "jax":
        return _attend_jax(query, key, value, visible, scale=scale, soft_cap=soft_cap)
    mask = masks.dense(visible, ops.shape(key)[1])[:, None]
    return ops.dot_product_attention(query, key, value, mask=mask, scale=scale)


def _attend_jax(query, key, value, visible, **spec):
    import jax
    import jax.numpy as jnp

    shape = query.shape[:2]
    inputs = (query, key, value, *(jnp.broadcast_to(x, shape) for x in visible))
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)
    return _kernel(_candidates(), shapes, **spec)(*inputs)


def _candidates():
    """Names of kernels to try before the chunked XLA code."""
    from jax.extend.backend import get_default_device

    if keras.distribution.distribution() is not None:
        return ()  # XLA can partition its own code, not a kernel
    return _KERNELS.get(get_default_device().platform, ())


@functools.cache
def _kernel(names, shapes, **spec):
    """The first of `names` that takes inputs of these shapes, else the chunked XLA code."""
    for name in names:
        kernel = _tokamax(name, **spec)
        if _has_gradient(kernel, shapes):
            return kernel
    return _tokamax("xla_chunked", **spec)


def _has_gradient(kernel, shapes):
    """Tokamax refuses what it has not got when it is traced, some of it only backward."""
    import jax

    def gradient(query, key, value, *visible):
        output, vjp = jax.vjp(lambda *x: kernel(*x, *visible), query, key, value)
        return vjp(output)

    try:
        jax.eval_shape(gradient, *shapes)
    except NotImplementedError:
        return False
    return True


def _tokamax(name, *, scale, soft_cap):
    """A Tokamax implementation as a function of query, key, value, start and end."""
    from absl import flags

    try:
        # Only the objects behind the public function take a range of keys per query.
        from tokamax._src.ops.attention import api, base
    except ImportError as error:
        raise ImportError(
            "Expected Tokamax for fused attention on JAX. Received: no such package. "
            'Install it: pip install "keras-encdec[jax]", or set attention to "plain".'
        ) from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS([""])  # else Tokamax takes the program's own arguments for absl's flags

    def kernel(query, key, value, start, end):
        mask = base.Mask(k_start=start[:, None], k_end=end[:, None])
        spec = {"mask": mask, "logits_scale": scale, "logits_soft_cap": soft_cap}
        return api.IMPLEMENTATIONS[name](query, key, value, **spec)

    return _aligned(kernel) if name.startswith("mosaic") else _by_blocks(kernel)


def _aligned(kernel):
    """`kernel` on lengths filled up to whole tiles.

    Others fail in Hopper's kernel where it has key ranges, and in Blackwell's backward
    (pallas_mosaic_gpu_kernel_sm90.py and pallas_mosaic_gpu_vjp_kernel_sm100.py).
    """

    def run(query, key, value, start, end):
        length = query.shape[1]
        inputs = (
            _fill(x, -(-x.shape[1] // _BLOCK) * _BLOCK) for x in (query, key, value, start, end)
        )
        return kernel(*inputs)[:, :length]

    return run


def _by_blocks(kernel):
    """`kernel` on one block of queries after another, for kernels that make a (T, S) mask.

    Only a block's mask exists, and what a block computes is computed again in the
    backward pass.
    """
    import jax
    import jax.numpy as jnp

    def run(query, key, value, start, end):
        length = query.shape[1]
        count = -(-length // _BLOCK)
        size = -(-length // count)

        def split(x):
            """(B, T, ...) to (count, B, size, ...)."""
            return jnp.moveaxis(_fill(x, count * size).reshape(-1, count, size, *x.shape[2:]), 1, 0)

        @jax.checkpoint
        def one(block):
            query, *visible = block
            return kernel(query, key, value, *visible)

        output = jax.lax.map(one, tuple(split(x) for x in (query, start, end)))
        return jnp.moveaxis(output, 0, 1).reshape(-1, count * size, *query.shape[2:])[:, :length]

    return run


def _fill(x, length):
    """(B, T, ...) to (B, length, ...), which repeats the last of T."""
    import jax.numpy as jnp

    widths = [(0, 0)] * x.ndim
    widths[1] = (0, length - x.shape[1])
    return jnp.pad(x, widths, mode="edge")
