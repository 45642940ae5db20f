"""Run in a process of its own, which sees eight devices; prints one line of JSON.

    python run_sharded_attention.py '{"attend": [["data", [2, 4]]]}'

calls `attend` of this file with these arguments. `test_sharded_attention.py` sets the
environment and says what the answers should be.
"""

import dataclasses
import itertools
import json
import re
import sys

import compiled_step
import jax
import keras
import numpy as np
from keras import ops

from keras_encdec.layers import by_head, fused, masks, shards
from keras_encdec.layers.attention import attend as attend_here
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.spec import AttentionSpec
from keras_encdec.testing.models import make_inputs, tiny_backbone
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

# Heads and key/value heads: a device has whole groups, a part of one, parts of two; none is cut.
HEADS = {"groups": (16, 8), "part of a group": (16, 2), "parts of two": (24, 3), "odd": (9, 3)}
ROWS = {"even": 8, "odd": 3}
T, S = 640, 704  # of a compiled program: no other dimension of it is one of these


def distribution(mesh, spec=None):
    """`"data"` for data parallel, else (batch, model) devices with our layout map."""
    if mesh == "data":
        return keras.distribution.DataParallel()
    mesh = keras.distribution.DeviceMesh(tuple(mesh), ("batch", "model"))
    layout_map = EncDecBackbone.get_layout_map(mesh, spec)
    return keras.distribution.ModelParallel(layout_map=layout_map)


def attend(*meshes):
    """By mesh, rows and heads: the largest difference of output and gradients, and the cut."""
    found = {}
    for mesh in meshes:
        for (rows, count), (name, heads) in ((r, h) for r in ROWS.items() for h in HEADS.items()):
            inputs, visible = drawn(count, *heads)
            expected = attended("plain", inputs, visible)
            with distribution(mesh).scope():
                cut = str(shards.cut(inputs[0].shape, inputs[1].shape))
                some = attended("fused", inputs, visible)
            difference = max(
                float(np.abs(a - b).max() / np.abs(b).max())
                for a, b in zip(some, expected, strict=True)
            )
            found[f"{mesh}, {rows}, {name}"] = [difference, cut]
    return found


def drawn(rows, heads, kv_heads):
    rng = np.random.default_rng(0)
    shapes = (rows, 37, heads, 8), (rows, 45, kv_heads, 8), (rows, 45, kv_heads, 8)
    inputs = [rng.normal(0, 1.5, shape).astype("float32") for shape in shapes]
    keys, queries = packed(rows, 45, rng), packed(rows, 37, rng)
    return inputs, masks.cross_attention(keys, queries)


def packed(rows, length, rng):
    """(rows, length): padding on both ends, and up to three segments."""
    mask = np.zeros((rows, length), "int32")
    for row in mask:
        cuts = np.sort(rng.choice(np.arange(1, length), 4, replace=False))
        for number, (start, end) in enumerate(itertools.pairwise(cuts), start=1):
            row[start:end] = number
    return mask


def attended(path, inputs, visible):
    """The output, and the gradients of all its squares."""

    @jax.jit
    def run(inputs, visible):
        def total(*inputs):
            output = attend_here(*inputs, visible, scale=0.7, soft_cap=5.0, path=path)
            return ops.sum(ops.square(output)), output

        gradients, output = jax.grad(total, (0, 1, 2), has_aux=True)(*inputs)
        return [output, *gradients]

    return [np.asarray(x) for x in run(inputs, visible)]


def pair(sinks=False):
    """Windows shorter than the text; two key/value heads for eight heads."""
    heads = AttentionSpec(8, 2, 8, 8, 5.0, sinks=sinks)
    sides = tiny_encoder(windows=(8, None)), tiny_decoder(windows=(6, None))
    encoder, decoder = (dataclasses.replace(side, width=48, attention=heads) for side in sides)
    return tiny_pair(encoder=encoder, decoder=decoder)


def step(*meshes):
    """By mesh and kind of rows: the largest difference of the loss and of each gradient.

    Packed ones are of heads with sinks.
    """
    return compared("fused", ("padded", "packed"), meshes)


def splash_step(*meshes):
    """As `step`, by the kernel for TPUs, which XLA's operations take the place of here."""
    fused._KERNELS["jax"]["splash"] = None
    return compared("splash", ("packed",), meshes)


def compared(path, kinds, meshes):
    found = {}
    for kind in kinds:
        expected = gradients("plain", kind)
        for mesh in meshes:
            with distribution(mesh, pair(kind == "packed")).scope():
                some = gradients(path, kind)
            assert some.keys() == expected.keys()
            found[f"{mesh}, {kind}"] = {
                name: float(np.abs(some[name] - value).max()) for name, value in expected.items()
            }
    return found


def gradients(path, kind):
    """The loss of a training step, and what it takes from each weight at a rate of 1."""
    keras.utils.set_random_seed(0)
    lm = EncDecSeq2SeqLM(tiny_backbone(pair(kind == "packed")))
    lm.compile(keras.optimizers.SGD(1.0), attention=path)
    x = make_inputs((40, 33, 1, 17, 29, 40, 14, 25), (32, 19, 1, 14, 25, 32, 28, 17))
    if kind == "packed":
        rng = np.random.default_rng(1)
        for side, length in (("encoder", 40), ("decoder", 32)):
            x[f"{side}_padding_mask"] = packed(8, length, rng)
    y = np.roll(x["decoder_token_ids"], -1, axis=1)
    weight = (x["decoder_padding_mask"] > 0).astype("float32")
    before = {v.path: np.asarray(v.value) for v in lm.trainable_variables}
    loss = lm.fit(x, y, sample_weight=weight, batch_size=8, verbose=0).history["loss"][0]
    taken = {v.path: before[v.path] - np.asarray(v.value) for v in lm.trainable_variables}
    return {"loss": np.array(loss), **taken}


def program(*meshes):
    """By mesh: arrays of a step's HLO of queries by keys, and those of tokens that are gathered."""
    found = {}
    for mesh in meshes:
        with distribution(mesh, pair()).scope():
            text = compiled_step.compiled(pair(), 8, S, T, attention="fused").as_text()
        gathers = "\n".join(x for x in text.splitlines() if re.search(r" all-gather[\w-]*\(", x))
        found[str(mesh)] = {
            "squares": sorted({s for s in shapes(text) if sum(n in (T, S) for n in s) > 1}),
            "gathered": sorted({s for s in shapes(gathers) if {T, S} & set(s)}),
            "tokens": len({s for s in shapes(text) if {T, S} & set(s)}),
        }
    return found


def shapes(text):
    for dimensions in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text):
        yield tuple(int(n) for n in dimensions.split(","))


COMMANDS = {f.__name__: f for f in (attend, step, splash_step, program)}

if __name__ == "__main__":
    by_head._LOGITS = 16 * 45 if "program" not in sys.argv[1] else 2**17  # several blocks
    calls = json.loads(sys.argv[1])
    print(json.dumps({name: COMMANDS[name](*arguments) for name, arguments in calls.items()}))
