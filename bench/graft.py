"""What grafting does: tuning of a decoder-only source, added to a pair that was adapted from it.

    python bench/graft.py [--seeds 0 1 2] [--source gemma2_mini_docs]

The source, an embedded model, is tuned on a task (the first line of a docstring from what stands
under it) as a decoder-only model; beside that, it is made a pair and adapted by PrefixLM on texts.
`merge` by `"sum"` adds what tuning changed in the source to the pair, whole and half. Printed are
losses on the task, on held-out files: of each pair as it is, and after a short tuning of it on the
task, which is what an owner of an adapted pair would do instead. Models, data and losses are those
of `keras-encdec claims`.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_hub

import keras_encdec
from keras_encdec.evaluation import claims_data
from keras_encdec.evaluation.claims_arms import Arm, Scale
from keras_encdec.evaluation.claims_models import SourceTrainee, loaded, made
from keras_encdec.sharing import catalog

ARMS = "base", "instructed", "adapted", "half", "grafted"


def instructed(scale, data, seed, rate):
    """A pair of the source, tuned on the task."""
    lm = keras_hub.models.CausalLM.from_preset(catalog.embedded(scale.small), dtype=scale.dtype)
    preprocessor = lm.preprocessor
    source = SourceTrainee(lm, scale)
    source.begin(scale.tune_steps, rate)
    source.tune(data.train.summaries, data.lengths, seed)
    lm.preprocessor = preprocessor
    return keras_encdec.adapt(lm)


def losses(seed, options, scale, data, folder):
    """Of each arm on the task: before tuning, and after."""
    pair = made(Arm(), scale, seed)
    pair.save(folder / "base")
    pair.begin(scale.steps, options.rate)
    pair.adapt(data, Arm(), range(scale.steps), scale.steps, seed)
    pair.save(folder / "adapted")
    instructed(scale, data, seed, options.rate).save_to_preset(folder / "instructed")
    both = [folder / "adapted", folder / "instructed"]
    for name, share in (("half", 0.5), ("grafted", 1.0)):
        keras_encdec.merge(both, folder / name, "sum", base=folder / "base", weights=[1.0, share])
    few = data.train.summaries.some(range(scale.batch_size * options.steps))
    held, found = data.test.summaries, {}
    for name in ARMS:
        pair = loaded(Arm(), scale, folder / name)
        pair.begin(options.steps, options.rate)
        before = pair.loss(held, data.lengths)
        pair.tune(few, data.lengths, seed)
        found[name] = before, pair.loss(held, data.lengths)
        print(f"seed {seed} {name:10} {before:.3f} -> {found[name][1]:.3f}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--source", default="gemma2_mini_docs")
    parser.add_argument("--adapt", type=int, default=300, help="steps of PrefixLM")
    parser.add_argument("--tune", type=int, default=150, help="steps of the source on the task")
    parser.add_argument("--steps", type=int, default=20, help="steps of each pair on the task")
    parser.add_argument("--rate", type=float, default=5e-4)
    options = parser.parse_args()
    scale = Scale(options.source, steps=options.adapt, tune_steps=options.tune)
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded(options.source))
    data = claims_data.read(scale, tokenizer)
    every = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            every.append(losses(seed, options, scale, data, Path(folder)))
    parts = []
    for name in ARMS:
        columns = zip(*(found[name] for found in every), strict=True)
        before, after = (statistics.mean(column) for column in columns)
        parts.append(f"{name} {before:.3f} -> {after:.3f}")
    steps = f"{options.source}, {len(every)} seeds, {options.steps} steps"
    print(f"graft, {steps}: " + " | ".join(parts))


if __name__ == "__main__":
    main()
