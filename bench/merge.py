"""Peak memory of a merge beside one model, for each method.

    python bench/merge.py FOLDER

Three presets of T5Gemma's S-S shape (vocabulary 256,000), random weights in float32: a base and
two that differ from it. Each merge runs in a process of its own, and so does loading one model.
Printed is what it takes above what it had after its imports, at its largest resident size, as a
share of the weights' size; with `--dtype bfloat16` the files hold that. The largest tensor, an
embedding, is 42% of this model.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from train_step import forget_peak, peak_bytes

os.environ.setdefault("KERAS_BACKEND", "jax")

NAMES = "base", "one", "two"
LOAD = "from_preset"  # of one model, for comparison


def make(folder, dtype):
    """Saves the presets; bytes of the weights of one."""
    import keras_encdec

    lm = keras_encdec.from_preset("t5gemma_s_s", dtype=dtype, preprocessor=None)
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(number)
        for weight in lm.weights if number else ():
            weight.assign(weight + 0.01 * rng.standard_normal(weight.shape, "float32"))
        lm.save_to_preset(folder / name)
    return sum(np.prod(w.shape) * np.dtype(w.dtype).itemsize for w in lm.weights)


def merge(folder, method):
    """Bytes above those of the imports, and seconds."""
    import keras_encdec

    before = peak_bytes()
    forget_peak()
    begun = time.perf_counter()
    presets, out = [folder / "one", folder / "two"], folder / "merged"
    if method == LOAD:
        keras_encdec.from_preset(folder / "one")
    else:
        keras_encdec.merge(presets, out, method, base=folder / "base", strength=0.3)
    return peak_bytes() - before, time.perf_counter() - begun


def main(options):
    folder = Path(options.folder)
    if options.method:
        print(json.dumps(merge(folder, options.method)))
        return
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    size = make(folder, options.dtype)
    shares = []
    for method in ("average", "slerp", "ties", LOAD):
        ended = subprocess.run(
            [*command, "--method", method], stdout=subprocess.PIPE, text=True, check=True
        )
        taken, seconds = json.loads(ended.stdout.splitlines()[-1])
        shares.append(f"{method} {taken / size:.2f} x ({seconds:.0f} s)")
    print(f"merge of two {size / 1e9:.2f} GB models in {options.dtype}: {', '.join(shares)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--method")
    main(parser.parse_args())
