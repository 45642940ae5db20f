"""Run in a process of its own, which sees eight devices; prints one line of JSON.

    python run_experts.py

trains a tiny pair with experts for a step on one device and on meshes of eight.
`test_sharded_experts.py` sets the environment and says what the answers should be.
"""

import json

import jax
import keras
import numpy as np

from keras_encdec.layers import ragged
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.spec import MoESpec
from keras_encdec.testing.models import make_inputs, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

# The model axis cuts the encoder's experts, and not the decoder's.
PAIR = tiny_pair(
    encoder=tiny_encoder(windows=(8, None), experts=MoESpec(8, 2, 24, balance_weight=0.1)),
    decoder=tiny_decoder(experts=MoESpec(3, 2, 20, layers=(1,), balance_weight=0.1)),
)
INPUTS = make_inputs((20, 13, 1, 7), (16, 9, 1, 5))
SHAPES = []  # of the matrices that a device multiplies by


def seen(rows, matrices, sizes, product=ragged.product):
    SHAPES.append(tuple(matrices.shape))
    return product(rows, matrices, sizes)


def step(mesh):
    """Logs of a step, the weights after it, and how many experts a device had at once."""
    SHAPES.clear()
    lm = EncDecSeq2SeqLM(tiny_backbone(PAIR))
    lm.compile(keras.optimizers.SGD(0.1))
    labels, weight = INPUTS["decoder_token_ids"], INPUTS["decoder_padding_mask"]
    history = lm.fit(INPUTS, labels, sample_weight=weight, batch_size=4, verbose=0).history
    logs = {name: values[0] for name, values in history.items()}
    weights = {w.path: to_numpy(w) for w in lm.backbone.weights}
    placed = {w.path: w.value.addressable_shards[0].data.shape for w in lm.backbone.weights}
    return logs, weights, sorted({shape[0] for shape in SHAPES}), placed


def main():
    ragged.product = seen
    logs, weights, _, _ = step(None)
    found = {}
    for shape in ((2, 4), (1, 8)):
        mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), jax.devices())
        layout_map = EncDecBackbone.get_layout_map(mesh, PAIR)
        with keras.distribution.ModelParallel(layout_map=layout_map).scope():
            there, after, experts, placed = step(mesh)
        compared = [name for name in logs if name != "tokens_per_second"]
        found[str(list(shape))] = {
            "logs": max(abs(there[name] - logs[name]) for name in compared),
            "weights": max(float(np.abs(after[k] - v).max()) for k, v in weights.items()),
            "experts": experts,
            "gate": placed["encoder/block_0/feedforward/experts/gate"],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
