"""Where each weight lies on several devices, and how it gets there.

Knows what a device holds, and moves arrays from the host to their devices in shards. Leaves which
dimension is cut along which axis to `keras_encdec.layout.axes`, meshes, distributions and the
compiler's work to `keras.distribution` and JAX, and what is loaded to `keras_encdec.conversion` and
`keras_encdec.sharing`.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_encdec.layout.axes import MODEL, axis_sizes
from keras_encdec.spec import Shape, Tensor


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
    model = others[0] if len(others) == 1 else MODEL if MODEL in others else None
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
