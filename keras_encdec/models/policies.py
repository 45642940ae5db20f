"""The dtype policy of a backbone on its way through a file, quantised layers included.

KerasHub 0.32 decides by `dtype` of a saved config, and not well: it fails at the names of
mixed policies, loads all others in Keras' default one, and its `Backbone.from_preset` drops
those of quantised layers. So the policy is saved by another name; what a call of `from_preset`
asks for still comes in as `dtype`, None if nothing.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

_POLICY, _QUANTIZATION = "dtype_policy", "quantization"


_ROOM_OF_ONE = 4096  # bytes that HDF5 adds to a variable, at most


def bytes_in_file(variables: Iterable[keras.Variable]) -> int:
    """What a file of these variables needs on disk at most, in bytes."""
    return sum(map(_bytes_of, variables))


def bytes_in_files(
    variables: Sequence[keras.Variable], max_shard_size: float | None
) -> tuple[int, int]:
    """What files of these variables need on disk at most, and the largest of them, in bytes.

    Args:
        variables: a list.
        max_shard_size: of KerasHub, in GiB; None for a single file.
    """
    size = bytes_in_file(variables)
    if max_shard_size is None:
        return size, size
    shard = int(max_shard_size * 2**30) + _ROOM_OF_ONE * len(variables)
    return size, min(size, max(shard, *map(_bytes_of, variables)))


def _bytes_of(variable: keras.Variable) -> int:
    return math.prod(variable.shape) * np.dtype(variable.dtype).itemsize + _ROOM_OF_ONE


def config_of(model: keras.Model) -> dict[str, Any]:
    """What `model.get_config()` says of dtypes; the inverse of `taken_from` and `restore`."""
    policies, layers = {}, defaultdict(list)
    for layer in _quantised(model):
        policies[layer.path] = layer.dtype_policy
        how = keras.saving.serialize_keras_object(layer.quantization_config)
        layers[json.dumps(how)].append(layer.path)
    policy = model.dtype_policy
    if policies:
        policy = keras.dtype_policies.DTypePolicyMap(policy.name, policies)
    config: dict[str, Any] = {_POLICY: keras.dtype_policies.serialize(policy)}
    if policies:
        config[_QUANTIZATION] = [[json.loads(how), paths] for how, paths in layers.items()]
    return config


def taken_from(config: dict[str, Any]) -> tuple[Any, list]:
    """Takes out of a config what `config_of` put into it.

    Args:
        config: of a backbone, with `dtype` where a loader added it. Changed.

    Returns:
        `(dtype, quantization)`: what to build the backbone in, and what `restore` takes.
        A pair that was saved in float32 says nothing against Keras' default policy.
    """
    saved, quantization = config.pop(_POLICY, None), config.pop(_QUANTIZATION, [])
    loads, asked = "dtype" in config, config.pop("dtype", None)
    if saved is None:
        return asked, quantization
    saved = keras.dtype_policies.get(saved)
    if asked is None:
        return (None if loads and saved.name == "float32" else saved), quantization
    return _in_place_of(saved, keras.dtype_policies.get(asked)), quantization


def restore(model: keras.Model, quantization: list) -> None:
    """Gives quantised layers the quantisers of their inputs, which Keras does not save."""
    layers = {layer.path: layer for layer in _quantised(model)}
    for how, paths in quantization:
        config = keras.saving.deserialize_keras_object(how)
        for layer in (layers[path] for path in paths):
            layer.quantization_config = config
            if config is not None and hasattr(layer, "inputs_quantizer"):
                layer.inputs_quantizer = config.activation_quantizer


def settle(model: keras.Model) -> None:
    """Gives each layer its own policy in place of a map of all.

    Keras 3.15 asks a layer with a map for the default's mode: it would save LoRA over int8
    as floats, and quantise to the policy "map_float32".
    """
    for layer in model._flatten_layers(include_self=False):
        policy = layer.dtype_policy
        if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
            layer._dtype_policy = policy[layer.path] if layer.path else policy.default_policy


def default(dtype: Any) -> keras.DTypePolicy:
    """The policy of whatever has none of its own in `dtype`."""
    policy = keras.dtype_policies.get(dtype)
    return getattr(policy, "default_policy", policy)


def _quantised(model: keras.Model) -> Iterator[Any]:
    layers = model._flatten_layers(include_self=False)
    return (layer for layer in layers if getattr(layer, "_is_quantized", False))


def _in_place_of(saved: Any, asked: Any) -> Any:
    """The policy that was asked for; quantised layers stay so, computing in its dtype."""
    maps = keras.dtype_policies.DTypePolicyMap
    if not isinstance(saved, maps) or isinstance(asked, maps):
        return asked
    policies = {
        path: type(policy).from_config({**policy.get_config(), "source_name": asked.name})
        for path, policy in saved.items()
    }
    return maps(asked.name, policies)
