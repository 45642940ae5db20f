"""
Title: Objectives and teachers: PrefixLM, UL2, distillation
Author: keras_encdec
Date created: 2026/11/25
Last modified: 2026/11/27
Description: See what each objective asks for, mix and stage them, and learn from a larger model.
Accelerator: GPU
"""

"""
## Introduction

Adaptation needs plain text and a rule that makes pairs of it: something for the encoder
to read, something for the decoder to write. That rule is an objective.
[Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225) compares two:

- **PrefixLM** cuts a window in halves; the second half is written. In the paper's table 2
  it wins at most sizes where text is to be generated, and it can be taught by a larger
  model.
- **UL2** hides spans of a window; the hidden spans are written. It wins at most sizes
  where the encoder is what matters (SuperGLUE).

This guide shows what each of them asks for, how they are mixed, and two ways to learn
from a teacher: its answers kept on disk, or asked in each step.

It is written for one GPU of 80 GB (by `training.estimate`, 55 are needed where the
teacher is asked in each step). With `KERAS_ENCDEC_SMALL=1` the same code runs on any
CPU in about a minute, without network: the student is a pair of 3.4 million parameters,
the teacher has 5.8 million; both sources ship with the package. Texts are cut after 64
tokens instead of 512, and each run takes 10 steps instead of 1,000.
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

from collections import Counter

import keras
import keras_encdec
import keras_hub
import numpy as np
from keras_encdec import data, training
from keras_encdec.data import docstrings
from keras_encdec.objectives import UL2, Mixture, PrefixLM, SpanCorruption, Stages
from keras_encdec.sharing import catalog

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    STUDENT, TEACHER = "gemma2_mini_docs", catalog.embedded("gemma2_tiny_docs")
    HALF, BATCH_SIZE, STEPS, LEARNING_RATE = 48, 8, 6, 3e-3
    TEXTS, HELD_OUT, PACKAGES = 40, 4, ["keras"]
else:
    STUDENT, TEACHER = "gemma2_2b_en", "gemma2_9b_en"
    HALF, BATCH_SIZE, STEPS, LEARNING_RATE = 512, 16, 1000, 1e-4
    TEXTS, HELD_OUT, PACKAGES = 20_000, 128, docstrings.PACKAGES

keras.utils.set_random_seed(0)

train_docs, held_out_docs = docstrings.load(PACKAGES)
texts = [doc.text for doc in train_docs[:TEXTS]]
held_out = [doc.text for doc in held_out_docs[:HELD_OUT]]

lm = keras_encdec.adapt(STUDENT, dtype="mixed_bfloat16")
lm.preprocessor.encoder_sequence_length = HALF
lm.preprocessor.decoder_sequence_length = HALF
lm.backbone.enable_lora(8)
tokenizer = lm.preprocessor.tokenizer

"""
## What an objective asks for

An objective is a small object; `show` prints the example that it makes of a text.
Chance follows from the seed, so the same seed shows the same example.
"""

text = (
    "An encoder reads a text as a whole: each of its tokens sees all others, those "
    "before and those after it. A decoder writes from left to right, one token at a "
    "time, and looks at what the encoder made of the text whenever it needs to."
)
PrefixLM().show(text, tokenizer)

"""
Span corruption replaces each hidden span with a sentinel. The decoder writes the
sentinels with what they stand for, in one go. Mean length and rate are its two numbers:
T5 hid spans of 3 tokens and 15% of all. Sentinels are tokens that the vocabulary keeps
free: Gemma's `<unused0>` to `<unused98>` here, and what Llama 3, SmolLM3, Mistral, gpt-oss
and OLMo 2 have of that kind. Qwen and SmolLM2 keep none; `sentinels=(...)` names ids that
no text has, such as rows of the embedding behind the last token.
"""

SpanCorruption(3, 0.15).show(text, tokenizer, seed=1)

"""
UL2 ([arXiv 2205.05131](https://arxiv.org/abs/2205.05131), table 1) draws one of seven
denoisers for each window: regular ones (R) as above, extreme ones (X) that hide long
spans or half of a text, and a sequential one (S), which is PrefixLM with a random cut.
"""

UL2().show(text, tokenizer, seed=5)
UL2().show(text, tokenizer, seed=1)

"""
Other published mixtures go by name, and any list of denoisers is a mixture:

- `UL2("t5gemma2")`: T5Gemma 2's five, half of it sequential
  ([arXiv 2512.14856](https://arxiv.org/abs/2512.14856), section 3.1);
- `UL2("ul2r")`: U-PaLM's ([arXiv 2210.11399](https://arxiv.org/abs/2210.11399)).

`mode_tokens=True` tells the model which kind it is given, by `[NLU]`, `[NLG]` or `[S2S]`
at the start of the input. T5Gemma's papers do not mention such tokens, so they are off.
"""

UL2("t5gemma2", mode_tokens=True).show(text, tokenizer, seed=11)

"""
### What text becomes

| | encoder reads | decoder reads | decoder learns to write |
|---|---|---|---|
| plain text, PrefixLM | first part of a window | `<bos>` and the rest | the rest, and `<eos>` where the document ends |
| plain text, UL2 | a window with `<unused0>`, `<unused1>`, ... for hidden spans | `<bos>` and the target | each sentinel and its span, and `<eos>` |
| pairs | the text, nothing added | `<bos>` and the target | the target and `<eos>` |
| pairs, `chat=True` | the text as a user's turn | `<bos>` and the answer | the answer and the end of a turn |

Turns are framed as Gemma's, ChatML's (Qwen, SmolLM) or Llama 3's, whichever the tokenizer
has pieces for. Where a tokenizer has no `<bos>`, the decoder reads the end token first. A
control token that a text spells, such as `<end_of_turn>`, is plain text to the model;
who builds prompts by hand sets `preprocessor.allow_special = True`.

A document is cut into windows that fill the encoder, as long as their objective asks
for; windows cross documents with `preprocessor.cross_documents = True`. All of the text
is used, save a single token that may be left over at an end. In pairs, a text longer
than its side's `sequence_length` is cut at the end. Generation tokenises exactly like
training.

Order and chance follow from `preprocessor.seed`, the epoch and the number of the
document: the same on every machine, for any number of hosts and workers, and from any
step on. Plain texts may be empty or have `<unused..>` in them: these are left out, counted
and reported. In pairs, an empty side is an error with its row. Anything else that is not
text is an error that names the file and the record.
"""

"""
## Mixtures and stages

`Mixture` draws among objectives, by rates. `Stages` goes through them one after another,
by shares of the steps; the paper tried UL2 followed by PrefixLM over the last tenth
(figure 5), which raised its instruction-tuned scores and lowered the others. The
preprocessor holds the objective, and saves it with the model.
"""

lm.preprocessor.objective = Stages([UL2(), PrefixLM()], [9, 1])
lm.preprocessor.objective = Mixture([PrefixLM(), UL2()], [1, 1])
examples = lm.preprocessor.examples(texts)
print(Counter(example.denoiser for example in examples).most_common())

"""
Windows of denoisers differ in length, so rows would hold padding. With `packing`,
several examples share a row and see only themselves.
"""

for packing in (False, True):
    lm.preprocessor.packing = packing
    x, y, weight = lm.preprocessor(texts)
    filled = np.mean(x["encoder_padding_mask"] > 0), np.mean(weight > 0)
    print(
        f"packing {packing}: {len(y)} rows, filled {filled[0]:.0%} and {filled[1]:.0%}"
    )

"""
## Train on the mixture

A held-out loss means something only beside one of the same objective: UL2's targets hold
sentinels, which are easy to write. So both are measured apart.
"""


def held_out_losses():
    """Nats per token, by objective."""
    mixed, losses = lm.preprocessor.objective, {}
    for objective in (PrefixLM(), UL2()):
        lm.preprocessor.objective = objective
        logs = lm.evaluate(held_out, return_dict=True, verbose=0)
        losses[type(objective).__name__] = round(logs["loss"], 3)
    lm.preprocessor.objective = mixed
    return losses


def optimizer():
    return keras.optimizers.AdamW(LEARNING_RATE, global_clipnorm=1.0)


lm.compile(optimizer(), remat=True)
print("at the start:", held_out_losses())
lm.fit(texts, batch_size=BATCH_SIZE, steps_per_epoch=STEPS, verbose=2)
print("after the mixture:", held_out_losses())

"""
## A teacher whose answers are kept

A label says which token came. A larger model says how likely each token was, which is
more to learn from: Gemma 2's 2B and 9B models were trained that way
([arXiv 2408.00118](https://arxiv.org/abs/2408.00118), section 3.2), and so was T5Gemma
with PrefixLM.

The teacher is asked once, for the k likeliest tokens at each target, and its answers are
kept in a folder. The student can then be trained on another machine, as often as one
likes. 256 tokens are Gemma 3's number; a target's answer then takes 1.5 kB.
"""

lm.preprocessor.objective = PrefixLM()
lm.preprocessor.packing = False
teacher_lm = keras_hub.models.CausalLM.from_preset(TEACHER, dtype="bfloat16")
tokens = data.tokenize(texts, tokenizer)
teacher = data.write_teacher(
    "./teacher", teacher_lm, tokens, lm.preprocessor, k=16 if SMALL else 256
)
taught = data.batches(tokens, lm.preprocessor, BATCH_SIZE, steps=STEPS, teacher=teacher)

"""
A batch has the teacher's ids and log-probabilities beside the labels. Here is what it
thought about one target of the first row:
"""

x, y, weight = taught[0]
print({name: array.shape for name, array in y.items()})
place = 20
before = tokenizer.detokenize(y["labels"][0, :place])
print(
    f"after {before!r}, the text goes on with "
    f"{tokenizer.id_to_token(int(y['labels'][0, place]))!r}; the teacher says"
)
for token, log_prob in list(
    zip(y["teacher_ids"][0, place], y["teacher_log_probs"][0, place], strict=True)
)[:4]:
    print(f"  {np.exp(float(log_prob)):.2f} {tokenizer.id_to_token(int(token))!r}")

"""
`Distillation()` without a teacher takes what the batches bring. `evaluate` goes on
reporting the loss of the labels, so numbers stay comparable.
"""

lm.compile(optimizer(), distillation=training.Distillation(), remat=True)
lm.fit(taught, verbose=2)
print("after the kept teacher:", held_out_losses())

"""
## A teacher that is asked in each step

With memory for both models there is no folder to write. The teacher does not train, so
it may be quantised (`teacher_lm.backbone.quantize("int8")`). `weight` is its share of the
loss, the rest is the label's; `temperature` flattens both distributions
([arXiv 1503.02531](https://arxiv.org/abs/1503.02531), section 2). It reads input and
target as one text, which makes sense for PrefixLM and pairs, and one example a row.
"""

asked = training.Distillation(teacher_lm, weight=0.5, temperature=2.0)
lm.compile(optimizer(), distillation=asked, remat=True)
lm.fit(texts, batch_size=BATCH_SIZE, steps_per_epoch=STEPS, verbose=2)
print("after the teacher that was asked:", held_out_losses())

"""
`divergence="reverse"` or `"jensen_shannon"` changes what is minimised. Which of these
helps depends on teacher and data; the numbers above only show that each runs.

`on_policy=0.5` has the student write the targets of half of the batches itself, right before
their step, and asks the teacher about that: what a student meets when it generates, and no
text shows it ([GKD](https://arxiv.org/abs/2306.13649)). It needs `weight=1`, as labels of one's
own outputs teach nothing.

For UL2 a teacher's answers are kept as well: `write_teacher` looks up each hidden token
where it stood in the text, and sentinels get all probability. T5Gemma 2 tried that, found
about 0.4 points for its 1B-1B model, and left it out for the cost of loading the data
(section 4).
"""
