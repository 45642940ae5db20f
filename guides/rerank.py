"""
Title: Rank documents with a pair
Author: keras_encdec
Date created: 2026/11/26
Last modified: 2026/11/26
Description: A pair as a reranker: documents are read once, kept on disk, and judged by each query.
Accelerator: GPU
"""

"""
## Introduction

A search finds a hundred documents in a moment; a reranker looks at them again, each
together with the query, and puts the best first. A decoder-only reranker reads query and
document as one text, and so every document anew for every query. An encoder-decoder need
not, as [KaLM-Reranker-V1](https://arxiv.org/abs/2606.22807) has shown on T5Gemma 2:

- the encoder reads a document, once; its states are pooled, four tokens to one by
  default, and kept;
- the decoder reads an instruction and the query, and looks at the pooled states;
- the score is the probability of "yes" against "no" at the decoder's last token.

This guide trains one to find, for the first line of a docstring, the rest of it.

The guide is written for one GPU of 16 GB and Gemma 2 2B. With `KERAS_ENCDEC_SMALL=1` the
same code runs on any CPU in about a minute, without network: a small model of docstrings
that ships with the package then takes Gemma's place, and sees fewer texts for fewer steps.
It says "True" and "False", as "yes" is no token of its own to it, and what it learns in so
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

import random

import keras
from keras_encdec.data import EncodedDocuments, docstrings
from keras_encdec.models import EncDecReranker
from keras_encdec.training import ListwiseSoftmax, PointwiseCrossEntropy, pretrained

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    PAIR, DTYPE, WORDS = "gemma2_mini_docs", None, ("True", "False")
    LENGTH, QUERY_LENGTH, CHARACTERS = 64, 64, 80
    PAIRS, HELD_OUT, NEGATIVES, BATCH_SIZE, RATE = 32, 16, 2, 8, 1e-3
else:
    PAIR, DTYPE, WORDS = "gemma2_2b_2b", "bfloat16", ("yes", "no")
    LENGTH, QUERY_LENGTH, CHARACTERS = 256, 64, 1000
    PAIRS, HELD_OUT, NEGATIVES, BATCH_SIZE, RATE = 4000, 200, 7, 4, 2e-4

keras.utils.set_random_seed(0)
chance = random.Random(0)

"""
## Queries and documents

Queries are summaries, and the document that answers is the body under it. Documents that
do not are bodies of others, drawn at random; a search's best wrong answers teach more.
"""


def drawn(docs, count):
    """Summaries and bodies."""
    pairs = [pair for doc in docs if (pair := doc.summary_and_body)]
    pairs = chance.sample(pairs, min(count, len(pairs)))
    summaries = [summary[:CHARACTERS] for summary, _ in pairs]
    return summaries, [body[:CHARACTERS] for _, body in pairs]


to_train_on, others = docstrings.load(["numpy", "keras"])
queries, answers = drawn(to_train_on, PAIRS)
held_out_queries, held_out = drawn(others, HELD_OUT)


def wrong(bodies, number):
    """Bodies that are not the one of this number."""
    rest = [body for body in dict.fromkeys(bodies) if body != bodies[number]]
    return chance.sample(rest, NEGATIVES)


data = {
    "query": queries,
    "positive": answers,
    "negatives": [wrong(answers, number) for number in range(len(answers))],
}
print(f"{len(queries)} queries to train on, {len(held_out_queries)} held out")

"""
## The reranker

`from_preset` takes whatever `keras_encdec.from_preset` takes: a pair that was adapted and
saved, a released T5Gemma, a recipe as here, or any decoder-only model. A pair that has not
been adapted has a cross-attention that has never seen a text: adapt it first, or give it
more to train on. The two words must be one token each.

In 16 GB the weights of Gemma 2 2B are kept as int8, and LoRA trains beside the
cross-attention, which trains whole.
"""

reranker = EncDecReranker.from_preset(
    PAIR,
    dtype=DTYPE,
    words=WORDS,
    pooling=4,
    encoder_sequence_length=LENGTH,
    decoder_sequence_length=QUERY_LENGTH,
)
if not SMALL:
    reranker.quantize("int8", filters=pretrained)
    reranker.backbone.enable_lora(16)


def optimizer():
    """Adafactor moves weights in bfloat16, which Adam's usual settings would not."""
    if SMALL:
        return keras.optimizers.AdamW(RATE, global_clipnorm=1.0)
    return keras.optimizers.Adafactor(RATE)


"""
How good is it? Each held-out query is asked of all held-out bodies; the mean of 1 / place
of the right one is the mean reciprocal rank. `score` takes pairs, `rank` one query and its
documents.
"""


def reciprocal_rank(documents):
    """Of the held-out queries, by documents or by what is kept of them."""
    found = 0.0
    for number, query in enumerate(held_out_queries):
        ranked = reranker.rank(query, documents)
        found += 1 / (1 + [document.index for document in ranked].index(number))
    return found / len(held_out_queries)


"""
## Training

By default the positive is chosen out of the documents of its query, all of them read in
one step. `RankNet` compares two at a time; `ListNet` takes graded answers, in a column
`score`. Losses are means over queries, whatever the batch.
"""

reranker.compile(optimizer(), ListwiseSoftmax())
reranker.fit(data, batch_size=BATCH_SIZE, verbose=2)

"""
Where documents come one by one, each with a label, they are learned one by one:
"""

labelled = {
    "query": queries + queries,
    "document": answers + [some[0] for some in data["negatives"]],
    "label": [1] * len(queries) + [0] * len(queries),
}
reranker.compile(optimizer(), PointwiseCrossEntropy())
reranker.fit(labelled, batch_size=2 * BATCH_SIZE, verbose=2)

"""
## Documents on disk

What the encoder makes of a document does not depend on the query. `encode_documents`
keeps it: `LENGTH / pooling` states of the encoder's width for each document, in shards
with checksums. A job that was killed goes on with the same call; states of other weights,
settings or texts are refused.
"""

store = reranker.encode_documents(held_out, "./documents")
print(f"{len(store)} documents kept")

print(f"mean reciprocal rank: {reciprocal_rank(store):.3f}")

query = held_out_queries[0]
print(f"\n{query}")
for index, score in reranker.rank(query, EncodedDocuments("./documents"), top=3):
    print(f"  {score:.3f}  {held_out[index][:60]!r}")

"""
From disk as from text:
"""

kept = reranker.rank(query, store)
read = reranker.rank(query, held_out)
apart = {document.index: document.score for document in kept}
print(f"at most {max(abs(apart[i] - score) for i, score in read):.1e} apart")

"""
## Save it

A preset holds the pair, pooling, words and instruction. It is still a pair:
`keras_encdec.from_preset` loads it as a model that writes.
"""

reranker.save_to_preset("./reranker")
again = EncDecReranker.from_preset("./reranker")
print("the same after loading:", again.rank(query, store, top=3) == kept[:3])
