"""What a model computes with: LoRA merged, quantised weights dequantised.

Knows how Keras 3.15 keeps both in Dense, EinsumDense and Embedding layers, ours and
KerasHub's alike, and how experts keep theirs, and reads one weight at a time. Under int8 Keras
also rounds what goes into a layer: that is no weight, and nothing here can give it.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encdec.layers.experts import KERNELS, Experts
from keras_encdec.spec import Shape, Tensor

# Attributes of a layer with a kernel or embeddings, by the name of the variable. Beside each
# stand, by that name, `{name}_scale`, `{name}_zero`, `lora_{name}_a` and `lora_{name}_b`.
_KERNELS = {"kernel": "_kernel"}
_EMBEDDINGS = {"embeddings": "_embeddings", "reverse_embeddings": "reverse_embeddings"}
_MODES = (None, "int8", "int4", "float8")


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight as it is computed with.

    Args:
        variable: the one that has its name, of whatever shape and dtype it is kept in.
        shape: of the weight.
        dtype: that it is given in, the layer's for variables.
        read: computes it.
    """

    variable: keras.Variable
    shape: Shape
    dtype: str
    read: Callable[[], np.ndarray]


class EffectiveWeights(Mapping[str, np.ndarray]):
    """Arrays by path, each computed when it is asked for.

    Args:
        model: a built Keras model.
        rename: gives the path of a variable.

    Raises:
        ValueError: if a layer is quantised in a way that is not known.
    """

    def __init__(
        self, model: keras.Model, rename: Callable[[keras.Variable], str] = lambda v: v.path
    ):
        weights = list(_weights(model))
        self._weights = dict(
            zip(_numbered([rename(w.variable) for w in weights]), weights, strict=True)
        )

    def __getitem__(self, path: str) -> np.ndarray:
        return self._weights[path].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def headers(self) -> dict[str, tuple[Shape, str]]:
        """Shape and dtype by path; nothing is computed."""
        return {path: (weight.shape, weight.dtype) for path, weight in self._weights.items()}

    def release(self, path: str) -> None:
        """Frees what a weight is kept in; the model is of no use afterwards."""
        self._weights[path].variable._value = None


def effective_weights(model: keras.Model) -> EffectiveWeights:
    """Each weight of a model by its path, as the model computes with it.

    A layer with LoRA has one weight, `kernel + alpha / rank * a @ b`; a quantised one its
    codes with scales and zero points; other variables are themselves. Arithmetic is in float32,
    and a weight comes in the dtype that its layer keeps variables in.

    Args:
        model: a built Keras model, such as `EncDecBackbone`.

    Returns:
        A mapping from path to a NumPy array, one computed at a time.

    Raises:
        ValueError: if a layer is quantised in a way that is not known, or computes with two
            matrices where a model without LoRA has one.
    """
    return EffectiveWeights(model)


def _numbered(names: list[str]) -> list[str]:
    """With `#0`, `#1`, ... behind each name that stands there more than once."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    seen: Counter[str] = Counter()
    apart = []
    for name in names:
        apart.append(f"{name}#{seen[name]}" if name in shared else name)
        seen[name] += 1
    return apart


def _weights(model: keras.Model) -> Iterator[Weight]:
    """In the order of `model.weights`, without the variables that others are made with."""
    made: dict[int, Weight] = {}
    parts: set[int] = set()
    for layer in model._flatten_layers():
        weights = list(_of_layer(layer))
        made |= {id(weight.variable): weight for weight in weights}
        if weights:
            parts |= {id(v) for v in layer.variables if not v.name.endswith("bias")}
    for variable in model.weights:
        if id(variable) in made:
            yield made[id(variable)]
        elif id(variable) not in parts:
            yield _plain(variable)


def _plain(variable: keras.Variable) -> Weight:
    return Weight(
        variable,
        tuple(variable.shape),
        str(variable.dtype),
        lambda: ops.convert_to_numpy(variable.value),
    )


def _of_layer(layer: keras.layers.Layer) -> Iterator[Weight]:
    """The weights of a layer that are kept otherwise than computed with."""
    if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
        names = _KERNELS
    elif isinstance(layer, keras.layers.Embedding):
        names = {k: v for k, v in _EMBEDDINGS.items() if hasattr(layer, v)}
    elif isinstance(layer, Experts):
        names = {name: name for name in KERNELS}
    else:
        return
    if layer.quantization_mode is None and not _has_lora(layer):
        return
    _check(layer)
    for name, attribute in names.items():
        variable = getattr(layer, attribute)
        read = _reader(layer, name, variable)
        yield Weight(variable, _shape(layer, name, variable), layer.variable_dtype, read)


def _has_lora(layer: Any) -> bool:
    return getattr(layer, "lora_enabled", False)


def _check(layer: Any) -> None:
    mode = layer.quantization_mode
    if mode not in _MODES:
        raise ValueError(
            f"Expected layers in float or quantised by one of {_MODES[1:]}. Received: "
            f"{layer.path} in {mode!r}."
        )
    tied = getattr(layer, "tie_weights", False)
    if mode is not None and _has_lora(layer) and tied:  # as in Keras 3.15's _int8_call
        raise ValueError(
            f"Expected LoRA elsewhere than on a quantised embedding. Received: {layer.path}, "
            "which Keras embeds with LoRA and reads out without it: no one matrix holds both."
        )


def _shape(layer: Any, name: str, variable: keras.Variable) -> Shape:
    """Of a weight; int4 packs two numbers into one."""
    if layer.quantization_mode != "int4":
        return tuple(variable.shape)
    if name == "embeddings":
        return layer.input_dim, layer.output_dim
    if name == "reverse_embeddings":
        return layer.output_dim, layer.input_dim
    if isinstance(layer, keras.layers.EinsumDense):
        return tuple(layer.original_kernel_shape)
    return layer._orig_input_dim, layer._orig_output_dim


def _reader(layer: Any, name: str, variable: keras.Variable) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = _dequantized(layer, name, variable)
        if _has_lora(layer) and hasattr(layer, f"lora_{name}_a"):
            a, b = (_float32(getattr(layer, f"lora_{name}_{side}")) for side in "ab")
            array = array + layer.lora_alpha / layer.lora_rank * np.matmul(a, b)
        return array.astype(layer.variable_dtype)

    return read


def _dequantized(layer: Any, name: str, variable: keras.Variable) -> np.ndarray:
    if layer.quantization_mode == "int8":
        return _float32(variable) / _scale(layer, name)
    if layer.quantization_mode == "int4":
        return _from_int4(layer, name, variable)
    if layer.quantization_mode == "float8":
        kernel, scale = variable.value, layer.kernel_scale.value
        rounded = keras.quantizers.quantize_and_dequantize(
            kernel, scale, "float8_e4m3fn", layer.compute_dtype
        )
        return _float32(rounded)
    return _float32(variable)


def _from_int4(layer: Any, name: str, variable: keras.Variable) -> np.ndarray:
    """Each column of a kernel, or row of an embedding, in groups with a scale each, or whole."""
    shape = _shape(layer, name, variable)
    packed_axis, group_axis = {
        "kernel": (-1, 0),
        "embeddings": (-1, -1),
        "reverse_embeddings": (0, 0),
    }[name]
    columns = getattr(layer, "_int4_unpacked_column_size", shape[packed_axis])
    codes = _float32(keras.quantizers.unpack_int4(variable.value, columns, axis=packed_axis))
    if not hasattr(layer, f"{name}_zero"):
        return np.reshape(codes / _scale(layer, name), shape)
    groups = _float32(layer.g_idx).astype(int)
    scale, zero = (
        np.take(_float32(getattr(layer, f"{name}_{kind}")), groups, axis=group_axis)
        for kind in ("scale", "zero")
    )
    return np.reshape((codes - zero) * scale, shape)


def _scale(layer: Any, name: str) -> np.ndarray:
    """Of a channel: what its codes are divided by, with the axes that they have."""
    scale = getattr(layer, f"{name}_scale").value
    if name == "embeddings":
        return _float32(scale)[:, None]
    if isinstance(layer, Experts):
        return _float32(scale)[:, None, :]
    if layer.quantization_mode == "int8" and isinstance(layer, keras.layers.EinsumDense):
        scale = layer._adjust_scale_for_dequant(scale)
    return _float32(scale)


def _float32(x: keras.Variable | Tensor) -> np.ndarray:
    value = x.value if isinstance(x, keras.Variable) else x
    return np.asarray(ops.convert_to_numpy(value), "float32")
