"""Weights that follow from a tensor's name and shape: here and in transformers the same.

In steps of 1/512, exact in bfloat16's neighbours float32 and float16 alike.
"""

import zlib

import numpy as np

# Queries and keys are to tell apart; Gemma 4's router is, whose input is small.
_GAINS = dict.fromkeys(("q_proj", "k_proj", "v_proj"), 1.8) | {"proj": 8.0}


def drawn(name, shape, zero_centered):
    """(shape) float32; norms around the value that changes nothing, kernels by fan-in."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {tuple(shape)}".encode()))
    if "norm" in name or name.endswith(("scalar", "scale")):
        values = rng.normal(0.0 if zero_centered else 1.0, 0.3, shape)
    elif "embed" in name:
        values = rng.normal(0.0, 0.4, shape)
    elif name.endswith("gate_up_proj_bias"):  # beyond gpt-oss' clamps, some of it
        values = rng.normal(0.0, 5.0, shape)
    elif name.endswith("sinks"):
        values = rng.normal(0.5, 1.5, shape)
    elif name.endswith("bias"):
        values = rng.normal(0.0, 0.5, shape)
    else:
        gain = _GAINS.get(name.split(".")[-2], 1.5)
        values = rng.normal(0.0, gain * shape[-1] ** -0.5, shape)
    return (np.round(values * 512) / 512).astype("float32")
