"""An attention on several devices: to each its rows and its heads, to none what is another's.

Knows along which axes of the active `keras.distribution` queries, keys and values are cut, and
which key/value heads the query heads of a device attend to. Leaves what is computed of a shard
to who calls, and where weights lie to `keras_encdec.layout`. JAX alone has distributions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras_encdec import layout
from keras_encdec.layers.masks import KeyRange
from keras_encdec.spec import Shape, Tensor

Attend = Callable[[Tensor, Tensor, Tensor, KeyRange, Tensor | None], Tensor]


class Cut(NamedTuple):
    """How queries (B, T, N, H) and keys and values (B, S, K, H) are cut.

    Args:
        mesh: of JAX.
        rows: the axis of the mesh that cuts B; None where none does or it does not divide B.
        heads: the one that cuts N, likewise.
        keys: whether that cuts K, too. Else each device has all K of its rows, and takes those
            that its query heads attend to.
    """

    mesh: Any
    rows: str | None
    heads: str | None
    keys: bool

    def __str__(self) -> str:
        axes = {"rows": self.rows, "heads": self.heads}
        cuts = [f"{name} by {self.mesh.shape[axis]}" for name, axis in axes.items() if axis]
        return " and ".join(cuts) or "whole on each device"


def cut(query: Shape, key: Shape) -> Cut | None:
    """The cut of queries and keys of these shapes; None without a distribution."""
    axes = layout.activation_axes()
    if axes is None:
        return None
    (batch, heads), kv_heads, sizes = (query[0], query[2]), key[2], axes.mesh.shape

    def cuts(axis: str | None, size: int) -> bool:
        return axis is not None and sizes[axis] > 1 and size % sizes[axis] == 0

    rows = axes.batch if cuts(axes.batch, batch) else None
    model = axes.model if cuts(axes.model, heads) else None
    return Cut(axes.mesh, rows, model, cuts(model, kv_heads))


def attend(attend: Attend, cut: Cut | None, *inputs: Any) -> Tensor:
    """`attend` on each device's shard.

    Args:
        attend: of (query, key, value, visible, sinks) to an output of the queries' shape.
        cut: from `cut`.
        *inputs: (B, T, N, H), (B, S, K, H) twice, a `KeyRange` whose parts all have B rows, and
            (N,) sinks or None.

    Returns:
        (B, T, N, H), cut as the queries.
    """
    if cut is None:
        return attend(*inputs)
    import jax

    rows = jax.sharding.PartitionSpec(cut.rows)
    heads = jax.sharding.PartitionSpec(cut.rows, None, cut.heads)
    keys = heads if cut.keys else rows
    of_heads = jax.sharding.PartitionSpec(cut.heads)

    def run(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        if cut.heads and not cut.keys:
            group = inputs[0].shape[2] // key.shape[2]
            key, value = (_own(x, cut.heads, query.shape[2], group) for x in (key, value))
        return attend(query, key, value, *rest)

    # A kernel does not say along which axes its output varies.
    specs = (heads, keys, keys, rows, of_heads)
    return jax.shard_map(run, mesh=cut.mesh, in_specs=specs, out_specs=heads, check_vma=False)(
        *inputs
    )


def _own(x: Tensor, axis: str, count: int, group: int) -> Tensor:
    """Of (B, S, K, H) the heads of this device's `count` query heads, of which `group` share one.

    One where they share it, else one for each.
    """
    import jax
    import jax.numpy as jnp

    first = jax.lax.axis_index(axis) * count
    if group % count == 0:
        return jax.lax.dynamic_slice_in_dim(x, first // group, 1, axis=2)
    return jnp.take(x, (first + jnp.arange(count)) // group, axis=2)


def shapes(cut: Cut | None, query: Shape, key: Shape) -> tuple[Shape, Shape]:
    """What a device has of queries and keys of these shapes, as `attend` gives them."""
    if cut is None:
        return query, key
    sizes = cut.mesh.shape
    batch = query[0] // (sizes[cut.rows] if cut.rows else 1)
    heads = query[2] // (sizes[cut.heads] if cut.heads else 1)
    kv_heads = key[2]
    if cut.keys:
        kv_heads //= sizes[cut.heads]
    elif cut.heads:
        kv_heads = 1 if query[2] // key[2] % heads == 0 else heads
    return (batch, query[1], heads, query[3]), (batch, key[1], kv_heads, key[3])
