"""
Title: Generating text
Author: keras_encdec
Date created: 2026/11/25
Last modified: 2026/11/25
Description: Samplers, beams, many samples, streams, chat, scores, large jobs and int8.
Accelerator: GPU
"""

"""
## Introduction

An encoder-decoder reads its input once, with the encoder. What it writes then costs a
step of the decoder for each token, which looks at the encoder's states; they are kept, so
one reading serves as many outputs as are wanted.

This guide goes through what can be asked of it: one text or many thousands, the likeliest
output or several, pieces while they are written, answers in a conversation, and how
likely a given text is.

It is written for one GPU of 16 GB and T5Gemma 2B-2B, instruction-tuned. With
`KERAS_ENCDEC_SMALL=1` the same code runs on any CPU in about a minute, without network:
the model becomes a pair of 3.4 million parameters that ships with the package and is
first trained for 24 steps, on docstrings. It cannot answer questions; what it writes
shows only that something is written.
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

import json

import keras
import keras_encdec
from keras_encdec import data
from keras_encdec.data import docstrings
from keras_encdec.generation import BeamSearch

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

keras.utils.set_random_seed(0)
train_docs, held_out_docs = docstrings.load(["keras"] if SMALL else docstrings.PACKAGES)

if SMALL:
    LENGTH, MANY = 24, 40
    lm = keras_encdec.from_preset("gemma2_mini_docs", chat=True)
    lm.preprocessor.encoder_sequence_length = 64
    lm.preprocessor.decoder_sequence_length = 64
    lm.compile(keras.optimizers.AdamW(1e-3, global_clipnorm=1.0))
    lm.fit(
        [doc.text for doc in train_docs], steps_per_epoch=16, batch_size=8, verbose=0
    )
else:
    LENGTH, MANY = 128, 2000
    lm = keras_encdec.from_preset(
        "hf://google/t5gemma-2b-2b-prefixlm-it", dtype="bfloat16"
    )

"""
T5Gemma's weights come from Hugging Face. Accept their licence on
[the model's page](https://huggingface.co/google/t5gemma-2b-2b-prefixlm-it) once, and set
`HF_TOKEN`; in Colab it can be a secret of the notebook.
"""

"""
## One text, several texts

A text gives a text, a list gives a list. `max_length` counts the tokens of an output;
without it that is the preprocessor's `decoder_sequence_length`. An output also ends at
the tokenizer's end tokens; `stop_token_ids=None` turns that off.

The sampler belongs to `compile`, as in KerasHub. `"greedy"` takes the likeliest token each
time.
"""

lm.compile(sampler="greedy")
question = "In one sentence: what does a convolution do?"
print(lm.generate(question, max_length=LENGTH))
print(lm.generate([question, "Name three optimizers."], max_length=LENGTH))

"""
Compiling takes longer than a short output. So lengths and batches are padded to a few
sizes, powers of two from 128 tokens on for inputs and from 32 on for outputs, and a
program is compiled for each size that occurs. Neither padding nor the other texts of a
batch change what a text gets.
"""

print(lm.compile_counts)

"""
What an output begins with can be given. `strip_prompt` leaves it out of what comes back.
"""

begun = {"encoder_text": question, "decoder_text": "A convolution"}
print(lm.generate(begun, max_length=LENGTH))
print(lm.generate(begun, max_length=LENGTH, strip_prompt=True))

"""
## Draws

With `"top_k"` (5 tokens, and the default) or `"top_p"` the next token is drawn. Names
stand for KerasHub's samplers, which can be passed themselves. Temperature and seed may be
those of a call: with a seed, the call gives the same again. What a row draws follows from
the seed and its number among the inputs, however they are batched.
"""

lm.compile(sampler="top_p")
for temperature in (0.3, 1.0):
    text = lm.generate(
        question, max_length=LENGTH, temperature=temperature, seed=1, strip_prompt=True
    )
    print(temperature, repr(text))

"""
## Several outputs of one reading

`num_samples` draws n outputs for each input. `encode` keeps what was read, for as many
`decode`s as are wanted: a long document is then read once.
"""

encoding = lm.encode(question)
for text in lm.decode(encoding, max_length=LENGTH, num_samples=3, seed=2):
    print("-", repr(text))

"""
## Beams

`BeamSearch` keeps the likeliest beginnings of each row instead of one. With `num_samples`
it returns the best of them, with `return_scores` their log-likelihoods in nats. The
penalty on length is that of T5X (`length_penalty=0.6`).
"""

lm.compile(sampler=BeamSearch(4))
texts, scores = lm.generate(
    question, max_length=LENGTH, num_samples=4, return_scores=True
)
for text, score in zip(texts, scores, strict=True):
    print(f"{score:8.2f} {text!r}")

"""
## A stream

Pieces arrive as they are written. A stop string ends the output and is left out; a piece
that might be its beginning is held back until that is known.
"""

lm.compile(sampler="greedy")
for piece in lm.generate_stream(question, max_length=LENGTH, stop_strings=["\n\n"]):
    print(piece, end="", flush=True)
print()

"""
## A conversation

Instruction-tuned models know turns. `chat` frames them as the tokenizer's family does:
Gemma's, ChatML (Qwen, SmolLM) or Llama 3's. The conversation so far is read by the
encoder, and the answer ends as a turn ends. A text that spells a control token, such as
`<end_of_turn>`, is plain text: nobody's message can begin a turn of someone else's.
"""

messages = [{"role": "user", "content": question}]
answer = lm.chat(messages, max_length=LENGTH)
messages += [
    {"role": "assistant", "content": answer},
    {"role": "user", "content": "And a pooling?"},
]
print(lm.chat(messages, max_length=LENGTH))

"""
## How likely is a text?

`score` gives log-likelihoods of texts that are there already, in nats: to rank
candidates, to classify by the answer that fits best, or to measure a model.
"""

answers = ["It slides a kernel over its input.", "It sorts a list of names."]
pairs = {"encoder_text": [question] * 2, "decoder_text": answers}
found = lm.score(pairs)
for text, total, tokens in zip(answers, found.total, found.per_token, strict=True):
    print(f"{total:8.2f} nats, {len(tokens)} tokens: {text}")

"""
## Thousands of texts

More inputs than `batch_size` are sorted by length, so that little is padded, and come
back in their own order, with a progress bar. With `path`, outputs are kept in a file as
they are made: after a kill the same call goes on behind them. A file that is finished is
left alone, and another job needs another name.
"""

with open("inputs.jsonl", "w") as file:
    for doc in held_out_docs[:MANY]:
        file.write(json.dumps({"text": doc.text[:100]}) + "\n")

inputs = data.read("inputs.jsonl")
outputs = lm.generate(inputs, max_length=LENGTH, batch_size=16, path="outputs.jsonl")
print(f"{len(outputs)} outputs")
with open("outputs.jsonl") as file:
    print(file.readline())

"""
Threads may share a model, as behind a server: each call gets what it gets alone.

## Smaller weights

`quantize` turns all kernels and the output projection into int8 or int4: a half or a
quarter of bfloat16's memory. On a GPU or TPU that reads less per token; a CPU has no fast
product of int8, so there it saves memory only (LOG.md).
"""

before = lm.generate(question, max_length=LENGTH)
lm.quantize("int8")
after = lm.generate(question, max_length=LENGTH)
print(repr(before), repr(after), sep="\n")

lm.save_to_preset("./int8")
size = sum(os.path.getsize(f"./int8/{name}") for name in os.listdir("./int8"))
print(f"{size / 1e6:.0f} MB on disk for {lm.backbone.count_params():,} parameters")
