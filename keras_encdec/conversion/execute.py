"""Carries a plan out: checks everything, then moves one tensor at a time.

Knows how to build a model without values and to fill it. Leaves which weight comes
from where to the plan and the dialects, and which device holds what to
`keras_encdec.layout`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_encdec import layout
from keras_encdec.conversion.effective import effective_weights
from keras_encdec.conversion.mxfp4 import Stored
from keras_encdec.conversion.plan import Plan
from keras_encdec.conversion.sources import Source
from keras_encdec.families import dialect
from keras_encdec.families.dialect import Rule
from keras_encdec.integrity import check_finite
from keras_encdec.models.backbone import EncDecBackbone
from keras_encdec.models.base import StacksBackbone
from keras_encdec.models.encoder import EncoderBackbone
from keras_encdec.private import deferred_variables
from keras_encdec.progress import track
from keras_encdec.spec import EncoderSpec, PairSpec


def convert(plan: Plan, sources: Mapping[str, Source], dtype: Any = None) -> EncDecBackbone:
    """Builds the pair of a plan.

    Args:
        plan: from `make_plan`.
        sources: for each side of the plan, the model that it is of.
        dtype: dtype or policy of the pair.

    Raises:
        ValueError: if a source does not hold what its spec says, or the active
            distribution cannot cut a weight. Nothing is built then.
    """
    bound = {}
    for side, source in sources.items():
        bound[side] = dialect.bind(source.rules, source.spec.weights())
        dialect.check(bound[side], source.weights.tensors(), source.dropped)
    users = defaultdict(list)
    for step in plan.steps:
        if step.source:
            users[step.source].append(step)
    left = {side: _readers(tensors) for side, tensors in bound.items()}
    for side, name in plan.dropped:
        _release(bound[side][name], sources[side].weights, left[side])
    backbone, variables = _without_values(EncDecBackbone, plan.pair, dtype)
    for (side, name), steps in track(list(users.items()), "Converting"):
        tensor, weights = bound[side][name], sources[side].weights
        array = _read(tensor, weights, f"the {side}'s weights")
        for step in steps:
            _assign(
                variables[step.target],
                np.repeat(array, step.repeat, axis=-2) if step.repeat > 1 else array,
            )
        _release(tensor, weights, left[side])
    _initialize(variables[step.target] for step in plan.fresh)
    return backbone


def load(
    spec: PairSpec | EncoderSpec,
    source: Stored,
    rules: Iterable[Rule],
    dropped: Iterable[str] = (),
    dtype: Any = None,
) -> Any:
    """Builds a pair, or an encoder, whose every weight lies in one source.

    Args:
        spec: what the source holds.
        source: where to read from.
        rules: its dialect.
        dropped: tensors of the source to leave out.
        dtype: dtype or policy of the model.

    Returns:
        `EncDecBackbone` or `EncoderBackbone`.

    Raises:
        ValueError: if the source does not hold what the spec says, or the active
            distribution cannot cut a weight.
    """
    bound = dialect.bind(rules, spec.weights())
    dialect.check(bound, source.tensors(), dropped)
    kind = EncDecBackbone if isinstance(spec, PairSpec) else EncoderBackbone
    backbone, variables = _without_values(kind, spec, dtype)
    for name, tensor in track(list(bound.items()), "Loading"):
        _assign(variables[name], _read(tensor, source, "the weights to load"))
    return backbone


def convert_encoder(
    spec: EncoderSpec, source: Source, dtype: Any = None, with_output: bool = False
) -> tuple[EncoderBackbone, np.ndarray | None]:
    """An encoder of a decoder-only model, and the output matrix (D, V) if asked for.

    Args:
        spec: of the source's stack.
        source: the model.
        dtype: dtype or policy of the encoder.
        with_output: whether the output matrix, if it has one of its own, is read.

    Raises:
        ValueError: as `convert`.
    """
    every = dialect.bind(source.rules, source.spec.weights())
    dialect.check(every, source.weights.tensors(), source.dropped)
    backbone, variables = _without_values(EncoderBackbone, spec, dtype)
    output, left = None, _readers(every)
    for name, tensor in track(list(every.items()), "Converting"):
        variable = variables.get(f"encoder/{name}")  # None for the output matrix
        if variable is not None or with_output:
            array = _read(tensor, source.weights, "the weights")
            if variable is None:
                output = np.array(array)
            else:
                _assign(variable, array)
        _release(tensor, source.weights, left)
    return backbone, output


def copy_encoder(model: StacksBackbone, dtype: Any = None) -> EncoderBackbone:
    """The encoder of a pair or of an encoder, with LoRA merged and in float; a copy.

    Without an adaptor: that is how a decoder reads.

    Args:
        model: `EncDecBackbone` or `EncoderBackbone`.
        dtype: dtype or policy of the copy.
    """
    spec = EncoderSpec(model.spec.encoder, model.spec.encoder_attention)
    weights = effective_weights(model)
    backbone, variables = _without_values(EncoderBackbone, spec, dtype)
    for name, variable in track(list(variables.items()), "Copying the encoder"):
        _assign(variable, check_finite(name, weights[name], "the model"))
    return backbone


def export(
    backbone: StacksBackbone, rules: Iterable[Rule], write: Callable[[str, np.ndarray], None]
) -> None:
    """Hands each weight, as `effective_weights` has it, to `write(name, array)` of a dialect."""
    bound = dialect.bind(rules, backbone.spec.weights())
    weights = effective_weights(backbone)
    for parts in track(list(dialect.by_tensor(bound).values()), "Exporting"):
        arrays = [
            tensor.to_theirs(check_finite(name, weights[name], "the model to export"))
            for name, tensor in parts
        ]
        first = parts[0][1]
        for their_name, *some in zip(first.names, *arrays, strict=True):
            whole = first.joined(some) if len(some) > 1 else some[0]
            write(their_name, np.ascontiguousarray(whole))


def _read(tensor: dialect.Tensor, weights: Stored, whose: str) -> np.ndarray:
    """A weight of ours, of finite numbers."""
    return tensor.to_ours(lambda name: check_finite(name, weights.read(name, tensor.part), whose))


def _readers(bound: Mapping[str, dialect.Tensor]) -> Counter[str]:
    """How many weights each tensor of a source is read for."""
    return Counter(name for tensor in bound.values() for name in tensor.names)


def _release(tensor: dialect.Tensor, weights: Stored, left: Counter[str]) -> None:
    """Takes a weight off its tensors' readers, and lets go of those that have none left."""
    left.subtract(tensor.names)
    for name in tensor.names:
        if not left[name]:
            weights.release(name)


def _without_values(
    kind: type[StacksBackbone], spec: PairSpec | EncoderSpec, dtype: Any
) -> tuple[Any, dict[str, keras.Variable]]:
    """A backbone and its variables by path."""
    backbone = without_values(lambda: kind.of(spec, dtype=dtype))
    return backbone, {v.path: v for v in backbone.weights}


def without_values(make: Callable[[], Any]) -> Any:
    """A layer that `make` builds; on JAX its variables have no values and take no memory yet."""
    if keras.backend.backend() != "jax":
        return make()
    with keras.StatelessScope(initialize_variables=False):
        layer = make()
    _forget_deferred(layer.weights)
    return layer


def _forget_deferred(variables: Iterable[keras.Variable]) -> None:
    """Takes variables off Keras' list of those that it will fill: they are ours to fill."""
    waiting = deferred_variables()
    ours = {id(v) for v in variables}
    waiting[:] = [v for v in waiting if id(v) not in ours]


def _assign(variable: keras.Variable, array: np.ndarray) -> None:
    array = np.array(array, order="C", copy=True)  # no two weights may share memory
    if variable._value is None:
        variable._initialize(layout.place(variable, array))
    else:
        variable.assign(array)


def _initialize(variables: Iterable[keras.Variable]) -> None:
    for variable in variables:
        if variable._value is None:
            variable._deferred_initialize()
