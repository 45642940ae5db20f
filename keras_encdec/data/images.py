"""Images beside texts, however they are handed over: of each text a list of arrays.

Leaves what the pixels of one may be to `keras_encdec.objectives.images`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_encdec.data.arrays import array_of
from keras_encdec.objectives.images import IMAGES


def images_of(images: Any, count: int, single: bool) -> list[list[np.ndarray]]:
    """The images of each of `count` texts.

    Args:
        images: of one text an image, or several; of several texts one such for each. An image
            is an array (H, W, 3) of any framework, or a picture of PIL; None is none.
        count: of texts.
        single: whether there is one text rather than several.

    Raises:
        ValueError: if there are not as many.
    """
    if single:
        return [_of_text(images)]
    rows = list(images) if isinstance(images, Sequence) else list(array_of(images))
    if len(rows) != count:
        raise ValueError(
            f"Expected images for each of {count} texts: one, or a list of several. Received: "
            f"{len(rows)}."
        )
    return [_of_text(row) for row in rows]


def refuse_images(names: Iterable[str]) -> None:
    """Raises ValueError if there are images among the columns of data that is texts alone."""
    if IMAGES in names:
        raise ValueError(
            "Expected texts alone, which is all that this is for. Received: a column images. "
            "Leave it out, or train pairs: {'images': ..., 'inputs': ..., 'targets': ...}."
        )


def _of_text(images: Any) -> list[np.ndarray]:
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [array_of(image) for image in images]
    array = array_of(images)
    return list(array) if array.ndim == 4 else [array]
