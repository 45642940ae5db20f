"""Whether weights are numbers at all, and still those that were saved.

Knows checksums and what NaN and Inf look like in memory. A preset of ours holds
`digests.json`: the checksum of each tensor, so that a flipped bit is found by name, and of the
record, a task's head and each file of the tokenizers, so that nothing else takes their place.
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_encdec import hosts
from keras_encdec.files import read_json, shard_names
from keras_encdec.provenance import FILE as _RECORD

FILE = "digests.json"
_ASSETS = "assets"
HEAD = "task.weights.h5"  # KerasHub's name, of what a task has beside its backbone
_EXPONENTS = {  # all set in NaN and Inf; of IEEE 754 and bfloat16, as integers
    "float16": ("int16", 0x7C00),
    "bfloat16": ("int16", 0x7F80),
    "float32": ("int32", 0x7F800000),
    "float64": ("int64", 0x7FF0000000000000),
}
_STRETCH = 2**17  # numbers that fit into a processor's cache


def is_finite(array: np.ndarray) -> bool:
    """Whether an array holds neither NaN nor Inf; integers never do.

    Read as integers, those that are not finite are the largest: of the positive ones with a
    sign, of the negative ones without.
    """
    if str(array.dtype) not in _EXPONENTS or not array.size:
        return True
    kind, exponent = _EXPONENTS[str(array.dtype)]
    bits = np.ascontiguousarray(array).reshape(-1)
    sign = 1 << 8 * bits.itemsize - 1
    stretches = (bits[i : i + _STRETCH] for i in range(0, bits.size, _STRETCH))
    return all(
        some.view(kind).max() < exponent and int(some.view(f"u{kind}").max()) < sign + exponent
        for some in stretches
    )


def check_finite(name: str, array: np.ndarray, where: str) -> np.ndarray:
    """`array`, which holds neither NaN nor Inf.

    Args:
        name: of the tensor.
        array: of numbers.
        where: what it belongs to, for the message.

    Raises:
        ValueError: otherwise, naming the tensor.
    """
    if not is_finite(array):
        count = int(np.count_nonzero(~np.isfinite(np.asarray(array, "float64"))))
        raise ValueError(
            f"Expected finite numbers in {where}. Received: NaN or Inf in {name}, {count} of "
            f"{array.size}. Go back to a checkpoint from before, or download the file again."
        )
    return array


def write(folder: Path, model: keras.Model) -> None:
    """Writes the checksums of a backbone's weights, and of what lies beside them.

    Raises:
        ValueError: if a weight is not finite.
    """
    digests = {
        "tensors": {
            variable.path: [variable.dtype, checksum(array)]
            for variable, array in _checked(model, "the model to save")
        },
        _ASSETS: {
            path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes())
            for path in [folder / _RECORD, folder / HEAD, *sorted((folder / _ASSETS).rglob("*"))]
            if path.is_file()
        },
    }
    (folder / FILE).write_text(json.dumps(digests, indent=1))


def check_head(task: Any) -> None:
    """Looks at the weights that a task has beside its backbone's.

    Raises:
        ValueError: if one is not finite.
    """
    of_backbone = set(map(id, task.backbone.weights))
    for variable in task.weights:
        if id(variable) not in of_backbone:
            check_finite(variable.path, _in_memory(variable), "the model to save")


def tensors_saved(folder: Path) -> dict[str, list]:
    """`[dtype, checksum]` of each weight that was saved, by path; none in early presets."""
    path = folder / FILE
    return read_json(path).get("tensors", {}) if path.is_file() else {}


def check_weights(folder: Path, model: keras.Model) -> None:
    """Compares the weights that were loaded with their checksums, where there are some.

    Raises:
        ValueError: naming the tensor that is another, or not finite.
    """
    tensors = tensors_saved(folder)
    narrowed = []
    for variable, array in _checked(model, str(folder)):
        dtype, expected = tensors.get(variable.path, (variable.dtype, None))
        same = _in_dtype(array, dtype)
        if expected is not None and same is None:
            narrowed.append((variable.path, expected))
        elif expected is not None and checksum(same) != expected:
            raise _another(variable.path, folder)
    found = set(in_files(folder)) if narrowed else set()
    for name, expected in narrowed:
        if expected not in found:
            raise _another(name, folder)


def _another(name: str, folder: Path) -> ValueError:
    return ValueError(
        f"Expected the weights that were saved in {folder}. Received: another {name}. The file is "
        "damaged, or its weights were replaced: download or save it again, or delete "
        f"{FILE} if you meant it."
    )


def weights_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a preset's backbone.

    Raises:
        ValueError: if its index is none, or names a file outside of the folder.
    """
    index = folder / "model.weights.json"
    names = shard_names(index) if index.exists() else ["model.weights.h5"]
    return [folder / name for name in names]


def in_files(folder: Path) -> Iterator[int]:
    """Checksums of all arrays of a preset as its files hold them, one in memory at a time.

    Raises:
        ValueError: naming the file that is missing or cannot be read.
    """
    for path in weights_files(folder):
        try:
            with h5py.File(path, "r") as file:
                yield from _of_group(file)
        except OSError as error:
            raise ValueError(
                f"Expected a whole weights file. Received: {path}, which cannot be read "
                f"({error}). Save it again."
            ) from error


def _of_group(group: h5py.Group) -> Iterator[int]:
    for item in group.values():
        if isinstance(item, h5py.Group):
            yield from _of_group(item)
        else:
            yield checksum(item[()])


def check_assets(folder: Path) -> None:
    """Compares tokenizers, head and record with their checksums, where there are some.

    Raises:
        ValueError: naming the file that is another.
    """
    path = folder / FILE
    for name, checksum in (read_json(path).get(_ASSETS, {}) if path.is_file() else {}).items():
        asset = folder / name
        if asset.is_file() and zlib.crc32(asset.read_bytes()) != checksum:
            raise ValueError(
                f"Expected the files that were saved in {folder}. Received: another {name}. "
                f"Download or save it again, or delete {FILE} if you meant it."
            )


def _checked(model: keras.Model, where: str) -> Iterator[tuple[keras.Variable, np.ndarray]]:
    """Weights as they are in memory, one at a time; those that LoRA changes in files left out."""
    merged = {id(v) for layer in _layers(model) for v in _merged_in_files(layer)}
    for variable in model.weights:
        array = _in_memory(variable)
        check_finite(variable.path, array, where)
        if id(variable) not in merged:
            yield variable, array


def _layers(model: keras.Model) -> Iterable[keras.layers.Layer]:
    return model._flatten_layers(include_self=False)


def _merged_in_files(layer: keras.layers.Layer) -> Iterable[keras.Variable]:
    return layer.weights if getattr(layer, "lora_enabled", False) else ()


def _in_memory(variable: keras.Variable) -> np.ndarray:
    if keras.backend.backend() != "torch":
        return hosts.whole(variable.value)
    import torch

    tensor = variable.value.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(np.dtype("bfloat16"))


def _in_dtype(array: np.ndarray, dtype: str) -> np.ndarray | None:
    """As it was in the dtype that it was saved in; None where that cannot be said."""
    if str(array.dtype) == dtype:
        return array
    saved = np.dtype(dtype)
    widened = np.promote_types(saved, array.dtype) == array.dtype
    return array.astype(saved) if widened else None


def checksum(array: Any) -> int:
    """CRC-32 of an array's stretches, each summed modulo 2**64, and of what is left.

    Five times as fast as a CRC-32 of all bytes; a flipped bit changes a sum.
    """
    data = np.ascontiguousarray(array).reshape(-1).view("uint8")
    words = data[: data.size // 8 * 8].view("uint64")
    sums = np.add.reduceat(words, range(0, words.size, _STRETCH)) if words.size else words
    return zlib.crc32(data[words.nbytes :].tobytes(), zlib.crc32(sums.tobytes()))
