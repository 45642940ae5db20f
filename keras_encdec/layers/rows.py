"""Products of a single token by quantised weights, which XLA has no fast way for on CPUs.

Knows that two equal rows are quicker there than one. Leaves the product to the layer.
"""

from typing import Any

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.spec import Tensor


def project(layer: Any, x: Tensor, **kwargs: Any) -> Tensor:
    """`layer(x, **kwargs)` for (B, T, ...), the same numbers.

    XLA on CPUs multiplies two rows of int8 and more by a kernel of its own; for one it takes
    a copy of the weights in int32, four times their memory, made anew in each call of `generate`
    (measured with JAX 0.10.2: a product of 64,000 x 512 takes 14 ms of a core with one row, 5
    with two, 10 in float32).
    """
    if not (_is_one_token(x) and getattr(layer, "quantization_mode", None) == "int8" and _on_cpu()):
        return layer(x, **kwargs)
    return layer(ops.concatenate([x, x], axis=1), **kwargs)[:, :1]


def _is_one_token(x: Tensor) -> bool:
    return tuple(x.shape[:2]) == (1, 1)


def _on_cpu() -> bool:
    return keras.backend.backend() == "jax" and layout.platform() == "cpu"
