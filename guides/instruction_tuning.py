"""
Title: Instruction tuning on conversations
Author: keras_encdec
Date created: 2026/11/27
Last modified: 2026/11/27
Description: A pair that answers: conversations from a file, fit, validation, chat, chat templates.
Accelerator: GPU
"""

"""
## Introduction

An adapted pair goes on with a text. An instruction-tuned one answers: it has learnt from
conversations that a question is followed by an answer, and that the answer then ends.

In an encoder-decoder the two have a place each. All that was said before an answer is what
the encoder reads, in both directions; the answer is what the decoder writes. So every answer
of a conversation is an example of its own, and no token of a question is ever a target.

The guide is written for one GPU of 16 GB and T5Gemma 2B-2B. With `KERAS_ENCDEC_SMALL=1` the
same code runs on any CPU in about a minute, without network: a small pair of docstrings that
ships with the package takes its place. It has never been adapted and sees a few dozen
conversations twice, so that its first lines are mostly ones that it was shown; what can be
seen there is what the model reads, that the losses fall, and that answers end.
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

import keras
import keras_encdec
from keras_encdec import data
from keras_encdec.data import docstrings

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    START, RATE = "gemma2_mini_docs", 1e-3
    TALKS, HELD_OUT, READ, WRITE, CHARACTERS, EPOCHS = 48, 16, 128, 32, 100, 2
else:
    START, RATE = "hf://google/t5gemma-2b-2b-prefixlm", 1e-4
    TALKS, HELD_OUT, READ, WRITE, CHARACTERS, EPOCHS = 4000, 200, 1024, 64, 2000, 1

keras.utils.set_random_seed(0)

"""
## Conversations in a file

Most instruction data is a file of JSON lines, each with a list of messages:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

Roles are `user` and `assistant` in turn, after at most one `system` message. Here such a file
is made of docstrings, the text that every machine has. The assistant is asked for the first
line of one, given the rest, and then where it is from.
"""

ASKED = "Write the first line of this docstring."
WHERE = "Is it from numpy or from keras?"


def talk_about(doc):
    """A conversation of two questions and two answers."""
    line, body = doc.summary_and_body
    return [
        {"role": "user", "content": f"{ASKED}\n\n{body[:CHARACTERS]}"},
        {"role": "assistant", "content": line},
        {"role": "user", "content": WHERE},
        {"role": "assistant", "content": doc.file.split("/")[0]},
    ]


def write_talks(path, docs, count):
    """As many of numpy as of keras; lines that do not fit into an answer are left out."""
    usable = [
        d
        for d in docs
        if d.summary_and_body and len(d.summary_and_body[0]) <= WRITE * 2
    ]
    with open(path, "w") as file:
        for package in ("numpy", "keras"):
            some = [doc for doc in usable if doc.file.startswith(f"{package}/")]
            for doc in some[: count // 2]:
                file.write(json.dumps({"messages": talk_about(doc)}) + "\n")


to_train_on, others = docstrings.load(["numpy", "keras"])
write_talks("talks.jsonl", to_train_on, TALKS)
write_talks("held_out.jsonl", others, HELD_OUT)

"""
`data.read` takes one file, several, or a pattern such as `"talks/*.jsonl"`. Where the same
is at hand as a list, a data frame or a Hugging Face dataset, pass that instead:
`fit({"messages": conversations})`, `fit(dataset)`.
"""

talks = data.read("talks.jsonl", field="messages")
held_out = data.as_source(
    data.read("held_out.jsonl", field="messages")
)  # with its messages

lm = keras_encdec.from_preset(START, dtype=None if SMALL else "bfloat16")
if not SMALL:
    lm.backbone.enable_lora(16)
lm.preprocessor.encoder_sequence_length = READ
lm.preprocessor.decoder_sequence_length = WRITE

"""
## What the model reads

Between the messages stand the marks by which a model knows who speaks. A model that was
tuned on conversations knows marks of its own, and its tokenizer usually brings a template that
writes them: `from_preset` and `adapt` find it in the folder, use it, and keep it as
`lm.preprocessor.chat_template`. Without one the format follows from the tokenizer's pieces,
as here, where they are Gemma's.

The preprocessor shows what becomes of a conversation: two answers, so two rows. The second
one reads the first answer.
"""

print("template:", lm.preprocessor.chat_template)

first = talk_about(next(doc for doc in to_train_on if doc.summary_and_body))
x, y, counts = lm.preprocessor({"messages": [first]})
for row in range(2):
    read = x["encoder_token_ids"][row][x["encoder_padding_mask"][row] > 0]
    written = y[row][counts[row] > 0]
    print(f"--- row {row} reads")
    print(lm.preprocessor.tokenizer.detokenize(read.tolist()))
    print(f"--- and writes {lm.preprocessor.tokenizer.detokenize(written.tolist())!r}")

"""
A conversation that is longer than `encoder_sequence_length` loses its oldest turns, and a
warning says how many did. What a user writes is never a mark: a message that spells
`<end_of_turn>` is tokenised as those letters.

## Training

The loss is the mean over the tokens of answers. `validation_data` takes what `fit` takes;
its loss is of conversations about files that training has not seen.
"""

optimizer = keras.optimizers.AdamW(RATE, global_clipnorm=1.0)
if not SMALL:
    optimizer = keras.optimizers.Adafactor(RATE)  # moves weights in bfloat16
lm.compile(optimizer, sampler="greedy")

before = lm.evaluate(held_out, batch_size=8, verbose=0, return_dict=True)
history = lm.fit(
    talks, validation_data=held_out, batch_size=8, epochs=EPOCHS, verbose=2
)

print(f"held out, before: loss {before['loss']:.3f}")
for epoch, loss in enumerate(history.history["val_loss"], start=1):
    print(f"held out, after epoch {epoch}: loss {loss:.3f}")

"""
A loss says little of what answers are good for. Where they can be checked, check them: the
second question has two possible answers, and who guesses is right half of the time.
`generate` takes conversations that end with a question, many at a time.
"""

asked = [messages[:3] for messages in held_out.messages]
wanted = [messages[3]["content"] for messages in held_out.messages]
answers = lm.generate({"messages": asked}, max_length=WRITE)
right = sum(answer == word for answer, word in zip(answers, wanted, strict=True))
print(f"where it is from: {right} of {len(wanted)} right")

"""
## Chat

`chat` answers the last message of one conversation. The answer joins the list, and so does
what is asked next.
"""

talk = held_out.messages[0][:1]
answer = lm.chat(talk, max_length=WRITE)
print("asked for the first line:", repr(answer))

talk = [
    *talk,
    {"role": "assistant", "content": answer},
    {"role": "user", "content": WHERE},
]
print("and where it is from:", repr(lm.chat(talk, max_length=WRITE)))

"""
A preset keeps all of it, a chat template too:
"""

lm.save_to_preset("./instructed")
again = keras_encdec.from_preset("./instructed")
again.compile(sampler="greedy")
print(
    "the same after loading:",
    again.chat(talk, max_length=WRITE) == lm.chat(talk, WRITE),
)

"""
## Where next

- [Preferences and rewards](preferences.py): of two answers, people chose one.
- [Generation](generation.py): samplers, beams, streams, large jobs.
- [Share a model](share_a_model.py): a card, a licence, Kaggle and Hugging Face.
"""
