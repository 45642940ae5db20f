"""Seconds and peak memory of steps on several answers to one input, read once or once for each.

    python bench/preferences.py

A pair of T5Gemma's S-S shape (vocabulary 256,000), random weights, Adam at 1e-4. Inputs of 512
tokens, answers of 64. `shared`: 8 answers look at one encoding of their input; `repeated`: the
input is read for each of them; same loss and gradients. `dpo`: two inputs with two answers each
and `training.DPO`; `sft`: as many tokens, two inputs with one answer of 128.

Each runs in a process of its own, three rounds over, in turn. Printed are medians of the steps
behind the first two, then one line that can be compared: how many times faster `shared` is than
`repeated` and what share of its memory it takes, and the same of `dpo` against `sft`. Memory is
the largest resident size during these steps, model, optimizer and libraries included; what a
process has before it makes a batch is printed beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
from train_step import WARM_UP, forget_peak, peak_bytes

os.environ.setdefault("KERAS_BACKEND", "jax")

CASES = "shared", "repeated", "dpo", "sft"


def arrays(inputs, answers, length, options):
    """Model inputs of `inputs` rows with so many answers each; all positions real."""
    rng = np.random.default_rng(0)
    read = rng.integers(3, 256_000, (inputs, options.read)).astype("int32")
    shape = (inputs, answers, length)
    written, labels = (rng.integers(3, 256_000, shape).astype("int32") for _ in range(2))
    x = {"encoder_token_ids": read, "encoder_padding_mask": np.ones_like(read)}
    x |= {"decoder_token_ids": written, "decoder_padding_mask": np.ones_like(written)}
    return x, labels


def steps(case, options):
    import keras

    import keras_encdec
    from keras_encdec import training
    from keras_encdec.training.preferences import Preference

    class Likelihood(Preference):
        """Minus the mean log-probability of answers."""

        reports = ()

        def __call__(self, answers):
            return -keras.ops.mean(answers.log_probs, axis=1)

        def logs(self, answers):
            return {}

    keras.utils.set_random_seed(0)
    lm = keras_encdec.from_preset("t5gemma_s_s", preprocessor=None)
    n, length = options.answers, options.write
    if case == "sft":
        x, labels = arrays(2, 1, 2 * length, options)
        x |= {name: x[name][:, 0] for name in ("decoder_token_ids", "decoder_padding_mask")}
        loss, y, weight = "auto", labels[:, 0], np.ones(labels[:, 0].shape, "float32")
    else:
        x, labels = arrays(*((2, 2) if case == "dpo" else (1, n)), length, options)
        if case == "repeated":
            for name, array in x.items():
                encoder = name.startswith("encoder")
                x[name] = np.repeat(array, n, axis=0) if encoder else array.swapaxes(0, 1)
            labels = labels.swapaxes(0, 1)
        loss = training.DPO() if case == "dpo" else Likelihood()
        y, weight = {"labels": labels}, np.ones(len(labels), "float32")
        if case == "dpo":
            y["reference"] = np.full(labels.shape[:2], -12.0 * length, "float32")
    lm.compile(keras.optimizers.Adam(1e-4), loss=loss)
    before, seconds, losses = peak_bytes(), [], []
    for step in range(options.steps + WARM_UP):
        if step == WARM_UP:
            forget_peak()
        began = time.perf_counter()
        found = keras.Model.train_on_batch(lm, x, y, weight, return_dict=True)
        seconds.append(time.perf_counter() - began)
        losses.append(float(found["loss"]))
    return {"seconds": seconds[WARM_UP:], "peak": peak_bytes(), "before": before, "losses": losses}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--read", type=int, default=512)
    parser.add_argument("--write", type=int, default=64)
    parser.add_argument("--only", choices=CASES)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(steps(options.only, options)))
        return
    found = {case: [] for case in CASES}
    for _ in range(options.rounds):
        for case in CASES:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", case]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[case].append(json.loads(output.splitlines()[-1]))
    seconds, peaks = {}, {}
    for case, runs in found.items():
        seconds[case] = statistics.median(s for run in runs for s in run["seconds"])
        peaks[case] = statistics.median(run["peak"] for run in runs)
        first = runs[0]
        print(
            f"{case:9s} {seconds[case]:6.2f} s  {peaks[case] / 1e9:5.2f} GB "
            f"(before {first['before'] / 1e9:.2f})  first loss {first['losses'][0]:.5f}"
        )
    ratio = seconds["repeated"] / seconds["shared"]
    print(
        f"preferences: shared {ratio:.2f}x the steps, {peaks['shared'] / peaks['repeated']:.2f}x "
        f"the memory of repeated; dpo {seconds['dpo'] / seconds['sft']:.2f}x the seconds, "
        f"{peaks['dpo'] / peaks['sft']:.2f}x the memory of sft; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
