"""Time and memory against the length of the input and against the batch, as one picture.

    python bench/growth.py growth.png
    python bench/growth.py growth.png --lengths 1024 2048 4096 --batches 1 2 4

A narrow pair whose attention is Gemma 2's in kind (bench/memory_growth.py), a target of 256
tokens. A training step is loss and gradient of the decoder's states, each block rematerialised;
its memory is XLA's own account of what it works with. Generation is the encoder, and one more
token after it. Seconds are the least of some runs. The last line can be compared: how often
more the largest takes than the smallest, beside how often longer it is.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import matplotlib
import numpy as np
from keras import ops
from memory_growth import pair

from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM

TARGET, NEW, RUNS = 256, 32, 2


def inputs(rows, length):
    return {
        "encoder_token_ids": np.ones((rows, length), "int32"),
        "encoder_padding_mask": np.ones((rows, length), "int32"),
        "decoder_token_ids": np.ones((rows, TARGET), "int32"),
        "decoder_padding_mask": np.ones((rows, TARGET), "int32"),
    }


def least(run):
    """Seconds of the quickest of some runs."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def training(backbone, rows, length):
    """Seconds and megabytes of a gradient."""

    def loss(trainable, x):
        outputs, _ = backbone.stateless_call(trainable, [], x, training=True)
        return ops.sum(ops.square(outputs["decoder_sequence_output"]))

    values = [v.value for v in backbone.trainable_variables]
    x = inputs(rows, length)
    step = jax.jit(jax.grad(loss)).lower(values, x).compile()
    return least(lambda: step(values, x)), step.memory_analysis().temp_size_in_bytes / 1e6


def generation(lm, rows, length):
    """Seconds of the encoder, and of one more token of each row."""
    x = inputs(rows, length)
    x["decoder_padding_mask"] = (np.arange(TARGET) < 1).astype("int32") * x["decoder_padding_mask"]
    encoding = lm.encode(x)
    read = least(lambda: lm.encode(x).source.token_ids)
    lengths = (1 + NEW, 1 + 3 * NEW)
    for size in lengths:
        lm.decode(encoding, size, stop_token_ids=None, draft=None)
    short, long = (
        least(lambda n=n: lm.decode(encoding, n, stop_token_ids=None, draft=None)) for n in lengths
    )
    return read, (long - short) / (lengths[1] - lengths[0])


def measure(sizes):
    """By (rows, length): seconds of a step, its megabytes, seconds of reading and of a token."""
    spec = pair()
    backbone = EncDecBackbone(spec.encoder, spec.decoder)
    backbone.remat, backbone.attention = True, "fused"
    lm = EncDecSeq2SeqLM(backbone, preprocessor=None)
    lm.compile(sampler="greedy")
    found = {}
    for rows, length in sizes:
        found[rows, length] = (*training(backbone, rows, length), *generation(lm, rows, length))
        print(f"{rows} x {length}:", *(f"{x:.3g}" for x in found[rows, length]), flush=True)
    return found


def draw(found, lengths, batches, path):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    sides = (("input tokens, 1 row", [(1, n) for n in lengths], lengths),)
    sides += ((f"rows of {lengths[0]} input tokens", [(n, lengths[0]) for n in batches], batches),)
    names = "training step", "memory of it", "encoder", "one more token"
    for column, (title, sizes, x) in enumerate(sides):
        for i, name in enumerate(names):
            plot = axes[int(i == 1), column]
            plot.loglog(x, [found[size][i] for size in sizes], marker="o", label=name)
        for row, unit in enumerate(("seconds", "MB")):
            axes[row, column].set(xlabel=title, ylabel=unit, xticks=x, xticklabels=map(str, x))
            axes[row, column].minorticks_off()
            axes[row, column].legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("picture")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2**n for n in range(10, 16)])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options = parser.parse_args()
    sizes = [(1, n) for n in options.lengths]
    sizes += [(n, options.lengths[0]) for n in options.batches if n > 1]
    found = measure(sizes)
    draw(found, options.lengths, options.batches, options.picture)
    first, last = found[1, options.lengths[0]], found[1, options.lengths[-1]]
    more = ", ".join(f"{b / a:.1f}x" for a, b in zip(first, last, strict=True))
    ratio = options.lengths[-1] / options.lengths[0]
    print(f"growth {ratio:.0f}x input: step, memory, encoder, token {more}")


if __name__ == "__main__":
    main()
