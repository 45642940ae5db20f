"""Seconds and peak memory of one optimizer step, beside KerasHub and transformers.

    python bench/train_step.py
    python bench/train_step.py --peers ours KerasHub --dtype mixed_bfloat16

A pair of T5Gemma's S-S shape (vocabulary 256,000), random weights, two examples of 256 +
256 tokens without padding, Adam at 1e-4 without clipping. Ours with its default loss, and
KerasHub's T5GemmaSeq2SeqLM with its own, both through `fit`; transformers' model in torch
with eager attention, which alone has the soft cap. All load the weights of one export, see
one batch again and again, and their losses are compared step by step.

Each is run in turn, in a process of its own, some rounds over; the first steps, which
compile, are left out. A step lasts from the end of the one before to its own end, device
synchronised. Memory is the largest resident size during these steps: model, optimizer and
libraries included, loading and compilation not. Printed are medians over all rounds, then
one line that can be compared, in which "1.50x" are times and shares of ours: KerasHub's
seconds over ours, our memory over KerasHub's. Steps that shared the machine with others
are slower: look at the load average that is printed with each run.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

WARM_UP = 2
TOLERANCE = {"float32": 1e-4, "mixed_bfloat16": 3e-2, "bfloat16": 3e-2}
EPSILON, BETA_2 = 1e-7, 0.999  # of Keras' Adam
_INPUTS = tuple(
    f"{side}_{kind}" for side in ("encoder", "decoder") for kind in ("token_ids", "padding_mask")
)


def batch(options):
    """Model inputs, labels and weights of one batch, all positions real."""
    rng = np.random.default_rng(0)
    shape = (options.batch_size, options.length)
    source, target, labels = (rng.integers(3, 256_000, shape).astype("int32") for _ in range(3))
    mask = np.ones(shape, "int32")
    inputs = dict(zip(_INPUTS, (source, mask, target, mask), strict=True))
    return inputs, labels, np.ones(shape, "float32")


class Clock:
    """Times steps and reads the peak memory of those that follow the warm-up."""

    def __init__(self):
        self.ends, self.losses = [], []

    def end_of_step(self, loss):
        self.ends.append(time.perf_counter())
        self.losses.append(loss)
        if len(self.ends) == WARM_UP:
            forget_peak()
            self.ends[-1] = time.perf_counter()

    def result(self):
        return {
            "seconds": list(np.diff(self.ends[WARM_UP - 1 :])),
            "losses": self.losses,
            "peak": peak_bytes(),
        }


def forget_peak():
    """Starts the count of the peak anew, after unused memory went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def ours(folder, options):
    import keras_encdec

    return in_keras(keras_encdec.from_preset(folder, preprocessor=None), options)


def keras_hub(folder, options):
    import keras_hub

    backbone = keras_hub.models.T5GemmaBackbone.from_preset(folder)
    return in_keras(keras_hub.models.T5GemmaSeq2SeqLM(backbone, preprocessor=None), options)


def in_keras(lm, options):
    """Steps of `fit` on copies of the batch."""
    import jax
    import keras

    clock = Clock()

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs):
            jax.block_until_ready(self.model._jax_state)
            before = sum(clock.losses)  # what Keras logs is the mean so far
            clock.end_of_step(float(logs["loss"]) * (step + 1) - before)

    lm.compile(optimizer=keras.optimizers.Adam(1e-4, epsilon=EPSILON, beta_2=BETA_2))
    data = keras.tree.map_structure(
        lambda x: np.tile(x, (options.steps + WARM_UP, 1)), batch(options)
    )
    inputs, labels, weights = data
    lm.fit(
        inputs,
        labels,
        sample_weight=weights,
        batch_size=options.batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[Callback()],
    )
    return clock.result()


def transformers(folder, options):
    import torch
    from transformers import T5GemmaForConditionalGeneration

    lm = T5GemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", dtype=getattr(torch, options.dtype)
    ).train()
    inputs, labels, _ = batch(options)
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    given = zip(names, inputs.values(), strict=True)
    tensors = {name: torch.tensor(x).long() for name, x in given}
    tensors["labels"] = torch.tensor(labels).long()
    optimizer, clock = torch.optim.Adam(lm.parameters(), lr=1e-4, betas=(0.9, BETA_2)), Clock()
    for step in range(1, options.steps + WARM_UP + 1):
        for group in optimizer.param_groups:  # Keras adds its epsilon before the correction
            group["eps"] = EPSILON / math.sqrt(1 - BETA_2**step)
        optimizer.zero_grad()
        loss = lm(**tensors, use_cache=False).loss
        loss.backward()
        optimizer.step()
        clock.end_of_step(loss.item())
    return clock.result()


PEERS = {"ours": ours, "KerasHub": keras_hub, "transformers": transformers}


def export(folder, options):
    """Writes random weights of the preset where every peer can read them."""
    import keras_encdec

    lm = keras_encdec.from_preset(options.preset, preprocessor=None)
    lm.export_to_transformers(folder)


def in_this_process(name, folder, options):
    import keras

    keras.config.set_dtype_policy(options.dtype)
    keras.utils.set_random_seed(0)
    if name == "export":
        export(folder, options)
    else:
        print(json.dumps(PEERS[name](folder, options)))


def in_a_process(name, folder):
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--folder", folder]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1]) if name != "export" else None


def measure(options):
    """Results of every round, by peer."""
    results = {name: [] for name in options.peers}
    with tempfile.TemporaryDirectory() as folder:
        in_a_process("export", folder)
        for _ in range(options.rounds):
            for name in options.peers:
                results[name].append(in_a_process(name, folder))
                seconds = statistics.median(results[name][-1]["seconds"])
                load = os.getloadavg()[0]
                print(f"{name}: {seconds:.2f} s, load {load:.1f}", file=sys.stderr, flush=True)
    return results


def check_losses(losses, tolerance):
    """Raises ValueError where two peers are not taking the same steps."""
    first, *others = losses.values()
    for other in others:
        if not np.allclose(first, other, rtol=tolerance, atol=0):
            raise ValueError(f"Expected equal losses within {tolerance}. Received: {losses}.")


def summary(results):
    """(seconds, GB) of each peer: medians over the steps and the rounds."""
    return {
        name: (
            statistics.median([s for run in runs for s in run["seconds"]]),
            statistics.median([run["peak"] for run in runs]) / 1e9,
        )
        for name, runs in results.items()
    }


def report(results, options):
    losses = {name: runs[0]["losses"][:4] for name, runs in results.items()}
    medians = summary(results)
    print(f"{'':14}{'s/step':>8}{'range':>16}{'peak GB':>9}   loss of the first steps")
    for name, (seconds, memory) in medians.items():
        steps = sorted(s for run in results[name] for s in run["seconds"])
        spread = f"{steps[0]:.2f} to {steps[-1]:.2f}"
        shown = " ".join(f"{loss:.5f}" for loss in losses[name])
        print(f"{name:14}{seconds:8.2f}{spread:>16}{memory:9.2f}   {shown}")
    check_losses(losses, TOLERANCE[options.dtype])
    print(line(medians, options))


def line(medians, options):
    base = medians.get("ours")
    parts = []
    for name, (seconds, memory) in medians.items():
        part = f"{name} {seconds:.2f} s {memory:.2f} GB"
        if base and name != "ours":
            part += f" ({seconds / base[0]:.2f}x, {base[1] / memory:.2f}x)"
        parts.append(part)
    size = f"b{options.batch_size} {options.length}+{options.length} {options.dtype}"
    return f"train_step {options.preset} {size}: " + " | ".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--preset", default="t5gemma_s_s")
    parser.add_argument("--steps", type=int, default=5, help="timed, in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--one", choices=["export", *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        in_this_process(options.one, options.folder, options)
        return
    report(measure(options), options)


if __name__ == "__main__":
    main()
