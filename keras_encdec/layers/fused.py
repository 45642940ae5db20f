"""Attention in less memory than its logits take, where the backend has it.

Knows which kernel is for which backend and device, asks each whether it takes an attention, and
runs it on each device's shard. Leaves when to use them to `keras_encdec.layers.choice`, and the
reference to `keras_encdec.layers.attention`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.layers import by_head, masks, shards, splash, tokamax
from keras_encdec.layers.masks import KeyRange, Limits, Segments
from keras_encdec.layers.shards import Attend, Cut
from keras_encdec.spec import Shape, Tensor
from keras_encdec.warn import warn

# By backend, the fastest first, with the platform that each runs on, None for all. PyTorch's own
# takes no soft cap and keeps a (B, 1, T, S) mask; TensorFlow has none.
_KERNELS: dict[str, dict[str, str | None]] = {
    "jax": {
        "mosaic_gpu": "gpu",
        "triton": "gpu",
        "splash": "tpu",
        "xla_by_head": "cpu",
        "xla_chunked": None,
    },
    "torch": {"sdpa": None},
}
KERNELS = tuple(name for names in _KERNELS.values() for name in names)
_WITHOUT_SINKS = ("mosaic_gpu", "triton", "sdpa")

Refusals = tuple[tuple[str, str], ...]


def said(refused: Refusals) -> str:
    """Names with their reasons in brackets; nothing if there are none."""
    reasons = "; ".join(f"{name} {reason}" for name, reason in refused)
    return f"({reasons})" if reasons else ""


class Problem(NamedTuple):
    """An attention that a kernel may take.

    Args:
        query: its shape, (B, T, N, H).
        key: (B, S, K, H), as of the values.
        dtype: of all three.
        scale: multiplies the queries.
        soft_cap: on the logits, or None.
        limits: None where these, or the segments, are not known.
        sinks: whether each query head has a logit of its own in the softmax.
    """

    query: Shape
    key: Shape
    dtype: str
    scale: float
    soft_cap: float | None
    limits: Limits | None
    sinks: bool = False


def cut(problem: Problem) -> Cut | None:
    """How the active distribution cuts it; None without one."""
    return shards.cut(problem.query, problem.key)


def obstacle(name: str, soft_cap: float | None, sinks: bool = False) -> str | None:
    """Why a kernel can take nothing here under this soft cap and sinks; None where it may.

    Args:
        name: one of `KERNELS`, or `"fused"` for all that this backend has.
        soft_cap: of the attention.
        sinks: whether it has them.
    """
    here = _KERNELS.get(keras.backend.backend(), {})
    if name == "fused":
        found = [(other, obstacle(other, soft_cap, sinks)) for other in here]
        refused = tuple((other, reason) for other, reason in found if reason is not None)
        nothing = f"finds no kernel on {keras.backend.backend()}"
        return None if len(refused) < len(here) else f"{nothing} {said(refused)}".rstrip()
    if name not in here:
        backend = next(backend for backend, names in _KERNELS.items() if name in names)
        return f"is for {backend}, and this is {keras.backend.backend()}"
    if name == "sdpa" and soft_cap is not None:
        return f"takes no soft cap, and here it is {soft_cap}"
    if name != "sdpa" and here[name] not in (None, layout.platform()):
        return f"runs on {here[name]}, and this is {layout.platform()}"
    if sinks and name in _WITHOUT_SINKS:
        return "takes no sinks, which the heads here have"
    if sinks and soft_cap is not None and name == "xla_chunked":
        return "takes no sinks beside a soft cap"
    if name == "sdpa":
        return None
    if name not in ("splash", "xla_by_head") and not tokamax.is_installed():
        return 'is Tokamax\'s, which is not installed: pip install "keras-encdec[jax]"'
    return None


def choose(name: str, problem: Problem) -> tuple[str | None, Refusals]:
    """The kernel that takes an attention, and why those before it do not.

    Args:
        name: one of `KERNELS`, or `"fused"` for the fastest.
        problem: what it is asked for.

    Returns:
        `(name or None, ((name, reason), ...))`.
    """
    names = _KERNELS.get(keras.backend.backend(), {}) if name == "fused" else (name,)
    refused: list[tuple[str, str]] = []
    for kernel in names:
        reason = obstacle(kernel, problem.soft_cap, problem.sinks)
        if reason is None and keras.backend.backend() == "jax":
            reason = _refusal(kernel, problem, cut(problem))
        if reason is None:
            return kernel, tuple(refused)
        refused.append((kernel, reason))
    return None, tuple(refused)


@functools.cache
def _refusal(name: str, problem: Problem, cut: Cut | None) -> str | None:
    """Why a kernel of JAX does not take a device's shard of an attention, or its gradient.

    Tokamax refuses what it has not got when it is traced, some of it only backward. A version
    that is not for this JAX fails there, too: 0.0.12 of all kernels on JAX 0.11.
    """
    import jax

    if name == "splash" and problem.limits is None:
        return "needs the limits and segments of a mask, which are not known"
    query, key = shards.shapes(cut, problem.query, problem.key)
    each, keys = (jax.ShapeDtypeStruct(shape[:2], "int32") for shape in (query, key))
    inputs = (jax.ShapeDtypeStruct(shape, problem.dtype) for shape in (query, key, key))
    sinks = jax.ShapeDtypeStruct(query[2:3], "float32") if problem.sinks else None

    def gradient(visible: KeyRange, *given: Tensor) -> Any:
        attend = _kernel(name, problem)
        output, vjp = jax.vjp(lambda q, k, v, sinks: attend(q, k, v, visible, sinks), *given)
        return vjp(output)

    try:
        jax.eval_shape(gradient, KeyRange(each, each, Segments(each, keys)), *inputs, sinks)
    except NotImplementedError as error:
        return f"refuses: {_short(error)}"
    except Exception as error:
        warn(
            f"The attention kernel {name!r} does not work with JAX {jax.__version__} "
            f"({type(error).__name__}: {_short(error)}): slower code takes its place. Install "
            'versions that fit each other: pip install --upgrade "keras-encdec[jax]".'
        )
        return f"fails with JAX {jax.__version__}: {_short(error)}"
    return None


def _short(error: Exception) -> str:
    return str(error)[:100]


def _kernel(name: str, problem: Problem) -> Attend:
    if name == "splash":
        assert problem.limits is not None
        made = functools.partial(splash.kernel, interpret=layout.platform() != "tpu")
        return made(scale=problem.scale, soft_cap=problem.soft_cap, limits=problem.limits)
    if name == "xla_by_head":
        return by_head.kernel(scale=problem.scale, soft_cap=problem.soft_cap)
    return tokamax.kernel(name, scale=problem.scale, soft_cap=problem.soft_cap)


def attend(
    name: str,
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: KeyRange,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `keras_encdec.layers.attention.attend`, by a kernel that `choose` gave.

    Every query must see something.
    """
    if name != "sdpa":
        visible = _whole(visible, problem.query, problem.key)
        inputs = query, key, value, visible, sinks
        return shards.attend(_kernel(name, problem), cut(problem), *inputs)
    mask = masks.dense(visible, ops.shape(key)[1])[:, None]
    return ops.dot_product_attention(query, key, value, mask=mask, scale=problem.scale)


def _whole(visible: KeyRange, query: Sequence[int], key: Sequence[int]) -> KeyRange:
    """With each part of B rows, and of T or S."""
    start, end = (ops.broadcast_to(x, query[:2]) for x in (visible.start, visible.end))
    if visible.segments is None:
        return KeyRange(start, end)
    queries, keys = visible.segments
    queries, keys = ops.broadcast_to(queries, query[:2]), ops.broadcast_to(keys, key[:2])
    return KeyRange(start, end, Segments(queries, keys))
