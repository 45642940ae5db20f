"""
Title: Merging fine-tuned models
Author: keras_encdec
Date created: 2026/11/27
Last modified: 2026/11/27
Description: A mean over steps, an arc between two runs, and the way back to where both began.
Accelerator: GPU
"""

"""
## Introduction

Two people fine-tune the same model on different data. Each of the two is better at its own data
and has forgotten something else. As both began from the same weights, they can often be made
one, without training: their weights are combined, tensor by tensor.

[WARP](https://arxiv.org/abs/2406.16768) made a recipe of it, which the report of
[Gemma 3](https://arxiv.org/abs/2503.19786) names (section 3). It has three steps, the last of
which gives the start of the next round:

1. each run is held near a **mean of its own weights** over the last steps;
2. runs are merged along the **arc** between what they have learned (SLERP);
3. the result goes **part of the way back** to the weights that all runs began from.

WARP trains by reinforcement, where the mean of step 1 is what the policy is kept near to. Here
runs learn from pairs of texts instead, and the mean simply takes the place of the last step's
weights; steps 2 and 3 are as in the paper.

The guide is written for one GPU of 24 GB and T5Gemma 2B-2B. With `KERAS_ENCDEC_SMALL=1` the
same code runs on any CPU in about a minute, without network: a small pair of docstrings that
ships with the package takes its place. What its losses show, and what not, is said at the end.
"""

"""
## Setup
"""

"""shell
pip install -q "keras-encdec[cuda,guides]"
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import pathlib

import keras
import keras_encdec
from keras_encdec import training
from keras_encdec.data import docstrings

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    START, DTYPE, RATE, DECAY = "gemma2_mini_docs", None, 1e-3, 0.8
    ROWS, HELD_OUT, EPOCHS = 40, 16, 2
    READ, WRITE, CHARACTERS = 48, 24, 100
else:
    START, DTYPE = "hf://google/t5gemma-2b-2b-prefixlm", "bfloat16"
    RATE, DECAY = 1e-4, 0.99
    ROWS, HELD_OUT, EPOCHS = 4000, 400, 1
    READ, WRITE, CHARACTERS = 512, 64, 2000

keras.utils.set_random_seed(0)
keras_encdec.compile_cache("./compiled")  # by one run for the next

"""
## One start, two runs

The first line of a docstring is to be written from what stands under it. One run sees NumPy's
docstrings, the other one Keras'; losses are taken on files of both that neither has seen.
"""


def drawn(docs, first, count):
    """Bodies and first lines of some docstrings."""
    pairs = [doc.summary_and_body for doc in docs if doc.summary_and_body]
    pairs = pairs[first : first + count]
    return [body[:CHARACTERS] for _, body in pairs], [line for line, _ in pairs]


data, held_out, others = {}, {}, ([], [])
for package in ("numpy", "keras"):
    docs, held_out_docs = docstrings.load([package])
    data[package] = drawn(docs, 0, ROWS)
    held_out[package] = drawn(held_out_docs, 0, HELD_OUT)
    for all_rows, rows in zip(others, drawn(docs, ROWS, ROWS), strict=True):
        all_rows.extend(rows)

"""
What all runs begin from is saved first: it is the point that learning is measured from, and the
record in each preset tells later that it is the same for both. The small pair was just converted,
and learns first from other docstrings of both packages, so that it is one to begin from.
"""


def prepared(lm):
    """A pair that is ready to learn."""
    lm.preprocessor.encoder_sequence_length = READ
    lm.preprocessor.decoder_sequence_length = WRITE
    if not SMALL:
        lm.backbone.enable_lora(16)
    lm.compile(keras.optimizers.AdamW(RATE, global_clipnorm=1.0))
    return lm


lm = keras_encdec.from_preset(START, dtype=DTYPE)
if SMALL:
    prepared(lm).fit(*others, batch_size=8, epochs=EPOCHS, verbose=2)
lm.save_to_preset("./start")

"""
`WeightAverage` keeps a mean that begins at the weights and follows each step by a share of
`1 - decay`. It is what `fit` gives in the end, and what `validation_data` is evaluated on. With a
`training.Checkpoint` beside it a killed run goes on exactly. LoRA is merged into the weights
when a preset is saved, so what follows does not see it.
"""

for package in data:
    lm = prepared(keras_encdec.from_preset("./start"))
    lm.fit(
        *data[package],
        batch_size=8,
        epochs=EPOCHS,
        callbacks=[training.WeightAverage(decay=DECAY)],
        verbose=2,
    )
    lm.save_to_preset(f"./{package}")

"""
## Merge

`merge` reads presets from disk and writes another one. It never holds more than the result
in memory, once, when it is checked at the end. What must agree does: spec, tokenizer, task,
dtype, and where the records tell of it, the ancestor. What does not is refused by name.
"""

runs = ["./numpy", "./keras"]
keras_encdec.merge(runs, "./average")
keras_encdec.merge(runs, "./slerp", "slerp", base="./start")
keras_encdec.merge(runs, "./ties", "ties", base="./start")

"""
`"average"` is the mean of both. `"slerp"` takes for each tensor what either run has added to the
start, and goes along the arc between these two: where they point apart, a straight mean would
be shorter than both. `"ties"` keeps the fifth of the changes that are largest, lets the runs
vote on the sign of each number, and averages those that agree; it is meant for many models.
`weights=[3, 1]` gives one run more to say.

Step 3 is one number. With `strength=0.5` the result stands half way between the start and the
merged model; WARP takes 0.3 and calls it eta.
"""

for strength in (0.3, 0.6):
    keras_encdec.merge(
        runs, f"./slerp_{strength}", "slerp", base="./start", strength=strength
    )

"""
## What it gives

One model takes the weights of each preset in turn.
"""

judge = keras_encdec.from_preset("./start")
judge.compile()


def losses(folder):
    """Of held-out targets, in nats a token: NumPy's, Keras', and the mean of both."""
    judge.backbone.load_weights(next(pathlib.Path(folder).glob("model.weights.*")))
    found = [
        judge.evaluate(*held_out[package], batch_size=8, verbose=0)[0]
        for package in data
    ]
    return [*found, sum(found) / len(found)]


print(f"{'':12}{'numpy':>8}{'keras':>8}{'mean':>8}")
partly = ("slerp_0.3", "slerp_0.6")
for name in ("start", "numpy", "keras", "average", *partly, "slerp", "ties"):
    print(f"{name:12}" + "".join(f"{loss:8.3f}" for loss in losses(f"./{name}")))

"""
In the small run, the average and the arc are about as good as each run on its own package, and
better than it on the other one. Part of the way is nearer to the start in everything, which pays
where a run has forgotten what the start knew: here there was hardly anything to forget. Two runs of ten steps on forty rows are no measure
of a method. Most of what merging gains in them is what any average gains over models that have
learned their few rows by heart, and a run on both data together is the fair thing to compare
with. What WARP reports is of rewards against distance from the start, over rounds; to go on in
its way, begin the next two runs from `./slerp_0.3`.

A preset says what it was made of, and its card tells the same to people:
"""

entry = keras_encdec.from_preset("./slerp_0.6").provenance["history"][-1]
names = [model["name"] for model in entry["models"]]
print(f"{entry['what']} by {entry['method']} of {names}, strength {entry['strength']}")

"""
The same from a command line:
"""

"""shell
keras-encdec merge ./numpy ./keras --method slerp --base ./start --strength 0.3 --output ./next
"""
