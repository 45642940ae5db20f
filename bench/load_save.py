"""What the checks of `integrity` add to saving and loading a pair of the 2B shape.

    python bench/load_save.py --layers 4

The pair has Gemma 2 2B's widths and vocabulary in bfloat16, with fewer layers so that it fits
beside other work. Saves and loads with and without checks take turns; the medians are compared.
"""

import argparse
import contextlib
import dataclasses
import gc
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import keras

import keras_encdec
from keras_encdec import integrity
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM

OFF = {
    "write": lambda *args: None,
    "check_weights": lambda *args: None,
    "check_assets": lambda *args: None,
}


def make(layers):
    spec = keras_encdec.presets["gemma2_2b_2b"].spec
    sides = [
        dataclasses.replace(side, windows=side.windows[:layers])
        for side in (spec.encoder, spec.decoder)
    ]
    return EncDecSeq2SeqLM(EncDecBackbone(*sides, dtype="bfloat16"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    lm = make(args.layers)
    seconds = {(what, on): [] for what in ("save", "load") for on in (False, True)}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 * args.rounds):
            on = number % 2 == 1
            scope = contextlib.nullcontext() if on else mock.patch.multiple(integrity, **OFF)
            path = Path(folder) / "preset"
            with scope:
                start = time.perf_counter()
                lm.save_to_preset(path)
                middle = time.perf_counter()
                keras_encdec.from_preset(str(path), preprocessor=None)
                seconds["load", on].append(time.perf_counter() - middle)
                seconds["save", on].append(middle - start)
            print(f"checks {on}: {[round(some[-1], 2) for some in seconds.values() if some]}")
            gc.collect()  # of a Keras model, which nothing else frees
        size = sum(file.stat().st_size for file in path.glob("*"))
    for what in ("save", "load"):
        off, on = (statistics.median(seconds[what, on]) for on in (False, True))
        best = [min(seconds[what, on]) for on in (False, True)]
        print(
            f"{what} {size / 1e9:.2f} GB: {off:.2f} s without checks, {on:.2f} s with, "
            f"x {on / off:.2f} (best {best[0]:.2f} and {best[1]:.2f})"
        )


if __name__ == "__main__":
    assert keras.backend.backend() == "jax"
    main()
