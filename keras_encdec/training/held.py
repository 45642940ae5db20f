"""What training holds from step to step: every variable, counted before it is made.

Knows what Keras makes of a weight (its scales, its LoRA) and what an optimizer asks for,
exactly. Leaves which device holds what to `keras_encdec.layout`, and what a step needs
beside it to `keras_encdec.training.working`.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras.distribution import TensorLayout

from keras_encdec.layout import Weight, largest_cut, shard_shape
from keras_encdec.layout.axes import axis_sizes
from keras_encdec.spec import Shape
from keras_encdec.training.planned import PlannedRun
from keras_encdec.training.warmup import is_new

_LORA = ("query/kernel", "value/kernel")  # KerasHub's Backbone.default_lora_layer_names
_INT4_BLOCK = 128  # rows that share a scale: keras.quantizers.Int4QuantizationConfig


def weights(run: PlannedRun) -> list[Weight]:
    """The pair's variables and where they lie."""
    variables = _variables(run)
    return [dataclasses.replace(v, layout=run.layout(v.path)) for v in variables]


def teacher_weights(run: PlannedRun) -> list[Weight]:
    """A device's share of those of a teacher that is asked, frozen."""
    if run.teacher is None:
        return []
    policy = run.teacher_policy
    mode = getattr(policy, "quantization_mode", None)
    shapes = run.teacher.weights().items()
    stored = [w for p, shape in shapes for w in _stored(p, shape, policy.variable_dtype, mode)]
    if run.mesh is None:
        return stored
    sizes = axis_sizes(run.mesh)
    return [dataclasses.replace(weight, shape=_share(weight.shape, sizes)) for weight in stored]


def _share(shape: Shape, sizes: Mapping[str, int]) -> Shape:
    """What one device holds of a weight that `layout.spread_out` lays out."""
    axes = itertools.zip_longest(shape, largest_cut(shape, sizes))
    return tuple(n // math.prod(sizes[name] for name in names or ()) for n, names in axes)


def gradients(run: PlannedRun, trainable: list[Weight]) -> list[Weight]:
    """One for each trainable weight; in parts, its sum in float32 too."""
    sums = [dataclasses.replace(w, dtype="float32") for w in trainable]
    if run.gradient_accumulation_steps == 1:
        return trainable
    return sums + [w for w in trainable if w.dtype != "float32"]


def _variables(run: PlannedRun) -> Iterable[Weight]:
    """What Keras makes of each weight: itself, its scales, its LoRA.

    A cross-attention that trains beside LoRA is whole, and not quantized.
    """
    dtype, rank = run.policy.variable_dtype, run.lora_rank
    for path, shape in run.pair.weights().items():
        layer, _, name = path.rpartition("/")
        if path.startswith("vision/"):
            yield Weight(path, shape, dtype, trainable=False)
            continue
        if rank and run.train_cross_attention and is_new(path):
            yield Weight(path, shape, dtype)
            continue
        for weight in _stored(path, shape, dtype, run.quantization):
            yield dataclasses.replace(weight, trainable=weight.trainable and not rank)
        if rank and path.endswith(_LORA):
            yield Weight(f"{layer}/lora_{name}_a", (*shape[:-1], rank))
            yield Weight(f"{layer}/lora_{name}_b", (rank, shape[-1]))


def _stored(path: str, shape: Shape, dtype: str, mode: str | None) -> Iterable[Weight]:
    """A weight as it is, or quantized if it is one that can be."""
    if mode is None or path.rpartition("/")[2] in ("scale", "bias"):
        yield Weight(path, shape, dtype)
    else:
        yield from quantized(path, shape, dtype, mode)


def quantized(path: str, shape: Shape, dtype: str, mode: str) -> Iterable[Weight]:
    """The int8 or int4 values of a kernel, and what their scale takes (Keras 3.15).

    Keras scales columns of kernels and rows of embeddings, so these count as (D, V).
    """
    layer, _, name = path.rpartition("/")
    inputs = 2 if path.endswith("attention_output/kernel") else 1
    if name == "embeddings":
        rows, columns = shape[1], shape[0]
        packed: Shape = (columns, -(-rows // 2))
    elif name == "reverse_embeddings":
        rows, columns = shape
        packed = (-(-rows // 2), columns)
    else:
        rows, columns = math.prod(shape[:inputs]), math.prod(shape[inputs:])
        packed = (rows, -(-columns // 2))
    if mode == "int8":
        yield Weight(path, shape, "int8", trainable=False)
        yield Weight(f"{path}_scale", (columns,), dtype, trainable=False)
        return
    groups = -(-rows // _INT4_BLOCK)
    yield Weight(path, packed, "int8", trainable=False)
    yield Weight(f"{path}_scale", (groups, columns), dtype, trainable=False)
    if name == "reverse_embeddings":  # Keras 3.15 makes its zeros in float32
        yield Weight(f"{path}_zero", (groups, columns), "float32", trainable=False)
    else:
        yield Weight(f"{path}_zero", (groups, columns), "int8", trainable=False)
        yield Weight(f"{layer}/g_idx", (rows,), "float32", trainable=False)


def slots(optimizer: str | keras.optimizers.Optimizer, trainable: list[Weight]) -> list[Weight]:
    """Every variable that an optimizer asks for when it is built, none of them made.

    A slot made from a weight has the weight's layout. Others, such as Adafactor's rows
    and columns, Keras replicates.
    """
    optimizer = keras.optimizers.get(optimizer)
    optimizer = type(optimizer).from_config(optimizer.get_config())
    asked: list[Weight] = []

    def add_variable(
        shape: Shape,
        dtype: str | None = None,
        layout: TensorLayout | None = None,
        name: str = "",
        **kwargs: Any,
    ) -> Weight:
        asked.append(Weight(name, tuple(shape), dtype or keras.backend.floatx(), layout=layout))
        return asked[-1]

    optimizer.add_variable = add_variable
    optimizer.build(trainable)
    made = [Weight(v.path, tuple(v.shape), v.dtype) for v in optimizer.variables]  # scalars
    return [*asked, *made]


def bytes_of(weights: Iterable[Weight]) -> int:
    """What one device holds of them."""
    return sum(
        math.prod(shard_shape(w.shape, w.layout)) * np.dtype(w.dtype).itemsize for w in weights
    )
