"""Whether JAX sees the accelerator that this machine has.

Knows where Linux shows one, and which extra of this package brings JAX's part of it.
"""

import functools
import os
from pathlib import Path

import keras

from keras_encdec.warn import warn

_DEVICES = {"cuda": ("nvidia0", "dxg"), "tpu": ("accel0", "vfio/0")}  # under /dev, by extra


@functools.cache
def check_seen(devices: Path = Path("/dev")) -> None:
    """Warns, once, if there is a GPU or a TPU and JAX was installed for the CPU alone.

    Args:
        devices: where the system shows its devices.
    """
    if keras.backend.backend() != "jax" or _is_hidden():
        return
    import jax

    if jax.default_backend() != "cpu":
        return
    for extra, names in _DEVICES.items():
        if any((devices / name).exists() for name in names):
            warn(
                f"This machine has a {extra.upper()} device, and JAX sees only the CPU. For it: "
                f'pip install "keras-encdec[{extra}]", then restart. To stay on the CPU: set '
                "JAX_PLATFORMS=cpu."
            )


def _is_hidden() -> bool:
    """Whether somebody asked for the CPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return hidden or "cpu" in os.environ.get("JAX_PLATFORMS", "")
