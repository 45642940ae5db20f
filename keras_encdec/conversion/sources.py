"""Where tensors are read from: a Keras model in memory, or safetensors files.

A source gives names with shapes and dtypes first, so that everything can be checked
before anything is changed, and then one array at a time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from safetensors import safe_open

from keras_encdec.conversion.effective import EffectiveWeights
from keras_encdec.conversion.mxfp4 import Stored
from keras_encdec.families.dialect import Rule
from keras_encdec.files import shard_names
from keras_encdec.spec import Shape, StackSpec

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A decoder-only model on its way.

    Args:
        spec: what it is.
        weights: where its tensors are read from.
        rules: the dialect they are named in.
        dropped: patterns of tensors that are no weights of the model.
    """

    spec: StackSpec
    weights: Stored
    rules: tuple[Rule, ...]
    dropped: tuple[str, ...]


class ModelSource:
    """The weights of a Keras model by path, as it computes with them: LoRA merged, int8 as floats.

    `path#0`, `path#1`, ... where several share one.

    Args:
        model: a built model.
        consume: drop each variable's value once it was read for the last time, so
            that source and target never lie in memory whole together. The model is
            of no use afterwards.
        rename: turns a variable into the name that the dialect knows it by.

    Raises:
        ValueError: if a layer is quantised in a way that is not known.
    """

    def __init__(
        self,
        model: keras.Model,
        consume: bool = False,
        rename: Callable[[keras.Variable], str] = lambda v: v.path,
    ):
        self._weights = EffectiveWeights(model, rename)
        self._consume = consume

    def tensors(self) -> dict[str, tuple[Shape, str]]:
        return self._weights.headers()

    def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
        return self._weights[name] if part is None else self._weights[name][part]

    def release(self, name: str) -> None:
        if self._consume:
            self._weights.release(name)


class SafetensorsSource:
    """The tensors of a folder with `model.safetensors`, or shards and their index.

    Args:
        locate: gives the local path of a file of the preset, by name.
        known: names or handles in messages.

    Raises:
        ValueError: if a file is missing, truncated, or named outside the folder.
    """

    def __init__(self, locate: Callable[[str], str], known: str):
        self._known = known
        self._paths: dict[str, str] = {}
        self._headers: dict[str, tuple[Shape, str]] = {}
        for path in self._shards(locate):
            try:
                with safe_open(path, framework="np") as file:
                    headers = {name: _header(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            except Exception as error:  # safetensors raises its own Rust error type
                raise ValueError(
                    f"Expected a safetensors file. Received: {path}, which cannot be read "
                    f"({error}). Download or export it again."
                ) from error
            self._paths |= dict.fromkeys(headers, path)
            self._headers |= headers

    def _shards(self, locate: Callable[[str], str]) -> list[str]:
        try:
            names = shard_names(locate("model.safetensors.index.json"))
        except FileNotFoundError:
            names = ["model.safetensors"]
        return [self._locate(locate, name) for name in names]

    def _locate(self, locate: Callable[[str], str], name: str) -> str:
        try:
            return locate(name)
        except FileNotFoundError as error:
            raise ValueError(
                f"Expected {name} in {self._known}. Received: no such file. Download it again."
            ) from error

    def tensors(self) -> dict[str, tuple[Shape, str]]:
        return self._headers

    def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
        with safe_open(self._paths[name], framework="np") as file:  # its pages go as it closes
            return file.get_tensor(name) if part is None else file.get_slice(name)[part]

    def release(self, name: str) -> None:
        """Nothing to let go of: `read` gives a copy."""


def _header(part: Any) -> tuple[Shape, str]:
    return tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype())
