"""How soon a reward model finds a planted preference.

    python bench/reward.py

Of the beginnings of two docstrings' bodies the one that names an array is preferred.
Pairs of 800 are learned from in 100 steps of 16, with all weights of `gemma2_tiny_tiny`; 100 pairs
of files held out are asked. Prints one line.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from keras_encdec.data import docstrings
from keras_encdec.models import EncDecRewardModel

CHARACTERS = 120  # of a body


def pairs(docs, count):
    both = [doc.summary_and_body for doc in docs if doc.summary_and_body]
    both = [(summary, body[:CHARACTERS]) for summary, body in both]
    named = [body for _, body in both if "array" in body][:count]
    others = [body for _, body in both if "array" not in body][:count]
    return {
        "prompt": [summary for summary, _ in both][: len(named)],
        "chosen": named,
        "rejected": others[: len(named)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--read", type=int, default=48, help="tokens of an answer at most")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    train, held_out = map(pairs, docstrings.load(), (800, 100))
    model = EncDecRewardModel.from_preset("gemma2_tiny_tiny")
    model.preprocessor.encoder_sequence_length = 32
    model.preprocessor.decoder_sequence_length = options.read
    model.preprocessor.seed = options.seed
    model.compile(options.rate)
    before = model.evaluate(held_out, verbose=0, return_dict=True)["accuracy"]
    begin = time.perf_counter()
    model.fit(train, batch_size=16, steps_per_epoch=options.steps, verbose=0)
    seconds = time.perf_counter() - begin
    after = model.evaluate(held_out, verbose=0, return_dict=True)["accuracy"]
    print(
        f"planted preference, seed {options.seed}, {options.steps} steps in {seconds:.0f} s: "
        f"{before:.3f} -> {after:.3f} of {len(held_out['chosen'])} pairs held out"
    )


if __name__ == "__main__":
    main()
