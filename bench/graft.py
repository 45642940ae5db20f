"""What grafting does: tuning of a decoder-only source, added to a pair that was adapted from it.

    python bench/graft.py [--seeds 0 1 2]

The source is `gemma2_tiny_docs`. It is tuned on a task (the first line of a docstring from what
stands under it) as a decoder-only model; beside that, it is made a pair and adapted by PrefixLM on
texts without the task. `merge` by `"sum"` adds what tuning changed in the source to the pair, whole
and half. Printed are losses on the task, on held-out files: of each pair as it is, and after a
short tuning of it on the task, which is what an owner of an adapted pair would do instead.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_hub

import keras_encdec
from keras_encdec.data import docstrings
from keras_encdec.objectives import PrefixLM
from keras_encdec.sharing import catalog

SOURCE, READ, WRITE = "gemma2_tiny_docs", 96, 32
ARMS = "base", "instructed", "adapted", "half", "grafted"


def task_rows(docs, count):
    """Bodies and first lines."""
    pairs = [doc.summary_and_body for doc in docs if doc.summary_and_body][:count]
    return [body[:300] for _, body in pairs], [line for line, _ in pairs]


def tuned_source(rows, steps, rate):
    """The decoder-only source, tuned on the task by KerasHub."""
    lm = keras_hub.models.CausalLM.from_preset(catalog.embedded(SOURCE))
    lm.preprocessor.sequence_length = READ + WRITE
    lm.compile(
        keras.optimizers.AdamW(rate, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    prompts, responses = rows
    fit = {"prompts": prompts[: 16 * steps], "responses": responses[: 16 * steps]}
    lm.fit(fit, batch_size=16, verbose=0)
    return lm


def tuned(lm, rows, steps, rate):
    lm.compile(rate)
    lm.fit(*rows, batch_size=16, steps_per_epoch=steps, verbose=0)
    return lm


def sized(lm):
    lm.preprocessor.encoder_sequence_length = READ
    lm.preprocessor.decoder_sequence_length = WRITE
    return lm


def losses(seed, options, folder):
    """Of each arm on the task: before tuning, and after."""
    keras.utils.set_random_seed(seed)
    train, held = docstrings.load()
    rows, held_rows = task_rows(train, 4000), task_rows(held, 200)
    base = sized(keras_encdec.adapt(SOURCE))
    base.save_to_preset(folder / "base")
    base.preprocessor.objective = PrefixLM()
    base.preprocessor.seed = seed
    tuned(base, ([doc.text for doc in train],), options.adapt, options.rate)
    base.preprocessor.objective = None
    base.save_to_preset(folder / "adapted")
    source = tuned_source(rows, options.tune, options.rate)
    sized(keras_encdec.adapt(source)).save_to_preset(folder / "instructed")
    both = [folder / "adapted", folder / "instructed"]
    for name, share in (("half", 0.5), ("grafted", 1.0)):
        keras_encdec.merge(both, folder / name, "sum", base=folder / "base", weights=[1.0, share])
    found = {}
    for name in ARMS:
        lm = sized(keras_encdec.from_preset(folder / name))
        lm.compile()
        before = lm.evaluate(*held_rows, verbose=0, return_dict=True)["loss"]
        tuned(lm, rows, options.steps, options.rate)
        after = lm.evaluate(*held_rows, verbose=0, return_dict=True)["loss"]
        found[name] = before, after
        print(f"seed {seed} {name:10} {before:.3f} -> {after:.3f}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--adapt", type=int, default=300, help="steps of PrefixLM")
    parser.add_argument("--tune", type=int, default=150, help="steps of the source on the task")
    parser.add_argument("--steps", type=int, default=20, help="steps of each pair on the task")
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    every = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            every.append(losses(seed, options, Path(folder)))
    parts = []
    for name in ARMS:
        columns = zip(*(found[name] for found in every), strict=True)
        before, after = (statistics.mean(column) for column in columns)
        parts.append(f"{name} {before:.3f} -> {after:.3f}")
    print(f"graft, {len(every)} seeds, {options.steps} steps: " + " | ".join(parts))


if __name__ == "__main__":
    main()
