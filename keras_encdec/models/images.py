"""A model that reads images: they may be left out, and what reads them is neither adapted nor
quantised.

Leaves what images become to `keras_encdec.layers.vision`.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_encdec.objectives.images import IMAGES
from keras_encdec.private import should_quantize_layer

_Mixin: Any = object  # beside a keras.Model, whose methods it calls


class OptionalImages(_Mixin):
    """A functional model, one of whose inputs may be `images`."""

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Keras; without `images` there are none."""
        if isinstance(inputs, dict) and IMAGES in self.input:
            inputs = {IMAGES: None, **inputs}
        return super().__call__(inputs, *args, **kwargs)


def of_images(path: str) -> bool:
    """Whether a layer or weight of this path reads images."""
    return path.split("/")[0] == "vision"


def beside_images(filters: Any) -> Callable[[keras.layers.Layer], bool]:
    """`filters` of `keras.Model.quantize`, of the layers that read tokens alone."""
    return lambda layer: not of_images(layer.path or "") and should_quantize_layer(layer, filters)
