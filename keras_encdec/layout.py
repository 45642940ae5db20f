"""Where each weight lies on several devices, and how it gets there.

Knows which dimension of a weight is cut along which axis of a mesh, and moves arrays from the
host to their devices in shards. Leaves meshes, distributions and the compiler's work to
`keras.distribution` and JAX, and what is loaded to `keras_encdec.conversion` and `.sharing`.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_encdec.spec import EncoderSpec, PairSpec, Shape, Tensor

_BATCH, _MODEL = "batch", "model"
Axes = tuple[str | None, ...]

# For each weight, the mesh axis that cuts each of its dimensions: Megatron's order on
# the model axis (arXiv 1909.08053, section 3), so that a sublayer sums over devices once;
# another large dimension on the batch axis, so that each device keeps a share of
# everything (ZeRO stage 3, arXiv 1910.02054). H rather than D in attention_output fits
# int4 too, which Keras stores as (N * H, D / 2).
_AXES: dict[str, Axes] = {
    "embedding/embeddings": (_MODEL, _BATCH),  # (V, D)
    "embedding/reverse_embeddings": (_BATCH, _MODEL),  # (D, V)
    "query/kernel": (_BATCH, _MODEL, None),  # (D, N, H)
    "key/kernel": (_BATCH, _MODEL, None),  # (D, K, H)
    "value/kernel": (_BATCH, _MODEL, None),
    "query/bias": (_MODEL, None),  # (N, H)
    "key/bias": (_MODEL, None),  # (K, H)
    "value/bias": (_MODEL, None),
    "attention_output/kernel": (_MODEL, _BATCH, None),  # (N, H, D)
    "gate/kernel": (_BATCH, _MODEL),  # (D, F)
    "up/kernel": (_BATCH, _MODEL),
    "down/kernel": (_MODEL, _BATCH),  # (F, D)
    "projection/kernel": (_MODEL, _BATCH),  # (D, width of the adaptor)
    "adaptor/scale": (),  # (G,)
    "router/kernel": (None, None),  # (D, E)
    "experts/gate": (_MODEL, _BATCH, None),  # (E, D, F)
    "experts/up": (_MODEL, _BATCH, None),
    "experts/down": (_MODEL, None, _BATCH),  # (E, F, D)
    # (D, L * P) and (P, D)
    **{"projection/kernel": (_BATCH, None), "per_layer/output/kernel": (_MODEL, _BATCH)},
    "norm/scale": (),  # (D,), (H,), (N, H) or (K, H)
    **dict.fromkeys(("gate/scale", "layer_scalar/scale"), ()),
}
# What the embedding of a KerasHub teacher gives in its backbone: without it XLA follows the
# weight, and every device computes the whole batch; see `rows_apart`. Logits, which the same
# layer writes outside of the backbone, are cut by words.
_TEACHER_STATES = ".+/token_embedding/output"
_KEYS_AND_VALUES = ("key/kernel", "value/kernel", "key/bias", "value/bias")


def layout_map(
    device_mesh: keras.distribution.DeviceMesh,
    spec: PairSpec | EncoderSpec | None = None,
    model_parallel_dim_name: str = _MODEL,
    data_parallel_dim_name: str = _BATCH,
) -> keras.distribution.LayoutMap:
    """The layout of every weight of a pair, of its LoRA and of its quantized variables.

    A mesh of (n, 1) shards everything fully, (1, n) is tensor parallel, (m, n) both.
    Norms and the scales of quantized kernels are replicated. Blocks of a stack are
    alike and share their entries: Keras tries each entry at each call of each layer.

    Args:
        device_mesh: `keras.distribution.DeviceMesh` with the two axes.
        spec: of the pair, or of an encoder alone. An axis that does not divide a dimension
            is then left out for it. Without a spec every dimension is cut, but the key/value
            heads, which are often fewer than devices.
        model_parallel_dim_name: the mesh axis for heads, F, V and experts, which lie whole and
            apart on its devices.
        data_parallel_dim_name: the mesh axis for the batch, and for D.

    Returns:
        `keras.distribution.LayoutMap`.

    Raises:
        ValueError: if the mesh has no such axes.
    """
    names = {_MODEL: model_parallel_dim_name, _BATCH: data_parallel_dim_name}
    sizes = axis_sizes(device_mesh)
    if not set(names.values()) <= set(sizes):
        raise ValueError(
            f"Expected a mesh with the axes {sorted(names.values())}. Received: {tuple(sizes)}. "
            "Name them with model_parallel_dim_name and data_parallel_dim_name."
        )
    entries = _rules() if spec is None else _fitted(spec, {k: sizes[v] for k, v in names.items()})
    result = keras.distribution.LayoutMap(device_mesh)
    for pattern, axes in entries.items():
        for path, parts in _with_adapters(pattern, axes):
            result[path] = tuple(part and names[part] for part in _trimmed(parts))
    result[_TEACHER_STATES] = (data_parallel_dim_name, None, None)
    return result


def _rules() -> dict[str, Axes]:
    """Axes by pattern of a weight's path, for pairs of any size."""
    rules = {rf"(?<!_)(encoder|decoder)/(.*/)?\w*{name}": axes for name, axes in _AXES.items()}
    few = {k: v for k, v in rules.items() if k.endswith(_KEYS_AND_VALUES)}
    rules |= {k: tuple(a if a == _BATCH else None for a in axes) for k, axes in few.items()}
    return rules


def _fitted(spec: PairSpec | EncoderSpec, sizes: Mapping[str, int]) -> dict[str, Axes]:
    """Axes by pattern of a weight's path: those that divide its dimension in every block."""
    fitted: dict[str, Axes] = {}
    for path, shape in spec.weights().items():
        fits = tuple(
            a and (a if n % sizes[a] == 0 else None)
            for n, a in zip(shape, _wanted(path, shape), strict=True)
        )
        pattern = re.sub(r"/block_\d+/", r"/block_\\d+/", path)
        both = zip(fits, fitted.get(pattern, fits), strict=True)
        fitted[pattern] = tuple(a if a == b else None for a, b in both)
    return fitted


def _wanted(path: str, shape: Shape) -> Axes:
    """An axis or None for each dimension of a weight of a pair, whatever its size."""
    if path.startswith("vision/"):
        return (None,) * len(shape)  # frozen, and small beside the stacks
    axes = next(axes for name, axes in _AXES.items() if path.endswith(name))
    return (*axes, *[None] * (len(shape) - len(axes)))


def undivided(
    device_mesh: keras.distribution.DeviceMesh, spec: PairSpec
) -> Iterator[tuple[str, int, str]]:
    """Each dimension that `layout_map` leaves whole, as an axis does not divide it.

    Args:
        device_mesh: `keras.distribution.DeviceMesh` with the axes `batch` and `model`.
        spec: the pair.

    Yields:
        The weight's path, the dimension's size, and the axis.
    """
    sizes = axis_sizes(device_mesh)
    for path, shape in spec.weights().items():
        for n, axis in zip(shape, _wanted(path, shape), strict=True):
            if axis and n % sizes[axis]:
                yield path, n, axis


def _with_adapters(path: str, axes: Axes) -> Iterator[tuple[str, Axes]]:
    """A weight, and what LoRA and quantization put beside it."""
    yield path, axes
    layer, _, name = path.rpartition("/")
    if name not in ("scale", "bias"):
        yield f"{layer}/lora_{name}_a", (*axes[:-1], None)
        yield f"{layer}/lora_{name}_b", (None, axes[-1])
        yield f"{layer}/{name}_(scale|zero)", ()
    if name in ("kernel", "embeddings"):
        yield f"{layer}/g_idx", ()  # of int4, once for a layer


def _trimmed(axes: Axes) -> Axes:
    """Without the last axes that are None, so that it fits an int4 kernel's two dimensions."""
    return _trimmed(axes[:-1]) if axes and axes[-1] is None else axes


@dataclasses.dataclass(frozen=True)
class Weight:
    """A variable before it exists, as far as layouts and optimizers ask for it.

    Args:
        path: of the variable.
        shape: of the variable.
        dtype: of the variable.
        trainable: whether it has a gradient.
        layout: `keras.distribution.TensorLayout`, or None.
    """

    path: str
    shape: Shape
    dtype: str = "float32"
    trainable: bool = True
    layout: keras.distribution.TensorLayout | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def _layout(self) -> keras.distribution.TensorLayout | None:  # as Keras calls it
        return self.layout


def check(weights: Mapping[str, Shape]) -> None:
    """Refuses weights that the active distribution cannot cut evenly.

    Args:
        weights: shape by path.

    Raises:
        ValueError: with the first weight that does not fit.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    sizes = axis_sizes(distribution.device_mesh)
    for path, shape in weights.items():
        axes = distribution.get_variable_layout(Weight(path, shape)).axes
        for size, axis in zip(shape, axes, strict=False):
            if axis and size % sizes[axis]:
                raise ValueError(
                    f"Expected dimensions of {path} that the mesh divides. Received: shape "
                    f"{shape}, where {size} is cut along {axis!r} of {sizes[axis]} devices. "
                    "Give the pair's spec to get_layout_map, or choose another mesh."
                )


def check_placed(parts: Mapping[str, Iterable[keras.Variable]]) -> None:
    """Refuses variables that were made before the active distribution was set.

    Args:
        parts: variables by what they belong to, such as `"model"`.

    Raises:
        ValueError: naming the first of them.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    devices = math.prod(distribution.device_mesh.shape)
    for what, variables in parts.items():
        for variable in variables:
            value = variable._value
            if value is not None and len(value.sharding.device_set) != devices:
                raise ValueError(
                    f"Expected the {what} to be made after keras.distribution.set_distribution. "
                    f"Received: {variable.path} on {len(value.sharding.device_set)} of "
                    f"{devices} devices. Set the distribution first, then load or convert the "
                    "model and its teacher, then make the optimizer and compile."
                )


def spread_out(variables: Iterable[keras.Variable]) -> None:
    """Lays variables that no layout map knows on all devices, such as those of a teacher.

    Each is cut along its largest dimension that the devices divide, under `ModelParallel`;
    what cannot be cut lies whole on each of them.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    import jax

    mesh = distribution.device_mesh
    cuts = isinstance(distribution, keras.distribution.ModelParallel)
    for variable in variables:
        axes = largest_cut(variable.shape, axis_sizes(mesh)) if cuts else ()
        spec = jax.sharding.PartitionSpec(*axes)
        sharding = jax.sharding.NamedSharding(mesh.backend_mesh, spec)
        variable._layout = sharding  # Keras lays each new value so
        variable._value = _shards(np.asarray(variable._value), sharding)


def largest_cut(shape: Shape, sizes: Mapping[str, int]) -> tuple[tuple[str, ...] | None, ...]:
    """Of each dimension the axes that cut it: one, by all axes or else the longest that does.

    Args:
        shape: of a weight that no layout map knows; vectors stay whole.
        sizes: devices along each axis of the mesh, that of the batch first, which cuts last:
            an embedding then lies as the output loss reads it (`keras_encdec.training.replicas`).
    """
    alone = sorted(sizes, key=lambda name: -sizes[name])
    for names in (tuple(sizes)[::-1], *((name,) for name in alone)):
        count = math.prod(sizes[name] for name in names)
        fit = [(size, i) for i, size in enumerate(shape) if size % count == 0]
        if len(shape) > 1 and fit:
            return (*[None] * max(fit)[1], names)
    return ()


def shard_shape(shape: Shape, layout: keras.distribution.TensorLayout | None) -> Shape:
    """What one device holds of a tensor.

    Args:
        shape: of the whole.
        layout: `keras.distribution.TensorLayout`, or None for one device.
    """
    if layout is None:
        return shape
    sizes = axis_sizes(layout.device_mesh)
    axes = (*layout.axes, *[None] * (len(shape) - len(layout.axes)))
    return tuple(n // sizes[a] if a else n for n, a in zip(shape, axes, strict=True))


def place(variable: keras.Variable, array: Any, dtype: str | None = None) -> Tensor:
    """An array on the devices of a variable: each receives its shard, none the whole.

    Args:
        variable: `keras.Variable`, with a value or without.
        array: of the variable's shape; a NumPy array, or what h5py reads it from.
        dtype: in place of the variable's.

    Returns:
        The backend's tensor, of the variable's dtype.
    """
    distribution = keras.distribution.distribution()
    dtype = dtype or variable.dtype
    if distribution is None or keras.ops.is_tensor(array):
        return keras.ops.convert_to_tensor(array, dtype)
    array = np.asarray(array).astype(np.dtype(dtype), copy=False)
    return spread(array, distribution.get_variable_layout(variable))


def spread(array: np.ndarray, tensor_layout: keras.distribution.TensorLayout) -> Tensor:
    """An array that each process has, on the devices of a layout: each receives its shard."""
    return _shards(array, tensor_layout.backend_layout)


def _shards(array: np.ndarray, sharding: Any) -> Tensor:
    import jax

    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@contextlib.contextmanager
def placing(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """While it is open, what is assigned to the variables goes to their devices in shards.

    Keras assigns by way of a copy on the first device (keras-team/keras#21634).
    """
    variables = list(variables) if keras.distribution.distribution() else []
    for variable in variables:
        variable._convert_to_tensor = functools.partial(place, variable)
    try:
        yield
    finally:
        for variable in variables:
            del variable._convert_to_tensor


def rows_apart(x: Tensor) -> Tensor:
    """A batch whose rows stay on the devices that read them, as far as they divide it.

    Without it XLA follows the embedding, which is cut along D, and every device computes
    the whole batch: twice the memory of a step on a mesh of (8, 1).

    Args:
        x: (B, ...), such as embedded tokens.

    Returns:
        `x`, with a layout for the compiler if a distribution is active.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or not x.shape[0] or x.shape[0] % distribution.num_model_replicas:
        return x
    axes = (distribution.batch_dim_name, *[None] * (len(x.shape) - 1))
    layout = keras.distribution.TensorLayout(axes, distribution.device_mesh)
    return keras.distribution.distribute_tensor(x, layout)


def stacked(arrays: Sequence[Tensor], variable: keras.Variable) -> Tensor:
    """Arrays of one shape as one with an axis before theirs, cut as each of them is.

    Args:
        arrays: values of variables that are alike.
        variable: one of these.
    """
    array = keras.ops.stack(arrays)
    distribution = keras.distribution.distribution()
    if distribution is None:
        return array
    axes = distribution.get_variable_layout(variable).axes
    layout = keras.distribution.TensorLayout((None, *axes), distribution.device_mesh)
    return keras.distribution.distribute_tensor(array, layout)


class ActivationAxes(NamedTuple):
    """Along which axes of a mesh of JAX activations are cut: `batch`, and `model` or None."""

    mesh: Any
    batch: str
    model: str | None


def activation_axes() -> ActivationAxes | None:
    """Those of the active distribution; None without one.

    The axis for heads, F and V is the one beside the batch's. Of several it is the one of
    `layout_map`'s default name; without that there is none.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    mesh, batch = distribution.device_mesh, distribution.batch_dim_name
    others = [name for name in mesh.axis_names if name != batch]
    if not isinstance(distribution, keras.distribution.ModelParallel):
        others = []  # their weights lie whole on each device
    model = others[0] if len(others) == 1 else _MODEL if _MODEL in others else None
    return ActivationAxes(mesh.backend_mesh, batch, model)


def replicas() -> int:
    """Groups of rows that lie on devices of their own."""
    return getattr(keras.distribution.distribution(), "num_model_replicas", 1)


def platform() -> str:
    """Of the devices that JAX computes on: `"cpu"`, `"gpu"` or `"tpu"`."""
    from jax.extend.backend import get_default_device

    axes = activation_axes()
    return (get_default_device() if axes is None else axes.mesh.devices.flat[0]).platform


def as_laid(variable: Any) -> Tensor:
    """The value of a variable, whose gradient is laid as the variable is.

    Without it XLA lays weight and moments as the gradient comes, and back after each step.

    Args:
        variable: `keras.Variable`, or a tensor, which is left as it is.
    """
    distribution = keras.distribution.distribution()
    if not isinstance(variable, keras.Variable) or distribution is None:
        return variable
    layout = distribution.get_variable_layout(variable)
    return keras.distribution.distribute_tensor(variable.value, layout)


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """While it is open, models are made in the host's memory, on no accelerator.

    Without an active distribution it does nothing.
    """
    active = keras.distribution.distribution()
    if active is None:
        yield
        return
    import jax

    keras.distribution.set_distribution(None)
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            yield
    finally:
        keras.distribution.set_distribution(active)


def axis_sizes(device_mesh: keras.distribution.DeviceMesh) -> dict[str, int]:
    """Devices along each axis of a mesh."""
    return dict(zip(device_mesh.axis_names, device_mesh.shape, strict=True))
