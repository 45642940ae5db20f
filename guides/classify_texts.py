"""
Title: Classify texts with an encoder
Author: keras_encdec
Date created: 2026/11/26
Last modified: 2026/11/26
Description: A head on the encoder of a pair or of a decoder-only model: texts, pairs, choices.
Accelerator: GPU
"""

"""
## Introduction

The clearest result of [Encoder-Decoder Gemma](https://arxiv.org/abs/2504.06225) is the
encoder's: on SuperGLUE the adapted 2B encoder reached 88.1 where Gemma 2 2B, read from
left to right, had 75.5 (table 2). This guide takes the encoder out and puts a head on it.
Three kinds of questions are asked:

- which of some classes a text belongs to;
- what two texts, read one behind the other, have to do with each other;
- which of some choices fits a text.

All three are asked of docstrings, which every machine has: which package wrote it, is
this the summary of that body, and which of two summaries is.

The guide is written for one GPU of 16 GB and Gemma 2 2B. With `KERAS_ENCDEC_SMALL=1` the
same code runs on any CPU in about a minute, without network: a small model of docstrings
that ships with the package then takes Gemma's place, and sees fewer texts for fewer steps.
"""

"""
## Setup
"""

"""shell
pip install -q "keras-encdec[cuda,guides]"
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import random

import keras
from keras_encdec.data import docstrings
from keras_encdec.models import EncDecTextClassifier

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    SOURCE, DTYPE, LENGTH, CHARACTERS = "gemma2_mini_docs", None, 112, 100
    EACH, HELD_OUT, EPOCHS, BATCH_SIZE, RATE = 48, 16, 2, 16, 1e-3
else:
    SOURCE, DTYPE, LENGTH, CHARACTERS = "gemma2_2b_en", "bfloat16", 512, 800
    EACH, HELD_OUT, EPOCHS, BATCH_SIZE, RATE = 1000, 200, 5, 16, 2e-4

keras.utils.set_random_seed(0)
chance = random.Random(0)

"""
## Texts and labels

A label may be a name. Each package gives as many texts, and the texts that are held out
come from other files than those to train on.
"""

PACKAGES = ["numpy", "keras", "tensorflow"]
train, held_out = {}, {}
for package in PACKAGES:
    to_train_on, others = docstrings.load([package])
    for found, docs, most in ((train, to_train_on, EACH), (held_out, others, HELD_OUT)):
        docs = chance.sample(docs, min(most, len(docs)))
        found[package] = [doc.text[:CHARACTERS] for doc in docs]


def labelled(parts):
    """Texts, and the package that each is from."""
    pairs = [(text, package) for package, texts in parts.items() for text in texts]
    return [text for text, _ in pairs], [package for _, package in pairs]


texts, labels = labelled(train)
held_out_texts, held_out_labels = labelled(held_out)
print(f"{len(texts)} texts to train on, {len(held_out_texts)} held out")

"""
## The classifier

`from_preset` takes whatever has an encoder: a pair that was adapted and saved, a released
T5Gemma, or a decoder-only model, which is made bidirectional, as here. The head reads the
state of the last token, as in the paper (section 4); `pooling="mean"` reads all of them.

In 16 GB the weights of Gemma 2 2B are kept as int8, and LoRA trains beside them; the head
trains whole. Adafactor moves weights in bfloat16, which Adam's usual settings would not.
"""


def prepared(classifier):
    """Ready to train, in the memory that there is."""
    if SMALL:
        classifier.compile(keras.optimizers.AdamW(RATE, global_clipnorm=1.0))
        return classifier
    classifier.quantize("int8")
    classifier.backbone.enable_lora(16)
    classifier.compile(keras.optimizers.Adafactor(RATE))
    return classifier


settings = {"sequence_length": LENGTH, "dtype": DTYPE}
classifier = prepared(
    EncDecTextClassifier.from_preset(
        SOURCE, label_names=PACKAGES, dropout=0.1, **settings
    )
)

history = classifier.fit(
    texts,
    labels,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    validation_data=(held_out_texts, held_out_labels),
    callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=1)],
    verbose=2,
)

"""
A text that is longer than `sequence_length` is cut at its end, and a warning says how
many were. `classify` gives names, `predict` logits:
"""

said = classifier.classify(held_out_texts)
print("right of those said to be of each package:")
for package in PACKAGES:
    labels_of = [held_out_labels[i] for i, name in enumerate(said) if name == package]
    print(f"  {package:12} {labels_of.count(package)} of {len(labels_of)}")

"""
## Two texts

A tuple of columns is read one behind the other, with a line break between them; a dict or
a frame has the columns `text` and `text_pair`. Where both do not fit, the longer one is
cut. Half of these summaries belong to another body:
"""


docs, _ = docstrings.load(["numpy", "keras"])
pairs = [pair for doc in docs if (pair := doc.summary_and_body)]
pairs = chance.sample(pairs, min(2 * EACH, len(pairs)))
lines = [summary[:CHARACTERS] for summary, _ in pairs]
bodies = [body[:CHARACTERS] for _, body in pairs]
others = lines[1:] + lines[:1]

answers = [chance.choice(["no", "yes"]) for _ in lines]
asked = [lines[i] if answer == "yes" else others[i] for i, answer in enumerate(answers)]
matches = prepared(
    EncDecTextClassifier.from_preset(SOURCE, label_names=["no", "yes"], **settings)
)
matches.fit(
    (asked, bodies),
    answers,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    validation_split=0.2,
    verbose=2,
)

"""
## Choices

With `num_choices` each text comes with as many choices. Each is read behind the text and
gets one logit; the label is the number of the right one.
"""

right = [chance.randrange(2) for _ in lines]
options = [
    [lines[i], others[i]] if label == 0 else [others[i], lines[i]]
    for i, label in enumerate(right)
]
chooses = prepared(EncDecTextClassifier.from_preset(SOURCE, num_choices=2, **settings))
data = {"text": bodies, "choices": options, "label": right}
chooses.fit(data, batch_size=BATCH_SIZE, epochs=EPOCHS, validation_split=0.2, verbose=2)

"""
## The source as it reads

For comparison the same head can stand on the decoder-only model as it was trained, each
token seeing those before it. Its texts then begin with `<bos>`, which it has seen in front
of every text.
"""

causal = {"encoder_attention": "causal", "label_names": PACKAGES, "dropout": 0.1}
source = prepared(EncDecTextClassifier.from_preset(SOURCE, **causal, **settings))
print("begins with <bos>:", source.preprocessor.add_start_token)
source.fit(texts, labels, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
for name, model in {"bidirectional": classifier, "causal": source}.items():
    logs = model.evaluate(held_out_texts, held_out_labels, return_dict=True, verbose=0)
    print(f"{name:14} accuracy {logs['accuracy']:.3f}, loss {logs['loss']:.3f}")

"""
One run of each says little: repeat it over seeds before you conclude anything. And an
encoder that was adapted as part of a pair, with PrefixLM or UL2, is what the paper's
number is of; the source made bidirectional has never been trained that way.

## Save it

A preset holds the encoder and the head, and no decoder. KerasHub loads it, too.
"""

classifier.save_to_preset("./package_classifier")
again = EncDecTextClassifier.from_preset("./package_classifier")
print("the same after loading:", again.classify(held_out_texts) == said)
