"""What LoRA learned, and the cross-attention that trained whole beside it, as one small file.

KerasHub's `.lora.h5` (`lora/vars/rank`, and `lora/{number}/vars/...` for each layer, by its
number among those with weights), and beside it `trained/{path}`: the other weights that
trained. KerasHub reads the first part alone.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import h5py
import keras
import numpy as np
from keras import ops

from keras_encdec.files import atomic_file, readable
from keras_encdec.integrity import check_finite, checksum
from keras_encdec.models.images import of_images
from keras_encdec.models.policies import bytes_in_file

_LORA, _TRAINED, _RANK = "lora", "trained", "lora/vars/rank"
_CHECKSUM = "crc32"  # an attribute of each array


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """What such a file holds.

    Args:
        rank: of the factors.
        layers: for each layer, by its number, arrays by the name of the variable.
        trained: arrays of the other weights, by path.
    """

    rank: int
    layers: dict[int, dict[str, np.ndarray]]
    trained: dict[str, np.ndarray]

    def arrays(self) -> dict[str, np.ndarray]:
        """All of them, those of layers as `"{number}/{name}"`."""
        of_layers = {f"{i}/{n}": a for i, arrays in self.layers.items() for n, a in arrays.items()}
        return {**of_layers, **self.trained}


def numbered_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Those with weights, in KerasHub's order; behind them those that read images alone."""
    every = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    return sorted(every, key=lambda layer: of_images(layer.path))


def factors(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """The variables of a layer's LoRA by name."""
    return {v.name: v for v in layer.variables if v.name.startswith("lora_")}


def write(
    path: str | os.PathLike,
    rank: int,
    layers: dict[int, keras.layers.Layer],
    trained: list[keras.Variable],
) -> None:
    """Writes the file, whole or not at all.

    Args:
        path: its name, which ends in `.lora.h5`.
        rank: of LoRA.
        layers: those with LoRA, by number.
        trained: other variables that trained.

    Raises:
        ValueError: if the name ends otherwise, or a variable is not finite.
    """
    if not str(path).endswith(".lora.h5"):
        raise ValueError(f"Expected a file name that ends in .lora.h5. Received: {path}.")
    variables = [*trained, *(v for layer in layers.values() for v in factors(layer).values())]
    with atomic_file(path, bytes_in_file(variables)) as part, h5py.File(part, "w") as file:
        file[_RANK] = rank
        for number, layer in layers.items():
            for name, variable in factors(layer).items():
                _keep(file, f"{_LORA}/{number}/vars/{name}", variable)
        for variable in trained:
            _keep(file, f"{_TRAINED}/{variable.path}", variable)


def read(path: str | os.PathLike) -> LoraFile:
    """Reads the file.

    Raises:
        ValueError: if it is none, or damaged.
    """
    with readable("file of save_lora_weights", path), h5py.File(path, "r") as file:
        group = file[_LORA]
        layers = {
            int(number): dict(_arrays(group[number]["vars"]))
            for number in group
            if number != "vars"
        }
        return LoraFile(int(file[_RANK][()]), layers, dict(_arrays(file.get(_TRAINED, {}))))


def check_fits(model: keras.Model, found: LoraFile, numbers: list[int], rank: int) -> None:
    """Refuses a file of another pair, of other layers or of another rank.

    Args:
        model: with LoRA or before it has any.
        found: from `read`.
        numbers: of the layers that have LoRA, or are to get it.
        rank: of it.

    Raises:
        ValueError: naming what the file or the model lacks, or what differs in shape.
    """
    layers, by_path = numbered_layers(model), {v.path: v for v in model.weights}
    ours = {f"{i}/{n}": shape for i in numbers for n, shape in _shapes(layers[i], rank).items()}
    ours |= {path: tuple(by_path[path].shape) for path in found.trained if path in by_path}
    theirs = {name: array.shape for name, array in found.arrays().items()}
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                "Expected LoRA of a pair like this one, on the same layers. Received: "
                f"{name} of shape {theirs.get(name)}, here {ours.get(name)}. Adapt the same "
                "sources with the same options, and give enable_lora the same rank and "
                "target_layer_names."
            )


def assign(model: keras.Model, found: LoraFile) -> None:
    """Gives a model with LoRA what a file holds, which `check_fits`."""
    layers, by_path = numbered_layers(model), {v.path: v for v in model.weights}
    ours = {f"{i}/{n}": v for i in found.layers for n, v in factors(layers[i]).items()}
    for name, array in found.arrays().items():
        {**by_path, **ours}[name].assign(array)


def _shapes(layer: Any, rank: int) -> dict[str, tuple[int, ...]]:
    """Of the factors that Keras gives a layer."""
    name = "embeddings" if hasattr(layer, "embeddings") else "kernel"
    *outer, last = getattr(layer, name).shape
    return {f"lora_{name}_a": (*outer, rank), f"lora_{name}_b": (rank, last)}


def _keep(file: h5py.File, name: str, variable: keras.Variable) -> None:
    """Writes a variable in float32, which holds bfloat16 and float16 exactly."""
    array = np.asarray(ops.convert_to_numpy(variable.value), "float32")
    file[name] = check_finite(variable.path, array, "LoRA to save")
    file[name].attrs[_CHECKSUM] = checksum(array)


def _arrays(group: h5py.Group, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays under a group by path.

    Raises:
        ValueError: if one is not as it was written.
    """
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from _arrays(item, f"{path}{name}/")
            continue
        array = check_finite(f"{path}{name}", item[()], str(item.file.filename))
        if checksum(array) != item.attrs.get(_CHECKSUM, checksum(array)):
            raise ValueError(f"{path}{name} is not as it was written")
        yield f"{path}{name}", array
