"""Our generation beside itself: drafts on and off, slots filled again and batch after batch.

    python bench/drafts.py
    python bench/drafts.py --workloads job

What a model of random weights writes says nothing of drafts. Here it computes all that it
would, and says what a script says: a sampler asks for the likeliest word and gives the script's.

    copy     t5gemma_s_s, 1 input of 512 tokens, an output that copies 500 of them, with every
             twentieth changed, as one that corrects a text
    new      the same, with an output that shares no two tokens with the input or with itself
    job      gemma2_mini_docs twice, 512 inputs of 32 to 128 tokens, outputs of log-normal lengths
             (median 32, sigma 0.7, at most 256), 32 at a time: as `generate` does it, and as
             calls of 32 after each other

Medians over rounds in turn, in one process; a first call of each is left out. The last number
of a line can be compared.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_hub
import numpy as np
from keras import ops

import keras_encdec
from keras_encdec.generation import session

START, STOP = 2, 1


class Script(keras_hub.samplers.Sampler):
    """Says what a script says, by an input's number and a token's place, (N, T) ids."""

    def __init__(self, script):
        super().__init__()
        self.script = ops.convert_to_tensor(script, "int32")
        self.place = keras_hub.samplers.RandomSampler().seed_generator

    def compute_probabilities(self, logits):
        return logits  # as greedy search, which needs no more

    def get_next_token(self, probabilities):
        row, place = (ops.cast(x, "int32") for x in ops.unstack(self.place.state.value, 2))
        likeliest = ops.argmax(probabilities, axis=-1)
        never = ops.max(probabilities, axis=-1) > 1e9  # so that nothing is left out
        return ops.where(never, likeliest, self.script[row, place])


def numbers_as_seeds(sampler, seed, rows, samples):
    """In place of `row_seeds`: what the script is looked up by."""
    return [np.array([[row, 0] for row in rows], "uint32") for _ in sampler.variables]


def model_inputs(rows, length):
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), "int32")
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    starts = np.zeros((len(rows), length), "int32")
    starts[:, 0] = START
    return {
        "encoder_token_ids": ids,
        "encoder_padding_mask": (ids > 0).astype("int32"),
        "decoder_token_ids": starts,
        "decoder_padding_mask": (starts > 0).astype("int32"),
    }


def timed(ways, rounds):
    """Median seconds of each of some functions, called in turn."""
    seconds = {name: [] for name in ways}
    outputs = {name: way() for name, way in ways.items()}
    first = next(iter(outputs.values()))
    assert all(np.array_equal(first, found) for found in outputs.values())
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def drafted(name, rounds):
    """One input whose output is a copy, or new."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(200_000)[:1200].astype("int32") + 3
    source, fresh = ids[:512], ids[512:1013]
    written = np.where(np.arange(500) % 20 == 19, fresh[:500], source[:500])
    written = written if name == "copy" else fresh[:500]
    lm = keras_encdec.from_preset("t5gemma_s_s", preprocessor=None)
    lm.compile(sampler=Script([[START, *written]]))
    x = model_inputs([source], 501)

    def way(draft):
        return lambda: lm.generate(x, stop_token_ids=None, draft=draft)["decoder_token_ids"]

    return timed({"plain": way(None), "drafts": way("auto")}, rounds)


def job(rounds):
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 4000, rng.integers(32, 128)).tolist() for _ in range(512)]
    lengths = np.minimum(np.exp(rng.normal(np.log(32), 0.7, len(rows))), 254).astype(int) + 1
    script = rng.integers(3, 4000, (len(rows), 256))
    script[np.arange(len(rows)), lengths] = STOP
    lm = keras_encdec.adapt("gemma2_mini_docs")
    lm.compile(sampler=Script(script))
    x = model_inputs(rows, 256)
    options = {"stop_token_ids": STOP, "draft": None}

    def slots():
        return lm.generate(x, batch_size=32, **options)["decoder_padding_mask"]

    def batches():
        order = np.argsort([-len(row) for row in rows], kind="stable")
        found = np.zeros((len(rows), 256), bool)
        for at in range(0, len(rows), 32):
            some = order[at : at + 32]
            session.row_seeds = lambda sampler, seed, rows, samples, some=some: numbers_as_seeds(
                sampler, seed, some, samples
            )
            part = {name: a[some] for name, a in x.items()}
            found[some] = lm.generate(part, **options)["decoder_padding_mask"]
        session.row_seeds = numbers_as_seeds
        return found

    return timed({"batches": batches, "slots": slots}, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = ["copy", "new", "job"]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    session.row_seeds = numbers_as_seeds
    for name in options.workloads:
        found = job(options.rounds) if name == "job" else drafted(name, options.rounds)
        (first, before), (second, after) = found.items()
        print(f"{name}: {first} {before:.2f} s | {second} {after:.2f} s | {before / after:.2f}x")


if __name__ == "__main__":
    main()
