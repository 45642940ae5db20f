"""
Title: Fine-tune on pairs of texts
Author: keras_encdec
Date created: 2026/11/25
Last modified: 2026/11/25
Description: Teach a 2B-2B model to summarise on one 16 GB GPU, with int8, LoRA and ROUGE.
Accelerator: GPU
"""

"""
## Introduction

Summaries, translations, SQL for a question, an answer for a document: wherever there is
a text to read and another to write, an encoder-decoder reads the first with its encoder
and learns to write the second. This guide fine-tunes an adapted model, T5Gemma 2B-2B, to
write the first line of a docstring given the rest of it. Another task is another two
lists of strings.

It is written for one GPU of 16 GB. With `KERAS_ENCDEC_SMALL=1` the same code runs on any
CPU in about a minute, without network: the model becomes a pair of 3.4 million
parameters that ships with the package. That pair was converted and never adapted, so it
begins far worse than T5Gemma does; texts of up to 96 tokens instead of 512 are read, and
training takes 32 steps instead of 2,000.
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

import math

import keras
import keras_encdec
import keras_hub
import matplotlib.pyplot as plt
from keras_encdec import training
from keras_encdec.data import docstrings

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    START, PACKAGES = "gemma2_mini_docs", ["keras", "numpy"]
    READ, WRITE, HELD_OUT = 96, 24, 16
    BATCH_SIZE, EPOCHS, STEPS_PER_EPOCH = 8, 4, 8
    RANK, LEARNING_RATE = 16, 1e-2
else:
    START, PACKAGES = "hf://google/t5gemma-2b-2b-prefixlm", docstrings.PACKAGES
    READ, WRITE, HELD_OUT = 512, 64, 256
    BATCH_SIZE, EPOCHS, STEPS_PER_EPOCH = 8, 10, 200
    RANK, LEARNING_RATE = 8, 2e-4

keras.utils.set_random_seed(0)

"""
T5Gemma's weights come from Hugging Face. Accept their licence on
[the model's page](https://huggingface.co/google/t5gemma-2b-2b-prefixlm) once, and set
`HF_TOKEN`; in Colab it can be a secret of the notebook.
"""

"""
## A model that fits

Two things make 5.6 billion parameters fit where 16 GB are to train them. Pretrained
weights are kept as int8, one byte each instead of four, and do not train. LoRA trains
small factors beside the query and value projections, in float32. What a step then
needs can be asked before anything is loaded:
"""

print(
    training.estimate(
        keras_encdec.presets["gemma2_2b_2b"],  # T5Gemma 2B-2B has its shape
        batch_size=8,
        source_length=512,
        target_length=64,
        dtype="bfloat16",
        quantization="int8",
        lora_rank=8,
        train_cross_attention=False,
        remat=True,
        fits=16e9,
    )
)

"""
Weights arrive as bfloat16 (11.2 GB) and become int8 (5.7 GB) in place, layer by layer.
`"int4"` halves that once more. The numbers are computed, not measured on such a card. A
GPU without bfloat16, such as a T4, trains in `mixed_float16`, whose weights arrive as
float32: there, take a smaller model.

`train_cross_attention=False` treats the cross-attention like every other layer: it was
trained when the model was adapted. For a pair that was only just converted leave it at
`True`, quantise with `filters=training.pretrained`, and expect 5 GB more.
"""

lm = keras_encdec.from_preset(START, dtype="bfloat16")
lm.quantize("int8")
lm.backbone.enable_lora(RANK, train_cross_attention=False)
lm.preprocessor.encoder_sequence_length = READ
lm.preprocessor.decoder_sequence_length = WRITE
trained = sum(math.prod(weight.shape) for weight in lm.trainable_weights)
print(f"{trained:,} of {lm.backbone.count_params():,} parameters train")

"""
## Pairs

A docstring often has one line that says what a function does, and a body that says how.
The body is what the encoder reads; the line is what the decoder is to write. The
docstrings of the installed packages give some 18,000 such pairs; one file in 32 is held
out.

Text that is longer than its side is cut at the end. Such pairs are left out here: what
the line speaks of may stand in the part that was cut.
"""

tokenizer = lm.preprocessor.tokenizer


def pairs_of(docs):
    """Bodies and lines that fit, as two lists."""
    pairs = [doc.summary_and_body for doc in docs if doc.summary_and_body]
    fitting = [
        (body, line)
        for line, body in pairs
        if len(tokenizer(body)) <= READ and len(tokenizer(line)) < WRITE
    ]
    bodies, lines = zip(*fitting, strict=True)
    return list(bodies), list(lines)


train_docs, held_out_docs = docstrings.load(PACKAGES)
bodies, lines = pairs_of(train_docs)
held_bodies, held_lines = (part[:HELD_OUT] for part in pairs_of(held_out_docs))
print(f"{len(bodies):,} pairs to train on, {len(held_bodies)} held out\n")
print(f"read:  {bodies[0]!r}\nwrite: {lines[0]!r}")

"""
### What data may be

`fit`, its `validation_data`, `evaluate` and `predict` take the same data in any of these
forms, with the same numbers; `generate`, `encode` and `score` read it, too.

| | plain texts | pairs | model inputs |
|---|---|---|---|
| in memory | a list, tuple, array, tensor, column or Series; rows or a column named `text` | `fit(inputs, targets)`; columns or rows `encoder_text`, `decoder_text`; tuples | `fit(x, y, sample_weight=w)`, x a dict of the four inputs |
| frames and datasets | pandas, Hugging Face | pandas, Hugging Face | Hugging Face |
| streams | tf.data, Grain, PyDataset, DataLoader, generators of texts, batched or not | the same of dicts or of tuples | the same of ready batches, which keep their order |
| files | `data.read("corpus/*.jsonl")` (or `.txt`, `.parquet`), `data.tokenize(...)` | | `data.batches(...)` |

| | |
|---|---|
| `shuffle`, `epochs` | rows in memory in an order by seed and epoch; texts, pairs and finite streams count as in memory |
| `steps_per_epoch` | over as many passes as it takes; a stream of unknown length is then read in its own order |
| `sample_weight` | a number for each row, or one for each of its targets; of a stream, inside its elements |
| `class_weight` | what each token counts as a label, by id |
| labels | -100 counts nothing; another id that is no token, and counts, is an error with its row and place |
| refused, with what to do instead | `validation_split` of ready batches; a second epoch, or a Checkpoint, of what comes once; scores of texts alone |

Losses, accuracy and perplexity are means over tokens by weight, whatever the batch size,
the padding or the devices: `fit` at learning rate 0, `evaluate` and `score` agree. Logs
also carry tokens (padding not counted), tokens per second, learning rate and gradient
norm; `lm.compile(logs=())` leaves them out.
"""

"""
## ROUGE, before anything is learnt

ROUGE-L is the longest common subsequence of words of two texts, as a share of their
words. KerasHub has it as a metric. A number alone says little, so there is a baseline
that needs no model: the first words of the body.
"""


def rouge_l(texts):
    """F1 of ROUGE-L of texts, against the held-out lines."""
    metric = keras_hub.metrics.RougeL()
    metric.update_state(held_lines, texts)
    return float(metric.result()["f1_score"])


lm.compile(sampler="greedy")
before = lm.generate(held_bodies)
first_words = [" ".join(body.split()[:12]) for body in held_bodies]
rouge = {"first words": rouge_l(first_words), "before": rouge_l(before)}
print({name: round(value, 3) for name, value in rouge.items()})

"""
## Fine-tune

Validation data are two lists as well. Callbacks of Keras work as on any model:
`EarlyStopping` ends the run once the held-out loss has not fallen for two epochs, and
puts the best weights back. The loss counts the tokens of the line and its end, never
those that are read.
"""

lm.compile(
    keras.optimizers.AdamW(LEARNING_RATE, global_clipnorm=1.0),
    sampler="greedy",
    remat=True,
)
history = lm.fit(
    bodies,
    lines,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    steps_per_epoch=STEPS_PER_EPOCH,
    validation_data=(held_bodies, held_lines),
    callbacks=[
        keras.callbacks.EarlyStopping(
            "val_loss", patience=2, restore_best_weights=True, verbose=1
        )
    ],
    verbose=2,
)

plt.figure(figsize=(6, 4), layout="constrained")
for name, label in {"loss": "training", "val_loss": "held out"}.items():
    losses = history.history[name]
    plt.plot(range(1, len(losses) + 1), losses, marker="o", label=label)
plt.xlabel("epochs")
plt.ylabel("loss (nats per token)")
plt.legend()
plt.savefig("fine_tuning.png")

"""
## Look at outputs

Losses and ROUGE do not tell whether a line is right. Read some.
"""

after = lm.generate(held_bodies)
rouge["after"] = rouge_l(after)
for body, line, text in list(zip(held_bodies, held_lines, after, strict=True))[:4]:
    print(f"body:  {body[:150]!r}\nline:  {line!r}\nmodel: {text!r}\n")
print("ROUGE-L", {name: round(value, 3) for name, value in rouge.items()})

"""
`score` asks the other way round: how likely is a given line? If it were as likely beside
the body of another docstring, the encoder would not be used.
"""

right = lm.score({"encoder_text": held_bodies[:8], "decoder_text": held_lines[:8]})
wrong = lm.score({"encoder_text": held_bodies[1:9], "decoder_text": held_lines[:8]})
print(f"its own body {right.total.mean():.2f}, another's {wrong.total.mean():.2f} nats")

"""
## Keep it

What was learnt is small: a file of the LoRA factors alone. It is read into the same
start, quantised the same way.
"""

lm.backbone.save_lora_weights("summaries.lora.h5")
print(f"{os.path.getsize('summaries.lora.h5') / 1e6:.1f} MB")
del lm

lm = keras_encdec.from_preset(START, dtype="bfloat16")
lm.quantize("int8")
lm.backbone.load_lora_weights("summaries.lora.h5")
lm.preprocessor.encoder_sequence_length = READ
lm.preprocessor.decoder_sequence_length = WRITE
lm.compile(sampler="greedy")
print("the same as before it was saved:", lm.generate(held_bodies) == after)

"""
`lm.save_to_preset("./summaries")` keeps all in one folder, int8 weights included.

What to do next: [generate](generation.py) from it in bulk, or
[share it](share_a_model.py).
"""
