"""Which dimension of a weight is cut along which axis of a mesh.

Knows the names of weights and of axes. Leaves what a device then holds to `keras_encdec.layout`.
"""

import re
from collections.abc import Iterator, Mapping

import keras

from keras_encdec.spec import EncoderSpec, PairSpec, Shape

BATCH, MODEL = "batch", "model"
Axes = tuple[str | None, ...]

# For each weight, the mesh axis that cuts each of its dimensions: Megatron's order on
# the model axis (arXiv 1909.08053, section 3), so that a sublayer sums over devices once;
# another large dimension on the batch axis, so that each device keeps a share of
# everything (ZeRO stage 3, arXiv 1910.02054). H rather than D in attention_output fits
# int4 too, which Keras stores as (N * H, D / 2).
_AXES: dict[str, Axes] = {
    "embedding/embeddings": (MODEL, BATCH),  # (V, D)
    "embedding/reverse_embeddings": (BATCH, MODEL),  # (D, V)
    "query/kernel": (BATCH, MODEL, None),  # (D, N, H)
    "key/kernel": (BATCH, MODEL, None),  # (D, K, H)
    "value/kernel": (BATCH, MODEL, None),
    "query/bias": (MODEL, None),  # (N, H)
    "key/bias": (MODEL, None),  # (K, H)
    "value/bias": (MODEL, None),
    "attention_output/kernel": (MODEL, BATCH, None),  # (N, H, D)
    "attention_output/bias": (),  # (D,)
    "sinks": (MODEL,),  # (N,)
    "gate/kernel": (BATCH, MODEL),  # (D, F)
    "up/kernel": (BATCH, MODEL),
    "down/kernel": (MODEL, BATCH),  # (F, D)
    "adaptor/projection/kernel": (MODEL, BATCH),  # (D, width of the adaptor)
    "adaptor/scale": (),  # (G,)
    "router/kernel": (None, None),  # (D, E)
    "router/bias": (),  # (E,)
    "shared_weight/kernel": (None, None),  # (D, 1)
    "experts/gate": (MODEL, BATCH, None),  # (E, D, F)
    "experts/up": (MODEL, BATCH, None),
    "experts/down": (MODEL, None, BATCH),  # (E, F, D)
    **dict.fromkeys((f"experts/{name}_bias" for name in ("gate", "up", "down")), (MODEL, None)),
    "per_layer/projection/kernel": (BATCH, None),  # (D, L * P)
    "per_layer/output/kernel": (MODEL, BATCH),  # (P, D)
    "norm/scale": (),  # (D,), (H,), (N, H) or (K, H)
    **dict.fromkeys(("gate/scale", "layer_scalar/scale"), ()),
    "router/scale": (),  # (D,)
    "router/expert_scale": (None,),  # (E,)
}
# What the embedding of a KerasHub teacher gives in its backbone: without it XLA follows the
# weight, and every device computes the whole batch; see `rows_apart`. Logits, which the same
# layer writes outside of the backbone, are cut by words.
_TEACHER_STATES = ".+/token_embedding/output"
_KEYS_AND_VALUES = ("key/kernel", "value/kernel", "key/bias", "value/bias")


def layout_map(
    device_mesh: keras.distribution.DeviceMesh,
    spec: PairSpec | EncoderSpec | None = None,
    model_parallel_dim_name: str = MODEL,
    data_parallel_dim_name: str = BATCH,
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
    names = {MODEL: model_parallel_dim_name, BATCH: data_parallel_dim_name}
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
    rules |= {k: tuple(a if a == BATCH else None for a in axes) for k, axes in few.items()}
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


def axis_sizes(device_mesh: keras.distribution.DeviceMesh) -> dict[str, int]:
    """Devices along each axis of a mesh."""
    return dict(zip(device_mesh.axis_names, device_mesh.shape, strict=True))
