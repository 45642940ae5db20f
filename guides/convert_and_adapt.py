"""
Title: From Gemma 2 to an encoder-decoder
Author: keras_encdec
Date created: 2026/11/25
Last modified: 2026/11/25
Description: Convert Gemma 2 2B, adapt it with PrefixLM, watch its loss, generate and save.
Accelerator: GPU
"""

"""
## Introduction

A decoder-only language model reads and writes with the same weights, from left to
right. An encoder-decoder reads with an encoder, whose attention sees the whole input at
once, and writes with a decoder that looks at what the encoder made of it.
[Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225) shows how to make the second
out of the first instead of training it from nothing:

- the encoder is the decoder-only model, its attention made bidirectional;
- the decoder is the decoder-only model with a cross-attention added to each block;
- both are then adapted: trained on plain text, of which one half is read and the other
  is written.

This guide does so with Gemma 2 2B. The result has 5.6 billion parameters and is called
2B-2B: 2B that read, 2B that write.

### Sizes

The guide is written for one GPU of 40 GB, such as Colab's A100. With the environment
variable `KERAS_ENCDEC_SMALL=1` the same code runs on any CPU in about a minute, without
network: Gemma 2 2B becomes a model of 1.5 million parameters that ships with the
package and was trained on docstrings, texts are cut after 64 tokens instead of 512, and
training takes 40 steps instead of 2,000. Such a run shows how things are done and where
a loss goes; what it writes has the form of a docstring and little sense.
"""

"""
## Setup
"""

"""shell
pip install -q "keras-encdec[cuda,guides]"
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
# JAX takes 75% of a GPU's memory unless it is told to take more.
os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "1.00"

import gc

import keras
import keras_encdec
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from keras_encdec import training
from keras_encdec.data import docstrings
from keras_encdec.sharing import catalog

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    SOURCE, PAIR = catalog.embedded("gemma2_mini_docs"), "gemma2_mini_docs"
    HALF, BATCH_SIZE, LEARNING_RATE = 64, 8, 3e-3
    EPOCHS, STEPS_PER_EPOCH, HELD_OUT = 4, 10, 16
    PACKAGES = ["keras"]
else:
    SOURCE, PAIR = "gemma2_2b_en", "gemma2_2b_2b"
    HALF, BATCH_SIZE, LEARNING_RATE = 512, 8, 1e-4
    EPOCHS, STEPS_PER_EPOCH, HELD_OUT = 10, 200, 128
    PACKAGES = docstrings.PACKAGES

keras.utils.set_random_seed(0)

"""
The weights of Gemma 2 come from Kaggle. Accept their licence on
[the model's page](https://www.kaggle.com/models/google/gemma-2) once, and set
`KAGGLE_USERNAME` and `KAGGLE_KEY`; in Colab they can be secrets of the notebook.
"""

"""
## Convert

What a conversion does with each weight can be printed before anything is downloaded:
"""

"""shell
keras-encdec plan gemma2_2b_2b
"""

"""
Every weight of the encoder has a source, and so has every weight of the decoder. As both
sides are alike, the cross-attention starts as a copy of each block's self-attention
(section 3.2 of the paper). The query then looks at the encoder's states instead of the
decoder's own.

`mixed_bfloat16` computes in bfloat16 and keeps weights in float32. In plain bfloat16
Adam's `beta_2` of 0.999 would round to 1 and no weight would move; `fit` says so and
does not begin.
"""

lm = keras_encdec.from_preset(PAIR, dtype="mixed_bfloat16")
lm.preprocessor.encoder_sequence_length = HALF
lm.preprocessor.decoder_sequence_length = HALF
print(f"{lm.backbone.count_params():,} parameters")

"""
## Text, and what is learnt from it

Any text will do. This guide takes text that every machine has: the docstrings of the
packages that are installed, about 20 million characters of them. One file in 32 is held
out. Your own text is as easy: a list of strings, a Hugging Face dataset, or
`keras_encdec.data.read("corpus/*.jsonl")`.
"""

train, held_out = docstrings.load(PACKAGES)
texts = [doc.text for doc in train]
print(f"{len(texts):,} texts to train on, {len(held_out):,} held out")

"""
The objective is PrefixLM: a text is cut into windows, and a window into halves. The
encoder reads the first half and the decoder writes the second. Only what is written
counts in the loss. `show` prints an example of it, here of the first 400 characters of a
text.
"""

lm.preprocessor.objective.show(texts[4][:400], lm.preprocessor.tokenizer)

"""
The held-out windows below are all of full length, so that another model can be asked
about the same tokens. A batch is what Keras expects: inputs, labels, and the weight of
each label.
"""

x, y, weight = lm.preprocessor([doc.text for doc in held_out])
full = np.flatnonzero(weight.sum(axis=1) == HALF)[:HELD_OUT]
x, y, weight = keras.tree.map_structure(lambda array: array[full], (x, y, weight))
for name, array in {**x, "labels": y, "weight": weight}.items():
    print(f"{name:22} {array.shape} {array.dtype}")

"""
## What the loss should do

A fresh pair is worse than the model that it was made of: it has a cross-attention that
was never trained, and an encoder that never saw what comes after a token. Two numbers
tell how far it has come. Both are losses of the source model on the very tokens that
the pair has to write:

- *without input*: the source reads the second half only. A pair that ignores its encoder
  stands here;
- *with input*: the source reads the first half before it. A pair that uses its encoder
  moves towards this line.

All losses here are in nats per token.
"""


def source_loss(source, with_input):
    """The loss of the decoder-only model on the labels of the pair."""
    start = x["decoder_token_ids"][:, :1]
    read = x["encoder_token_ids"] if with_input else x["encoder_token_ids"][:, :0]
    token_ids = np.concatenate([start, read, y], axis=1)
    counts = np.concatenate([np.zeros(read.shape, "float32"), weight], axis=1)
    inputs = {
        "token_ids": token_ids[:, :-1],
        "padding_mask": np.ones_like(token_ids[:, :-1]),
    }
    found = source.evaluate(
        inputs,
        token_ids[:, 1:],
        sample_weight=counts,
        batch_size=1,
        return_dict=True,
        verbose=0,
    )
    return found["loss"]


source = keras_hub.models.CausalLM.from_preset(
    SOURCE, dtype="bfloat16", preprocessor=None
)
source.compile(
    loss=keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    ),
    weighted_metrics=None,
)
without_input = source_loss(source, with_input=False)
with_input = source_loss(source, with_input=True)
del source
gc.collect()
print(f"source without input {without_input:.3f}, with input {with_input:.3f}")

"""
## Before

`generate` is what it is in KerasHub. The pair reads the first words of a held-out text
and goes on from there; it was not adapted yet, and it shows.
"""

prompts = [doc.text[:100] for doc in held_out[:2]]
lm.compile(sampler="greedy")
before = lm.generate(prompts, max_length=48)
for prompt, text in zip(prompts, before, strict=True):
    print(f"{prompt!r}\n  -> {text!r}\n")

"""
## Adapt

The paper trains all weights. With Adam that takes 16 bytes a parameter before anything
else. `training.estimate` says what a step needs, without allocating it, and looks for
runs that would fit where this one does not:
"""

pair = keras_encdec.presets["gemma2_2b_2b"]
sizes = {"batch_size": 8, "source_length": 512, "target_length": 512}
sizes |= {"dtype": "mixed_bfloat16", "remat": True}
print(training.estimate(pair, fits=40e9, **sizes))

"""
These are 94 GB, more than one GPU has. With LoRA the pretrained weights stay
as they are and small factors are trained beside them, while the cross-attention, which
is new, trains whole. That makes 32 GB. `remat` computes each block a second time in the
backward pass rather than keep what it computed.
"""

lm.backbone.enable_lora(8)
print(training.estimate(pair, fits=40e9, lora_rank=8, **sizes))

"""
The optimizer is AdamW with clipped gradients, and its learning rate rises for some steps
before it falls. The rates are ours: neither Gemma 2 nor the paper tells theirs.

`fit` takes strings. An epoch here is a number of steps rather than a pass over all
texts, to look at the held-out loss along the way.
"""

steps = EPOCHS * STEPS_PER_EPOCH
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, steps, warmup_target=LEARNING_RATE, warmup_steps=steps // 10
)
lm.compile(
    keras.optimizers.AdamW(schedule, global_clipnorm=1.0), sampler="greedy", remat=True
)
held = (x, y, weight)
start = lm.evaluate(*held[:2], sample_weight=weight, return_dict=True, verbose=0)
history = lm.fit(
    texts,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    steps_per_epoch=STEPS_PER_EPOCH,
    validation_data=held,
    verbose=2,
)

"""
The first line to cross is the dashed one. Until there the pair learns to be a language
model again; from there on it learns to read.
"""

losses = [start["loss"], *history.history["val_loss"]]
at = [epoch * STEPS_PER_EPOCH for epoch in range(EPOCHS + 1)]
plt.figure(figsize=(6, 4), layout="constrained")
plt.plot(at, losses, marker="o", label="the pair")
plt.axhline(without_input, ls="--", c="gray", label="source, without input")
plt.axhline(with_input, ls=":", c="black", label="source, with input")
plt.xlabel("steps")
plt.ylabel("held-out loss (nats per token)")
plt.legend()
plt.savefig("adaptation.png")
print(
    "held-out loss at steps", dict(zip(at, np.round(losses, 3).tolist(), strict=True))
)

"""
In a longer run of the small pair that trains all weights (`keras-encdec demo`: 180 steps
of 16 windows, 6 minutes on two cores), the pair starts at 4.89, is back at the dashed
line of 2.93 after 30 steps and ends at 2.71; with input the source stands at 2.40. The
paper adapts with up to 2 trillion tokens; in its figure 2 a balanced pair has the quality
of its source after some tens of billions.
"""

"""
## After
"""

after = lm.generate(prompts, max_length=48)
for prompt, text in zip(prompts, after, strict=True):
    print(f"{prompt!r}\n  -> {text!r}\n")

"""
## The encoder alone

What the encoder made of a text can be taken out: a vector for each token, for
embeddings, retrieval or a classifier.
"""

inputs = lm.preprocessor.generate_preprocess(prompts)
states = lm.backbone.encoder(
    inputs["encoder_token_ids"], inputs["encoder_padding_mask"]
)
print(states.shape, states.dtype)

"""
## Save, and load back

A preset holds weights, configuration, tokenizer and objective. LoRA is merged into the
weights in it, so it loads as a pair of the usual kind.
"""

lm.save_to_preset("./adapted")
del lm
gc.collect()

lm = keras_encdec.from_preset("./adapted")
lm.compile(sampler="greedy")
print(lm.generate(prompts, max_length=48) == after)
print(sorted(os.listdir("./adapted")))

"""
`keras_hub.models.Seq2SeqLM.from_preset("./adapted")` loads it as well, wherever
`keras_encdec` was imported. To keep only what was trained,
`lm.backbone.save_lora_weights("adapted.lora.h5")` writes the factors and the
cross-attention.

What to do next: [teach it a task](fine_tune_on_pairs.py), try
[other objectives](ul2_and_distillation.py), or [share it](share_a_model.py).
"""
