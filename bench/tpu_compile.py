"""What the compiler for TPUs makes of attention, on a machine without a TPU.

    pip install libtpu==0.0.42.*   # the one that this JAX asks for: pip show -v jax
    python bench/tpu_compile.py [--topology v5e:2x2]

Compiles value and gradients of one attention with Gemma 2's heads and soft cap ahead of time, on
one device and on all of them as (2, n / 2), and prints a line of JSON for each: which path "auto"
took, kernels, gathers and arrays of queries by keys in the program, megabytes it works with, or
what the compiler says. It runs nothing, so it says nothing of speed.
"""

import argparse
import json
import os
import re
import time
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nobody to ask which TPU this is

ROWS, HEADS, KV_HEADS, WIDTH = 8, 8, 4, 256
CASES = [  # queries, keys, causal, window, dtype
    (1024, 1024, True, None, "bfloat16"),
    (4096, 4096, True, 1024, "bfloat16"),
    (4096, 4096, False, 1024, "bfloat16"),
    (1100, 4096, False, None, "bfloat16"),
    (1024, 1024, True, None, "float32"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2")
    options = parser.parse_args()
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh

    found = topologies.get_topology_desc(platform="tpu", topology_name=options.topology)
    devices = np.array(found.devices)
    for shape in ((1, 1), (2, len(devices) // 2)):
        mesh = Mesh(devices[: np.prod(shape)].reshape(shape), ("batch", "model"))
        for case in CASES:
            names = ("queries", "keys", "causal", "window", "dtype")
            figure = {"device": devices[0].device_kind, "mesh": shape}
            figure |= dict(zip(names, case, strict=True))
            print(json.dumps(figure | compiled(mesh, *case)), flush=True)


def compiled(mesh, queries, keys, causal, window, dtype):
    import jax

    from keras_encdec import layout
    from keras_encdec.layers import attention, choice, masks

    limits, taken = masks.Limits(causal, window), []

    def loss(query, key, value, rows, seen):
        if causal or window:
            visible = masks.self_attention(rows, causal=causal, window=window)
        else:
            visible = masks.cross_attention(seen, rows)
        rules = {"scale": WIDTH**-0.5, "soft_cap": 50.0, "limits": limits}
        return (attention.attend(query, key, value, visible, **rules).astype("float32") ** 2).sum()

    def noted(path, problem, find=choice.find):
        taken.append(find(path, problem))
        return taken[-1]

    start = time.monotonic()
    axes = layout.ActivationAxes(mesh, "batch", "model")
    on_mesh = mock.patch.object(layout, "activation_axes", return_value=axes)
    with on_mesh, mock.patch.object(choice, "find", noted):
        gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
        try:
            program = gradient.lower(*arguments(mesh, queries, keys, dtype)).compile()
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"[:300]}
    text = program.as_text()
    return {
        "takes": str(taken[0]),
        "kernels": sorted(set(re.findall(r"splash_mha_[a-z]+", text))),
        "gathers": len(re.findall(r" all-gather(?:-start)?\(", text)),
        "squares": len(re.findall(rf"\b{queries},{keys}\b", text)),
        "temporary_mb": round(program.memory_analysis().temp_size_in_bytes / 1e6, 1),
        "seconds": round(time.monotonic() - start, 1),
    }


def arguments(mesh, queries, keys, dtype):
    """Shapes of queries, keys, values and both masks, laid on the mesh."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    def laid(dtype, *shape):
        axes = PartitionSpec("batch", None, *(["model"] if len(shape) > 2 else []))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, axes))

    yield laid(dtype, ROWS, queries, HEADS, WIDTH)
    yield laid(dtype, ROWS, keys, KV_HEADS, WIDTH)
    yield laid(dtype, ROWS, keys, KV_HEADS, WIDTH)
    yield laid("int32", ROWS, queries)
    yield laid("int32", ROWS, keys)


if __name__ == "__main__":
    main()
