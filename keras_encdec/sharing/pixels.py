"""What a folder of transformers says of pixels: only what is done here is taken.

Leaves what is done to `keras_encdec.objectives.images`.
"""

import contextlib
from typing import Any

import numpy as np

from keras_encdec.files import read_json
from keras_encdec.sharing.fetch import file_of

# From 0 to 255 to -1 to 1, each image once and whole (Gemma3ImageProcessor, transformers 5.23).
_TAKEN: dict[str, Any] = {
    "image_mean": 0.5,
    "image_std": 0.5,
    "rescale_factor": 1 / 255,
    "do_pan_and_scan": 0,
}


def check_pixels(preset: str, image_size: int) -> None:
    """Refuses a folder or handle whose processor makes other pixels of an image.

    Args:
        preset: the folder or handle.
        image_size: pixels of a side.

    Raises:
        ValueError: naming the field.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        with contextlib.suppress(FileNotFoundError):
            config = read_json(file_of(preset, name))
            found = {**config.get("image_processor", config)}
            sizes = found.get("size") or {}
            given = {key: found.get(key) for key in _TAKEN} | {"size": list(sizes.values())}
            for field, value in given.items():
                expected = _TAKEN.get(field, image_size)
                if value is not None and not np.allclose(np.asarray(value, float), expected):
                    raise ValueError(
                        f"Expected {field} of {expected} in {name} of {preset}. Received: {value}, "
                        "which makes other pixels than keras_encdec. Load it with "
                        "preprocessor=None and pass images as model inputs."
                    )
