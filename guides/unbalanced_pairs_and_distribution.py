"""
Title: Unbalanced pairs on several devices
Author: keras_encdec
Date created: 2026/11/25
Last modified: 2026/11/25
Description: A 9B encoder with a 2B decoder: plan, memory, mesh, warm-up, checkpoints, resume.
Accelerator: GPU
"""

"""
## Introduction

What is read and what is written need not be equally hard. Summarising a long document
takes a strong reader and few words. An encoder-decoder can have a large encoder and a
small decoder, which no decoder-only model can:
[Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225) pairs Gemma 2 9B with Gemma 2
2B. Each token is written at about the cost of a 2B model, and the quality lies between
2B-2B and 9B-9B (tables 2 and 3 there).

Such a pair has 12.3 billion parameters, so this guide also shows how training is cut
over several devices, how much each of them has to hold, and how a run goes on after it
was killed.

It is written for eight devices of 40 GB: GPUs of one machine, or a small TPU slice. With
`KERAS_ENCDEC_SMALL=1` the same code runs on a CPU in about a minute, without network:
the pair has 7.8 million parameters, JAX shows the CPU as two devices, texts are cut after
32 tokens instead of 1,024, and training takes 24 steps instead of 5,000.
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

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"
if SMALL:  # two devices out of one CPU
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=2"

import keras
import keras_encdec
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from keras_encdec import data, training
from keras_encdec.data import docstrings
from keras_encdec.sharing import catalog

if SMALL:
    PAIR, TOKENIZER = "gemma2_tiny_mini", catalog.embedded("gemma2_mini_docs")
    HALF, BATCH_SIZE, PACKAGES = 32, 8, ["keras"]
    EPOCHS, STEPS_PER_EPOCH, WARMUP, EVERY = 4, 6, 8, 2
    LEARNING_RATE = 1e-3
else:
    PAIR, TOKENIZER = "gemma2_9b_2b", "gemma2_2b_en"
    HALF, BATCH_SIZE, PACKAGES = 1024, 32, docstrings.PACKAGES
    EPOCHS, STEPS_PER_EPOCH, WARMUP, EVERY = 25, 200, 1000, 100
    LEARNING_RATE = 1e-4

"""
## Plan

The conversion of any pair can be looked at first. Only configurations are read.
"""

"""shell
keras-encdec plan gemma2_9b_2b
"""

"""
One group of weights is fresh: the cross-attention. The decoder's self-attention cannot
be copied into it, as its keys and values are made of the encoder's states, which are
wider. In a balanced pair it could (section 3.2 of the paper).

With a smaller decoder yet, every other layer of the 2B model, it would be
`keras-encdec plan gemma2_9b_en gemma2_2b_en --decoder-layers 0:26:2`.
"""

"""
## What each device has to hold

A mesh has two axes. Along `batch`, devices see different rows, and each keeps a share of
every weight, its gradient and the optimizer's slots; what a block needs is gathered when
its turn comes. Along `model`, devices see the same rows and each computes a part of
every layer. `estimate` needs no device to tell what a step takes on each of them:
"""

sizes = {"batch_size": 32, "source_length": 1024, "target_length": 1024}
sizes |= {"dtype": "mixed_bfloat16", "remat": True}
for shape in [(8, 1), (1, 8)]:
    pair = keras_encdec.presets["gemma2_9b_2b"]
    print(shape, training.estimate(pair, mesh=shape, fits=40e9, **sizes))

"""
(8, 1) is the mesh to begin with. A model axis cuts activations, too, for rows so long
that one of them does not fit; it cannot cut what it does not divide, such as 4
key/value heads. Where a run does not fit, the nearest that do are listed. Parameters,
gradients and optimizer are exact; the rest is by formula (LOG.md compares it with XLA).

What the optimizer keeps is cut like its weights for AdamW, Lion and SGD. Keras' Adafactor
keeps a full second moment beside its rows and columns, and these two whole on each
device. Muon orthogonalises feed-forward kernels only, as attention kernels have three
dimensions. In plain `bfloat16` Adam's `beta_2` rounds to 1 and nothing would move, which
`fit` refuses; `mixed_bfloat16` keeps weights in float32.

Four more things decide how much memory a step takes:

- `lm.compile(remat=True)` computes each block again in the backward pass instead of
  keeping what it computed.
- `lm.compile(gradient_accumulation_steps=4)` goes through a batch in four parts. The step
  is the same.
- Attention over texts longer than 512 tokens takes memory that grows with their length
  and not with its square. On JAX, Tokamax does that (the extra `jax`).
- The loss never holds logits: some tokens at a time go through projection, soft cap,
  cross-entropy and gradient. `training.FusedCrossEntropy(z_loss=1e-4,
  label_smoothing=0.1)` is the same with two terms more; any other loss of Keras gets
  logits.
"""

"""
## A mesh

Everything that is made after `set_distribution` lies on the mesh. Weights go to their
devices in shards, one tensor at a time: no device ever holds a whole model.
"""

spec = keras_encdec.presets[PAIR].spec
devices = keras.distribution.list_devices()
mesh = keras.distribution.DeviceMesh((len(devices), 1), ("batch", "model"), devices)
layout_map = keras_encdec.models.EncDecBackbone.get_layout_map(mesh, spec)
distribution = keras.distribution.ModelParallel(layout_map=layout_map)
keras.distribution.set_distribution(distribution)
print(devices)

"""
## Tokens, once

Text is tokenised once and kept in a folder, for all epochs and all runs. The folder is
checksummed, and after a kill the same call goes on behind the last whole shard. Batches
of it can be found by their number, which is what lets a run go on in the middle of an
epoch.
"""

train_docs, held_out_docs = docstrings.load(PACKAGES)
held_out = [doc.text for doc in held_out_docs[: 8 if SMALL else 32]]
tokenizer = keras_hub.models.Tokenizer.from_preset(TOKENIZER)
tokens = data.tokenize([doc.text for doc in train_docs], tokenizer, "./tokens")
print(f"{len(tokens):,} tokens of {len(train_docs):,} texts")

"""
## One program

A job on a cluster is started again by the same command, so everything that makes a run
is one function here.

- `CrossAttentionWarmup` trains the cross-attention alone for K steps, so that random
  weights do not disturb what the two models know. The paper takes 1,000. In its ablation
  of 9B-2B the mean of BoolQ and GSM8K is 61.8 without warm-up, 62.5 with 1,000 steps and
  60.2 with 5,000. A warm-up step takes about a third of the time of another; for the
  small pair of this guide it gains nothing else (LOG.md).
- `Checkpoint` writes weights, optimizer, seeds and the place in the data every so many
  steps, in the background, each device its own share.
- `CSVLogger` appends to its file, so that the curve survives, too.

A loss that is NaN or Inf stops the run, and the message names the batch and the last
good checkpoint.
"""


def train(*more):
    """The run, from its beginning or from its last checkpoint."""
    keras.utils.set_random_seed(0)
    lm = keras_encdec.from_preset(PAIR, dtype="mixed_bfloat16")
    lm.preprocessor.encoder_sequence_length = HALF
    lm.preprocessor.decoder_sequence_length = HALF
    lm.compile(keras.optimizers.AdamW(LEARNING_RATE, global_clipnorm=1.0), remat=True)
    checkpoint = training.Checkpoint("./run", every=EVERY, best="val_loss")
    lm.fit(
        data.Tokens.load("./tokens"),
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        steps_per_epoch=STEPS_PER_EPOCH,
        validation_data=held_out,
        callbacks=[
            training.CrossAttentionWarmup(WARMUP),
            checkpoint,
            keras.callbacks.CSVLogger("losses.csv", append=True),
            *more,
        ],
        verbose=2,
    )
    return lm, checkpoint


"""
## Killed, and resumed

Machines are taken away. This callback stands for that: it ends the run in the middle of
an epoch.
"""


class Kill(keras.callbacks.Callback):
    """Ends the run after some batches."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


try:
    train(Kill(after=STEPS_PER_EPOCH + EVERY + 1))
except KeyboardInterrupt:
    print("killed")

"""
The same call goes on: with the same weights, in the same phase of the warm-up, with the
next batch. It ends with weights that are, bit for bit, those of a run that nobody
killed.
"""

lm, checkpoint = train()
print("checkpoints of steps", checkpoint.saved_steps())

log = np.genfromtxt("losses.csv", delimiter=",", names=True)
plt.figure(figsize=(6, 4), layout="constrained")
plt.plot((log["epoch"] + 1) * STEPS_PER_EPOCH, log["val_loss"], marker="o")
plt.axvline(WARMUP, ls="--", c="gray", label="end of the warm-up")
plt.xlabel("steps")
plt.ylabel("held-out loss (nats per token)")
plt.legend()
plt.savefig("unbalanced.png")
print("held-out losses", log["val_loss"].round(3).tolist())

"""
The best state is kept beside the latest. It can be put into the model, and saved as a
preset. Presets know nothing of meshes: they load on any number of devices.
"""

checkpoint.restore(lm, "best")
checkpoint.close()
lm.save_to_preset("./unbalanced")
weight = lm.backbone.encoder.blocks[0].feedforward.gate.kernel
shard = weight.value.sharding.shard_shape(tuple(weight.shape))
print(f"{weight.path}: {tuple(weight.shape)}, of which each device has {shard}")

"""
## Several hosts

On several machines the same program runs once on each, with three changes. Before
anything else, JAX is told of the others:

```python
keras.distribution.initialize()
```

On TPU slices that finds out everything by itself; elsewhere it takes the address of the
first process, how many processes there are and which one this is. The distribution is
told that data are divided already:

```python
keras.distribution.ModelParallel(layout_map=layout_map, auto_shard_dataset=False)
```

And `./run` and `./tokens` are folders that all hosts see; for checkpoints it may be a URL
such as `gs://bucket/run`. Each process then reads its own share of the rows of each
batch.

If all that is wanted is more rows at a time, `keras.distribution.DataParallel()` needs
no layout map; each device then holds the whole model.
"""
