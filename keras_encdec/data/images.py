"""Images beside texts, however they are handed over: of each text a list of arrays (H, W, 3).

Knows arrays, pictures of PIL and files. Leaves what becomes of pixels to
`keras_encdec.objectives.images`.
"""

import dataclasses
import hashlib
import io
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_encdec.data.arrays import array_of, short
from keras_encdec.objectives.images import IMAGES
from keras_encdec.objectives.rows import Inputs

# As users call the column; the last is what processors of transformers make of images.
OF_IMAGES = IMAGES, "image", "pixel_values"
_WHITE = 255


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """The file of an image, which NumPy reads as its pixels, (H, W, 3) uint8.

    It is read again each time, so that a data set takes the room of its files, not of its pixels.

    Args:
        source: path, or what is in the file.
    """

    source: str | bytes

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.read().astype(dtype or "uint8", copy=False)

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8, upright as its EXIF data say.

        Raises:
            ImportError: if there is no Pillow.
            FileNotFoundError: if there is no such file.
            ValueError: if it is none of an image.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError(
                "Expected Pillow, to read files of images. `pip install keras-encdec[images]`."
            ) from error
        name = self.source if isinstance(self.source, str) else short(self.source)
        file: Any = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        try:
            with Image.open(file) as picture:
                return _of_pil(picture)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Expected a file of an image at {name}. Received: a name of none."
                + " Download it first." * ("://" in name)
            ) from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"Expected a file of an image, such as PNG or JPEG, in {name}. Received: {error}"
            ) from error


@dataclasses.dataclass(frozen=True)
class Seen:
    """Images of rows.

    Args:
        images: of each row.
        lay: makes the model input of those of some rows; nothing where none has any.
    """

    images: Sequence[Any]
    lay: Callable[[Sequence[Any]], Inputs]

    @classmethod
    def of_array(cls, array: np.ndarray | None) -> "Seen | None":
        """Of a model input (B, N, H, W, 3), or of none."""
        return None if array is None else cls(list(array), lambda rows: {IMAGES: np.stack(rows)})

    def some(self, rows: Sequence[int]) -> Inputs:
        """The model input of rows with these numbers."""
        return self.lay([self.images[row] for row in rows])

    def digests(self, row: int) -> list[str]:
        """What a row's images are known by."""
        return [digest(image) for image in self.images[row]]


def digest(image: Any) -> str:
    """Tells an image apart by its shape and pixels."""
    array = np.ascontiguousarray(image)
    shape = f"{array.dtype}{array.shape}".encode()
    return hashlib.blake2b(array.tobytes(), digest_size=16, key=shape).hexdigest()


def images_of(images: Any, count: int, single: bool) -> list[list[Any]]:
    """The images of each of `count` texts, as arrays or as files that NumPy reads as such.

    Args:
        images: of one text an image, or several; of several texts one such for each. An image
            is an array (H, W, 3) of any framework or (H, W), a picture of PIL, or a path, the
            bytes of a file, or a dict of either, as `datasets` has them; None is none.
        count: of texts.
        single: whether there is one text rather than several.

    Raises:
        ValueError: if there are not as many, or one is no image; the message names its row.
        FileNotFoundError: if there is no such file.
    """
    if single:
        return [_of_text(images, 0)]
    rows = [images] if _is_one(images) else images
    rows = list(rows if isinstance(rows, Sequence) else array_of(rows))
    if len(rows) != count:
        raise ValueError(
            f"Expected images for each of {count} texts: one, or a list of several. Received: "
            f"{len(rows)}. One for all of them is [image] * {count}."
        )
    return [_of_text(row, number) for number, row in enumerate(rows)]


def joined_images(parts: Sequence[Any]) -> list[Any] | None:
    """The images of the rows of several sources, one after another; None where none has any."""
    if all(part.images is None for part in parts):
        return None
    return [row for part in parts for row in part.images or [[]] * len(part)]


def refuse_images(names: Iterable[str]) -> None:
    """Raises ValueError if there are images among the columns of data that is texts alone."""
    for name in set(OF_IMAGES).intersection(names):
        raise ValueError(
            f"Expected texts alone, which is all that this is for. Received: a column {name}. "
            "Leave it out, or train pairs: {'images': ..., 'inputs': ..., 'targets': ...}."
        )


def of_source(source: Any) -> tuple[str, ...]:
    """The name of what it holds beside texts, if it holds images."""
    return () if getattr(source, "images", None) is None else (IMAGES,)


def image_column(names: Iterable[str]) -> str | None:
    """The name of the column that holds images, if there is one.

    Raises:
        ValueError: if there are two, or what a processor made of images.
    """
    found = [name for name in OF_IMAGES if name in names]
    if len(found) > 1 or found == [OF_IMAGES[-1]]:
        raise ValueError(
            f"Expected images as they are, in one column {IMAGES}. Received: {found}. Sizes and "
            "values of pixels are the preprocessor's business."
        )
    return found[0] if found else None


def _of_text(images: Any, row: int) -> list[Any]:
    if images is None:
        return []
    if _is_one(images):
        return [_image(images, row)]
    if isinstance(images, (list, tuple)):
        return [_image(image, row) for image in images]
    array = array_of(images)
    several = array.ndim == 4 or (array.ndim == 1 and array.dtype.kind in "OSU")
    return [_image(image, row) for image in (array if several else [array])]


def _is_one(images: Any) -> bool:
    """Whether it is an image rather than several, as far as its type tells."""
    if isinstance(images, (str, bytes, os.PathLike, Mapping)) or hasattr(images, "getbands"):
        return True
    depth, inner = 0, images
    while isinstance(inner, (list, tuple)) and len(inner):
        depth, inner = depth + 1, inner[0]
    return isinstance(inner, numbers.Number) and depth in (2, 3)  # lists of pixels


def _image(image: Any, row: int) -> Any:
    """An array (H, W, 3) of integers from 0 to 255 or floats from 0 to 1, or a file of one."""
    if isinstance(image, Mapping):  # of `datasets`, not decoded
        image = image.get("bytes") or image.get("path")
    if isinstance(image, (str, bytes, os.PathLike)):
        # TensorFlow has paths as bytes, too.
        is_path = not isinstance(image, bytes) or os.path.isfile(image)
        file = ImageFile(os.fsdecode(image) if is_path else image)  # type: ignore[arg-type]
        file.read()  # now rather than in the middle of a run
        return file
    if hasattr(image, "getbands"):
        return _of_pil(image)
    array = np.asarray(array_of(image))
    array = array[..., None] if array.ndim == 2 else array
    is_image = array.ndim == 3 and array.shape[2] in (1, 3, 4) and array.size > 0
    if not is_image or array.dtype.kind not in "uif":
        hint = " Channels come last: np.moveaxis(image, 0, -1)."
        raise ValueError(
            f"Expected images of shape (height, width, 3), of numbers. Received: {array.dtype} of "
            f"shape {array.shape} in row {row}.{hint if array.shape[:1] in ((1,), (3,)) else ''}"
        )
    most = 1 if array.dtype.kind == "f" else _WHITE
    if not (array.min() >= 0 and array.max() <= most):  # NaN is not either
        raise ValueError(
            "Expected pixels as integers from 0 to 255, or as floats from 0 to 1. Received: "
            f"{array.dtype} from {array.min()} to {array.max()} in row {row}."
        )
    return _of_channels(array)


def _of_channels(array: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W, 1), or of (H, W, 4) on white (`convert_to_rgb` of transformers 5.23)."""
    channels = array.shape[2]
    if channels == 3:
        return array
    if channels == 1:
        return np.repeat(array, 3, axis=2)
    white = 1.0 if array.dtype.kind == "f" else _WHITE
    opaque = array[..., 3:] / white
    found = opaque * array[..., :3] + (1 - opaque) * white
    return (found if array.dtype.kind == "f" else np.rint(found)).astype(array.dtype)


def _of_pil(picture: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a picture of PIL, upright, and on white where it is transparent.

    As `load_image` and `convert_to_rgb` of transformers 5.23 have it.
    """
    from PIL import Image, ImageOps

    if picture.mode.startswith(("I", "F")):
        raise ValueError(
            "Expected a picture of 8 bits a channel, as integers from 0 to 255. Received: one of "
            f"PIL's mode {picture.mode}."
        )
    picture = ImageOps.exif_transpose(picture)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (_WHITE,) * 4)
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))
