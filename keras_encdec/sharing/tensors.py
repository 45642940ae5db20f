"""The tensors in a preset's files, by name, read and written where they lie.

Knows HDF5 as Keras writes it: one file or several, bfloat16 as two bytes without a type, a task's
head in a file of its own. Leaves which files belong together to `keras_encdec.files`.
"""

import contextlib
from pathlib import Path

import h5py
import numpy as np

from keras_encdec.files import readable
from keras_encdec.integrity import HEAD, check_finite, weights_files


class Tensor:
    """A dataset in an open file, as numbers.

    Attributes:
        shape: its own; (1,) of a single number.
        dtype: such as `"bfloat16"`.
    """

    def __init__(self, name: str, dataset: h5py.Dataset):
        self._name, self._dataset = name, dataset
        self.shape = dataset.shape or (1,)
        self.dtype = str(dataset.attrs.get("dtype", dataset.dtype))  # Keras notes bfloat16

    @property
    def is_real(self) -> bool:
        """Whether it holds real numbers; else a state such as that of a seed."""
        return "float" in self.dtype

    def read(self, rows: slice) -> np.ndarray:
        """Some rows in float64."""
        array = np.asarray(self._dataset[rows] if self._dataset.shape else self._dataset[()])
        return array.view(self.dtype).astype("float64").reshape(-1, *self.shape[1:])

    def write(self, rows: slice, array: np.ndarray) -> None:
        """Puts some rows in place, rounded to its dtype.

        Raises:
            ValueError: if a number is not finite there.
        """
        with np.errstate(over="ignore"):  # what is too large becomes Inf, and is refused
            rounded = check_finite(self._name, array.astype(self.dtype), "what is merged")
        self._dataset[rows if self._dataset.shape else ()] = (
            rounded if self._dataset.shape else rounded[0]
        ).view(self._dataset.dtype)


def tensors_of(folder: Path, files: contextlib.ExitStack, mode: str = "r") -> dict[str, Tensor]:
    """All tensors of a preset that are not empty.

    Args:
        folder: of the preset.
        files: closes what is opened.
        mode: `"r"`, or `"r+"` to write in place.

    Raises:
        ValueError: naming the file that cannot be read.
    """
    found: dict[str, Tensor] = {}
    paths = [*weights_files(folder), *(p for p in [folder / HEAD] if p.is_file())]
    for path in paths:
        prefix = "task/" if path.name == HEAD else ""
        with readable("weights file", path):
            file = files.enter_context(h5py.File(path, mode))
            file.visititems(lambda name, item, prefix=prefix: _keep(found, prefix + name, item))
    return found


def _keep(found: dict[str, Tensor], name: str, item: h5py.Dataset | h5py.Group) -> None:
    if isinstance(item, h5py.Dataset) and item.size:
        found[name] = Tensor(name, item)
