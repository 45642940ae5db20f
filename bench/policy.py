"""What RLOO makes of a reward that can be checked, and of one that can be tricked.

    python bench/policy.py --seed 0 --steps 150
    python bench/policy.py --reward long --kl 0 --steps 40

Prompts are first lines of docstrings (NumPy, SciPy) that begin with one of the six commonest
words; the pair `gemma2_tiny_tiny` has never been adapted. `begins_alike` gives 1 where an answer
begins with the prompt's first word; `long` gives a tenth for each character, which any long word
earns. Rewards are of newly drawn answers to 32 prompts of held-out files, before and after. Prints
one line.
"""

import argparse
import os
import time
from collections import Counter

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import keras_encdec
from keras_encdec.data import docstrings
from keras_encdec.training import RLOO

EVERY = 10  # steps between lines


def begins_alike(prompts, texts, records):
    pairs = zip(prompts, texts, strict=True)
    return [float(text.split()[:1] == prompt.split()[:1]) for prompt, text in pairs]


def long(prompts, texts, records):
    return [len(text) / 10 for text in texts]


REWARDS = {"begins_alike": begins_alike, "long": long}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reward", choices=REWARDS, default="begins_alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32", help="such as mixed_bfloat16")
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    parts = docstrings.load(["numpy", "scipy"])
    lines = [[d.summary_and_body[0] for d in docs if d.summary_and_body] for docs in parts]
    common = {word for word, _ in Counter(line.split()[0] for line in lines[0]).most_common(6)}
    fit, held = ([line for line in some if line.split()[0] in common] for some in lines)
    lm = keras_encdec.from_preset("gemma2_tiny_tiny", dtype=options.dtype)
    lm.preprocessor.encoder_sequence_length, lm.preprocessor.seed = 32, options.seed
    loss = RLOO(REWARDS[options.reward], num_samples=options.samples, kl=options.kl, max_length=4)
    lm.compile(options.rate, loss=loss)
    before = lm.evaluate(held[:32], return_dict=True)
    begin = time.perf_counter()
    lm.fit(
        fit,
        batch_size=options.batch_size,
        steps_per_epoch=EVERY,
        epochs=options.steps // EVERY,
        verbose=2,
    )
    seconds = time.perf_counter() - begin
    after = lm.evaluate(held[:32], return_dict=True)
    print(
        f"{options.reward}, seed {options.seed}, kl {options.kl}, {options.steps} steps in "
        f"{seconds:.0f} s: KL {after['kl']:.2f} nats, reward {before['reward']:.3f} -> "
        f"{after['reward']:.3f}"
    )


if __name__ == "__main__":
    main()
