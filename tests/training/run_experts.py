"""Run in a process of its own, which sees eight devices; prints one line of JSON.

    python run_experts.py

computes a layer of experts, and its gradients, on one device and on meshes of eight.
`test_sharded_experts.py` sets the environment and says what the answers should be.
"""

import json

import keras
import numpy as np
from keras import ops

from keras_encdec.layers import ragged
from keras_encdec.layers.experts import MixtureOfExperts, unevenness
from keras_encdec.models import EncDecBackbone
from keras_encdec.spec import MoESpec
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.testing.models import draw, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

SHARED = {"shared_dim": 16, "shared_gate": True, "separate_norms": True}
SHARED |= {"router_norm": 1e-2, "expert_scale": True}
BIASED = {"router_bias": True, "expert_bias": True}


def pair(**fields):
    """The model axis cuts the encoder's experts, and not the decoder's."""
    encoder, decoder = MoESpec(8, 2, 24, **fields), MoESpec(3, 2, 20, **fields)
    return tiny_pair(encoder=tiny_encoder(experts=encoder), decoder=tiny_decoder(experts=decoder))


RNG = np.random.default_rng(0)
STATES, RESIDUAL, PULL = RNG.normal(size=(3, 4, 9, 42)).astype("float32")
IS_TOKEN = np.arange(9) < np.array([[9], [6], [1], [8]])
KERNELS = []  # of the products of a device


def seen(rows, matrices, *others, product=ragged.product):
    KERNELS.append(tuple(matrices.shape))
    return product(rows, matrices, *others)


def computed(spec, mode):
    """The output's sum with weights and the loss of uneven experts, gradients, experts at once."""
    KERNELS.clear()
    layer = MixtureOfExperts(spec, "clamped_swiglu", name="feedforward")
    layer.build(STATES.shape)
    for weight in layer.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)))
    if mode is not None:
        layer.experts.quantize(mode)

    def function():
        output, load = layer(STATES, IS_TOKEN, RESIDUAL)
        return ops.sum(output * PULL) + unevenness(load[None], spec)

    value, gradients = value_and_gradients(function, layer.trainable_variables)
    return [np.float32(value), *map(to_numpy, gradients)], {shape[0] for shape in KERNELS}


def main():
    ragged.product, found = seen, {}
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    kinds = {"biased": BIASED, "shared": SHARED, "in int8": BIASED}
    for kind, fields in kinds.items():
        mode = "int8" if kind == "in int8" else None
        layout_map = EncDecBackbone.get_layout_map(mesh, pair(**fields))
        for side in ("encoder", "decoder"):
            spec = getattr(pair(**fields), side).experts
            expected, _ = computed(spec, mode)
            with keras.distribution.ModelParallel(layout_map=layout_map).scope():
                some, experts = computed(spec, mode)
            differences = [
                np.abs(a - b).max() / np.abs(b).max() for a, b in zip(some, expected, strict=True)
            ]
            path = f"{side}/block_0/feedforward/experts/gate"
            cut = layout_map[path].axes
            found[f"{kind} {side}"] = [float(max(differences)), sorted(experts), cut]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
