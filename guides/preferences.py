"""
Title: Instructions, preferences and rewards
Author: keras_encdec
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Conversations, answers that people preferred by DPO and KTO, and a reward model.
Accelerator: GPU
"""

"""
## Introduction

A pair that was adapted can write; what it should write it learns from examples. First from
conversations: each answer of an assistant is a target, and what was said before it is what
the encoder reads. Then from comparisons, of which there are more than of perfect answers:
here are two answers to one input, and this one is better.

An encoder-decoder has an advantage there that is easily missed. A decoder-only model reads
the prompt once for the better answer and once for the worse one. Here the encoder reads it
once, and both answers look at the same states.

The guide is written for one GPU of 16 GB and T5Gemma 2B-2B. With `KERAS_ENCDEC_SMALL=1` the
same code runs on any CPU in about a minute, without network: a small pair of docstrings that
ships with the package takes its place. It has never been adapted, and what it learns in so
few steps is no measure of the method.
"""

"""
## Setup
"""

"""shell
pip install -q "keras-encdec[cuda,guides]"
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras_encdec
from keras_encdec import training
from keras_encdec.data import docstrings
from keras_encdec.models import EncDecRewardModel

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    START, RATE, PREFERENCE_RATE = "gemma2_mini_docs", 1e-3, 1e-4
    ROWS, HELD_OUT, READ, WRITE, CHARACTERS, EPOCHS = 48, 16, 64, 32, 100, 3
else:
    START, RATE = "hf://google/t5gemma-2b-2b-prefixlm", 1e-4
    PREFERENCE_RATE = 1e-5
    ROWS, HELD_OUT, READ, WRITE, CHARACTERS, EPOCHS = 4000, 200, 512, 64, 2000, 1

keras.utils.set_random_seed(0)

"""
## Conversations

`fit` takes conversations as most datasets have them: a column `messages`, each a list of
roles and contents; or `prompt` and `completion`. Every answer becomes an example, and one
that follows more than the encoder has room for loses its oldest turns, which is counted and
told. `keras_encdec.data.read("talks.jsonl", field="messages")` reads files.

These ask for the first line of a docstring, given the rest.
"""


def drawn(docs, count):
    """Bodies and first lines."""
    pairs = [doc.summary_and_body for doc in docs if doc.summary_and_body][:count]
    return [body[:CHARACTERS] for _, body in pairs], [line for line, _ in pairs]


to_train_on, others = docstrings.load(["numpy", "keras"])
bodies, lines = drawn(to_train_on, ROWS)
held_out_bodies, held_out_lines = drawn(others, HELD_OUT)


def talks(bodies, lines):
    """Conversations of one question and one answer."""
    return [
        [{"role": "user", "content": body}, {"role": "assistant", "content": line}]
        for body, line in zip(bodies, lines, strict=True)
    ]


lm = keras_encdec.from_preset(START, dtype=None if SMALL else "bfloat16")
if not SMALL:
    lm.backbone.enable_lora(16)
lm.preprocessor.encoder_sequence_length = READ
lm.preprocessor.decoder_sequence_length = WRITE


def optimizer(rate):
    """Adafactor moves weights in bfloat16, which Adam's usual settings would not."""
    if SMALL:
        return keras.optimizers.AdamW(rate, global_clipnorm=1.0)
    return keras.optimizers.Adafactor(rate)


lm.compile(optimizer(RATE))
lm.fit({"messages": talks(bodies, lines)}, batch_size=8, epochs=EPOCHS, verbose=2)

lm.save_to_preset("./instructed")
question = [{"role": "user", "content": held_out_bodies[0]}]
print(lm.chat(question, max_length=WRITE))

"""
## Preferences

A row has a `prompt`, an answer that was `chosen` and one that was `rejected`: texts, or
messages. Here the chosen line is a docstring's own, and the rejected one is that of another.

`DPO` compares the model with a reference: itself, when training begins. What the reference
says of each answer is computed once, before the first step, so no second model lies in
memory; with `path=` it is kept on disk, and a run that was killed does not compute it again.
At the first step the loss is log 2, as model and reference are one. The rate is a tenth of
that before: what can be made less likely has no end.
"""


def compared(bodies, lines):
    """Each body with its own line, and with that of the row behind."""
    return {"prompt": bodies, "chosen": lines, "rejected": [*lines[1:], lines[0]]}


data = compared(bodies, lines)
held_out = compared(held_out_bodies, held_out_lines)

lm.preprocessor.chat = True  # prompts are turns of a user, as in the conversations
lm.compile(optimizer(PREFERENCE_RATE), loss=training.DPO(beta=0.1))
lm.fit(data, validation_data=held_out, batch_size=8, epochs=EPOCHS, verbose=2)

"""
`accuracy` is the share of rows whose chosen answer gained more than the rejected one against
the reference, `margin` by how much, and `chosen_reward` says whether the chosen answer itself
became likelier: with DPO it often does not, as it is enough that the other falls faster.

`IPO` bounds that race, `SimPO` and `ORPO` need no reference. Where answers have no partner
but are each wanted or not, `KTO` learns from labels. It begins where DPO began:
"""

lm = keras_encdec.from_preset("./instructed")
lm.preprocessor.chat = True
if not SMALL:
    lm.backbone.enable_lora(16)

judged = {
    "prompt": bodies + bodies,
    "completion": lines + data["rejected"],
    "label": [True] * len(lines) + [False] * len(lines),
}
lm.compile(optimizer(PREFERENCE_RATE), loss=training.KTO(beta=0.1))
lm.fit(judged, batch_size=8, epochs=EPOCHS, verbose=2)

"""
## A reward model

The same comparisons teach a model to judge: the pair with a head on the decoder's last
token, which says how good an answer to an input is. A column `margin` says by how much the
better answer is better, where that is known.
"""

reward_model = EncDecRewardModel.from_preset("./instructed")
if not SMALL:
    reward_model.backbone.enable_lora(16)
reward_model.compile(optimizer(RATE))
reward_model.fit(data, validation_data=held_out, batch_size=8, epochs=EPOCHS, verbose=2)

answers = [held_out_lines[0], held_out_lines[1]]
rewards = reward_model.score([held_out_bodies[0]] * 2, answers)
for answer, reward in zip(answers, rewards, strict=True):
    print(f"{reward:+.2f}  {answer!r}")

"""
It is saved and loaded like any task:
"""

reward_model.save_to_preset("./reward_model")
again = EncDecRewardModel.from_preset("./reward_model")
print(
    "the same after loading:",
    (again.score([held_out_bodies[0]] * 2, answers) == rewards).all(),
)
