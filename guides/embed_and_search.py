"""
Title: Embed texts and search them
Author: keras_encdec
Date created: 2026/11/26
Last modified: 2026/11/26
Description: From a decoder-only model to an embedder: learn to read both ways, then to search.
Accelerator: GPU
"""

"""
## Introduction

[EmbeddingGemma](https://arxiv.org/abs/2509.20354) is the encoder of an adapted pair with a
mean over its states and two dense layers on top. This guide makes such an embedder of a
decoder-only model in two steps that fit one GPU:

1. masked next token prediction ([LLM2Vec](https://arxiv.org/abs/2404.05961)): the model,
   made bidirectional, learns from plain texts to use what stands behind a word;
2. contrastive learning: a question is to lie near the document that answers it, and far
   from the others of its batch.

The search is for docstrings, which every machine has: the one-line summary is the query,
the rest is the document that it must find.

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

import keras
import numpy as np
from keras_encdec.data import docstrings
from keras_encdec.models import EncDecMaskedLM, EncDecTextEmbedder
from keras_encdec.training import InBatchNCE

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    SOURCE, DTYPE, LENGTH, CHARACTERS = "gemma2_mini_docs", None, 64, 90
    WIDTHS = (64, 32)
    PAIRS, HELD_OUT, STEPS, BATCH_SIZE, RATE = 192, 32, 8, 16, 1e-3
else:
    SOURCE, DTYPE, LENGTH, CHARACTERS = "gemma2_2b_en", "bfloat16", 256, 800
    WIDTHS = (3072, 768)
    PAIRS, HELD_OUT, STEPS, BATCH_SIZE, RATE = 8000, 400, 1000, 64, 2e-4

keras.utils.set_random_seed(0)


def optimizer():
    """Adafactor moves weights in bfloat16, which Adam's usual settings would not."""
    if SMALL:
        return keras.optimizers.AdamW(RATE, global_clipnorm=1.0)
    return keras.optimizers.Adafactor(RATE)


"""
## Queries and documents
"""

train, held_out = docstrings.load(["numpy", "keras"])


def pairs_of(docs, most):
    """Summaries, and the bodies that they are of."""
    found = [pair for doc in docs if (pair := doc.summary_and_body)][:most]
    return [line for line, _ in found], [body[:CHARACTERS] for _, body in found]


queries, documents = pairs_of(train, PAIRS)
held_out_queries, held_out_documents = pairs_of(held_out, HELD_OUT)
print(f"{len(queries)} pairs to train on, {len(held_out_queries)} held out")

"""
## Learn to read both ways

`EncDecMaskedLM` hides a fifth of the tokens, and the state in front of each hidden one
predicts it: that is what a decoder-only model does already, now with the words behind it
in sight. In 16 GB the weights are kept as int8 and LoRA trains beside them; a thousand
steps are enough for LLM2Vec.
"""

masked_lm = EncDecMaskedLM.from_preset(
    SOURCE, sequence_length=LENGTH, packing=True, dtype=DTYPE
)
masked_lm.preprocessor.objective.show(documents[0], masked_lm.preprocessor.tokenizer)

if not SMALL:
    masked_lm.quantize("int8")
    masked_lm.backbone.enable_lora(16)
masked_lm.compile(optimizer())
masked_lm.fit(documents, batch_size=BATCH_SIZE, steps_per_epoch=STEPS, verbose=2)
masked_lm.save_to_preset("./reads_both_ways")

"""
## The embedder

`from_preset` takes what was just saved, a pair that was adapted, a released T5Gemma, or
any decoder-only model. The projection is new: EmbeddingGemma's goes from 768 to 3072 and
back. Queries and documents are told apart by a prompt in front of them; `prompts=` sets
others.
"""

embedder = EncDecTextEmbedder.from_preset(
    "./reads_both_ways", projection=WIDTHS, sequence_length=LENGTH, dtype=DTYPE
)
print(embedder.preprocessor.prompts)

"""
## Search

A query's documents are those whose vectors lie nearest. Before it has learnt to, the
embedder finds few of them:
"""


def found_among_ten(embedder, **options):
    """The share of held-out queries whose document is among the nearest ten."""
    asked = embedder.encode_text(held_out_queries, prompt="query", **options)
    there = embedder.encode_text(held_out_documents, prompt="document", **options)
    order = np.argsort(-embedder.similarity(asked, there), axis=1)[:, :10]
    return np.mean([i in row for i, row in enumerate(order)])


print(f"found by chance: {10 / len(held_out_queries):.2f}")
print(f"found before training: {found_among_ten(embedder):.2f}")

"""
## Learn to search

`InBatchNCE` takes the documents of a batch's other rows as negatives: a larger batch is a
harder task, and what is a known answer is never a negative. Columns `negatives` and
`score` are read where there are any. `dimensions` trains vectors that may be cut
([Matryoshka](https://arxiv.org/abs/2205.13147)); `texts_at_once` makes room for batches
that do not fit.
"""

if not SMALL:
    embedder.backbone.enable_lora(16)  # the weights are int8 already
whole = WIDTHS[-1]
embedder.compile(optimizer(), InBatchNCE(dimensions={whole: 1.0, whole // 4: 1.0}))
history = embedder.fit(queries, documents, batch_size=BATCH_SIZE, epochs=2, verbose=2)
print(f"found after training: {found_among_ten(embedder):.2f}")
print(
    f"by a quarter of each vector: {found_among_ten(embedder, dimensions=whole // 4):.2f}"
)

"""
Ask it something:
"""

question = "Sort the values of an array."
vectors = embedder.encode_text(held_out_documents, prompt="document")
likeness = embedder.similarity(
    embedder.encode_text([question], prompt="query"), vectors
)[0]
for number in np.argsort(-likeness)[:3]:
    print(f"{likeness[number]:.2f}  {held_out_queries[number]}")

"""
A handful of documents is an easy search. Hold an embedder against
[BM25](https://en.wikipedia.org/wiki/Okapi_BM25) on a corpus of yours before you trust it:
`bench/retrieval.py` does so on all docstrings.

## Save it

A preset holds the encoder, the projection and the prompts, and no decoder. Others load it
without Keras: `SentenceTransformer("./for_sentence_transformers")` gives the same vectors,
and knows the prompts by their names.
"""

embedder.save_to_preset("./docstring_embedder")
again = EncDecTextEmbedder.from_preset("./docstring_embedder")
difference = np.abs(again.encode_text(held_out_documents, "document") - vectors).max()
print(f"the same after loading: {difference < 1e-5}")

embedder.export_to_sentence_transformers("./for_sentence_transformers")
