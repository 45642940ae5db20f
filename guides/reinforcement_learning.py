"""
Title: Reinforcement learning with a reward that can be checked
Author: keras_encdec
Date created: 2026/11/27
Last modified: 2026/11/27
Description: RLOO and GRPO on answers that the model draws itself, and what holds it near its start.
Accelerator: GPU
"""

"""
## Introduction

Where an answer can be checked, nobody has to write the right one: the model draws several,
a function says what each is worth, and the better ones become likelier. That is RLOO and
GRPO. It works where the model is already right now and then; before that, teach it from
examples (`instruction_tuning`, `preferences`).

An encoder-decoder is made for it. A prompt is read once, and all answers to it, in drawing
and in training, look at the same states.

The guide is written for one GPU of 16 GB and T5Gemma 2B-2B. With `KERAS_ENCDEC_SMALL=1` the
same code runs on any CPU in about a minute, without network: a small pair of docstrings that
ships with the package takes its place, for so few steps that they show how it is done, and
not how far it goes.
"""

"""
## Setup
"""

"""shell
pip install -q "keras-encdec[cuda,guides]"
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import json
from collections import Counter

import keras
import keras_encdec
from keras_encdec import training
from keras_encdec.data import docstrings

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    START, RATE, READ, WRITE = "gemma2_tiny_tiny", 3e-4, 32, 4
    PROMPTS, HELD_OUT, SAMPLES, BATCH, STEPS = 200, 8, 4, 4, 6
else:
    START, RATE, READ, WRITE = "hf://google/t5gemma-2b-2b-prefixlm-it", 1e-5, 128, 64
    PROMPTS, HELD_OUT, SAMPLES, BATCH, STEPS = 2000, 64, 8, 8, 150

keras.utils.set_random_seed(0)

"""
## Prompts, and a reward

The task is one that any reader can check: an answer has to begin with the word that the
prompt begins with. Prompts are first lines of docstrings, of those that begin with one of the
six commonest words.

A reward is a function of three lists of the same length: prompts, the texts that were drawn,
and the other columns of the data, by name. It returns a number for each text. Several rewards
run side by side in threads; a model, such as `EncDecRewardModel`, may be one of them.
"""

docs, others = docstrings.load(["numpy", "scipy"])
lines = [doc.summary_and_body[0] for doc in docs if doc.summary_and_body]
common = {word for word, _ in Counter(line.split()[0] for line in lines).most_common(6)}


def beginning_so(docs, count):
    """First lines that begin with one of the common words."""
    lines = [doc.summary_and_body[0] for doc in docs if doc.summary_and_body]
    return [line for line in lines if line.split()[0] in common][:count]


prompts, held_out = beginning_so(docs, PROMPTS), beginning_so(others, HELD_OUT)


def begins_alike(prompts, texts, records):
    """1 where the first word is that of the prompt."""
    pairs = zip(prompts, texts, strict=True)
    return [float(text.split()[:1] == prompt.split()[:1]) for prompt, text in pairs]


"""
## RLOO

An answer's advantage is its reward less the mean reward of the other answers to the same
prompt. `kl` is what a nat of divergence from the start costs, inside of the reward, where
its gradient is exact. `path` keeps all that is drawn, with its rewards: read it, as a reward
that can be tricked will be.

`evaluate` draws answers to prompts, and reports rewards, without training.
"""

lm = keras_encdec.from_preset(START, dtype=None if SMALL else "bfloat16")
if not SMALL:
    lm.backbone.enable_lora(16)
lm.preprocessor.encoder_sequence_length = READ


def optimizer():
    if SMALL:
        return keras.optimizers.Adam(RATE, global_clipnorm=1.0)
    return keras.optimizers.Adafactor(RATE)


loss = training.RLOO(
    begins_alike, num_samples=SAMPLES, kl=0.1, max_length=WRITE, path="rollouts.jsonl"
)
lm.compile(optimizer(), loss=loss)
print(lm.evaluate({"prompt": held_out}, return_dict=True))

"""
A step draws `num_samples` answers to each of `batch_size` prompts by the weights as they are,
has them rewarded, and takes a step of the optimizer. With a `Checkpoint`, a run that was
killed goes on bit for bit, its file too.
"""

history = lm.fit(
    {"prompt": prompts},
    validation_data={"prompt": held_out},
    batch_size=BATCH,
    steps_per_epoch=STEPS,
    epochs=2,
    verbose=2,
)

"""
What the logs say:

- `reward`: the mean; with several rewards, each by its name, too.
- `kl`: how far the model is from its start, in nats of a whole answer. A reward that rises
  while this runs away is one that is tricked.
- `entropy`: nats a token of what was drawn. Where it falls to 0, nothing is tried any more.
- `zero_std`: prompts whose answers all got the same, which teach nothing. Near 1 at the
  beginning: the task is too hard, or `num_samples` too small.
- `truncated`: answers without an end token.
"""

with open("rollouts.jsonl") as file:
    drawn = [json.loads(line) for line in file]
for row in drawn[-SAMPLES:]:
    print(f"{row['reward']:.0f}  {row['prompt'][:30]!r} -> {row['text']!r}")

"""
## GRPO

`GRPO` divides advantages by their spread and clips how far one round may move a token, which
allows several steps on the same answers: `updates=2`. It has no reference unless it is given
one. `scale=None, normalize="length"` is Dr. GRPO, `epsilon_high=0.28` as in DAPO.
"""

lm.compile(
    optimizer(), loss=training.GRPO(begins_alike, num_samples=SAMPLES, max_length=WRITE)
)
lm.fit({"prompt": prompts}, batch_size=BATCH, steps_per_epoch=STEPS, verbose=2)

"""
## What the reward needs to know

Other columns of the data come to the reward by name, repeated for each answer, so that it can
compare with what is right:
"""


def is_right(prompts, texts, records):
    pairs = zip(texts, records["answer"], strict=True)
    return [float(answer in text) for text, answer in pairs]


asked = {"prompt": ["What is 2 + 3?", "What is 4 + 4?"], "answer": ["5", "8"]}
lm.compile(
    optimizer(), loss=training.RLOO(is_right, num_samples=SAMPLES, max_length=WRITE)
)
print(lm.evaluate(asked, return_dict=True))

lm.save_to_preset("./rewarded")
print("saved:", sorted(os.listdir("./rewarded"))[:3], "...")
