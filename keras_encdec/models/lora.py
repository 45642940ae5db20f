"""What LoRA learned, and the cross-attention that trained whole beside it, as one small file.

KerasHub's `.lora.h5` (`lora/vars/rank`, and `lora/{number}/vars/...` for each layer, by its
number among those with weights), and beside it `trained/{path}`: the other weights that
trained. KerasHub reads the first part alone.
"""

import dataclasses
import os
from collections.abc import Iterator

import h5py
import keras
import numpy as np
from keras import ops

from keras_encdec.files import atomic_file
from keras_encdec.models.policies import bytes_in_file

_LORA, _TRAINED, _RANK = "lora", "trained", "lora/vars/rank"


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


def numbered_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Those with weights, in KerasHub's order."""
    return [layer for layer in model._flatten_layers(include_self=False) if layer.weights]


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
        ValueError: if the name ends otherwise.
    """
    if not str(path).endswith(".lora.h5"):
        raise ValueError(f"Expected a file name that ends in .lora.h5. Received: {path}.")
    variables = [*trained, *(v for layer in layers.values() for v in factors(layer).values())]
    with atomic_file(path, bytes_in_file(variables)) as part, h5py.File(part, "w") as file:
        file[_RANK] = rank
        for number, layer in layers.items():
            for name, variable in factors(layer).items():
                file[f"{_LORA}/{number}/vars/{name}"] = _array(variable)
        for variable in trained:
            file[f"{_TRAINED}/{variable.path}"] = _array(variable)


def read(path: str | os.PathLike) -> LoraFile:
    """Reads the file.

    Raises:
        ValueError: if it is none, or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            group = file[_LORA]
            layers = {
                int(number): {name: array[()] for name, array in group[number]["vars"].items()}
                for number in group
                if number != "vars"
            }
            return LoraFile(int(file[_RANK][()]), layers, dict(_arrays(file.get(_TRAINED, {}))))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"Expected a file of save_lora_weights. Received: {path}, which cannot be read "
            f"({error}). Save it again."
        ) from error


def assign(model: keras.Model, found: LoraFile, enabled: list[int]) -> None:
    """Gives a model what a file holds; nothing, if something does not fit.

    Args:
        model: with LoRA.
        found: from `read`.
        enabled: numbers of its layers with LoRA.

    Raises:
        ValueError: naming what the file or the model lacks, or what differs in shape.
    """
    layers, by_path = numbered_layers(model), {v.path: v for v in model.weights}
    ours = {f"{i}/{n}": v for i in enabled for n, v in factors(layers[i]).items()}
    ours |= {path: by_path[path] for path in found.trained if path in by_path}
    theirs = {
        f"{i}/{n}": array for i, arrays in found.layers.items() for n, array in arrays.items()
    }
    theirs |= found.trained
    for name in {**ours, **theirs}:
        here, there = (tuple(side[name].shape) if name in side else None for side in (ours, theirs))
        if here != there:
            raise ValueError(
                "Expected LoRA of a pair like this one, on the same layers. Received: "
                f"{name} of shape {there}, here {here}. Adapt the same sources with the same "
                "options, and give enable_lora the same rank and target_layer_names."
            )
    for name, variable in ours.items():
        variable.assign(theirs[name])


def _array(variable: keras.Variable) -> np.ndarray:
    """In float32, which holds bfloat16 and float16 exactly."""
    return np.asarray(ops.convert_to_numpy(variable.value), "float32")


def _arrays(group: h5py.Group, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays under a group by path."""
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from _arrays(item, f"{path}{name}/")
        else:
            yield f"{path}{name}", item[()]
