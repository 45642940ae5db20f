"""Whether tokens are the same with drafts and without, in other batches: greedy and drawn.

    python bench/draws.py
    python bench/draws.py --preset FOLDER --prompts 200 --tokens 24 --samplers top_p

Prompts are beginnings of docstrings of 8 to 96 tokens. A sampler's tokens follow from its seed and
the number of the prompt, so drafts from the input in batches of 24 must give what the plain
loop gives in batches of 32. Prints one line for each sampler; the number of prompts whose
tokens differ must be 0.
"""

import argparse
import os
import random
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_encdec
from keras_encdec.data import docstrings

WAYS = {"drafts": {"draft": "auto", "batch_size": 24}, "plain": {"draft": None, "batch_size": 32}}


def prompts(tokenizer, count):
    texts = [doc.text for doc in docstrings.load(("scipy", "keras"))[0]]
    rng = random.Random(0)
    for text in rng.choices(texts, k=count):
        ids = [int(i) for i in tokenizer(text)][: rng.randint(8, 96)]
        yield tokenizer.detokenize(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="gemma2_tiny_tiny")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--samplers", nargs="+", default=["greedy", "top_p", "top_k", "random"])
    options = parser.parse_args()
    lm = keras_encdec.from_preset(options.preset)
    texts = list(prompts(lm.preprocessor.tokenizer, options.prompts))
    for sampler in options.samplers:
        lm.compile(sampler=sampler)
        found, seconds = {}, {}
        for name, how in WAYS.items():
            begin = time.perf_counter()
            found[name] = lm.generate(texts, options.tokens, seed=7, **how)
            seconds[name] = time.perf_counter() - begin
        differ = sum(a != b for a, b in zip(*found.values(), strict=True))
        print(
            f"draws {sampler}: {len(texts)} prompts, {len(set(found['plain']))} distinct texts, "
            f"drafts {seconds['drafts']:.0f} s, plain {seconds['plain']:.0f} s, different {differ}",
            flush=True,
        )


if __name__ == "__main__":
    main()
