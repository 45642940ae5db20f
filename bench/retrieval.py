"""Recall of docstrings by their summaries, before and after training, beside BM25.

    python bench/retrieval.py [--pairs 1024] [--epochs 2] [--documents 1000]
    python bench/retrieval.py --seeds 0 1 2 --models source=gemma2_mini_docs:causal ul2=FOLDER/ul2

A query is the one-line summary of a docstring, its document the rest. Training pairs are of the
files that `keras_encdec.data.docstrings` trains on; queries and their documents are of those it
holds out, and further documents, of training files that are in no pair, fill the corpus up. By
default two arms start from one decoder-only source: left causal, and as the encoder of a pair
before any adaptation, bidirectional. All get the same pairs, steps and rates; seeds change the
order. Prints one line.
"""

import argparse

import bm25s
import keras
import numpy as np

from keras_encdec.data import docstrings
from keras_encdec.models import EncDecTextEmbedder
from keras_encdec.progress import track
from keras_encdec.training import InBatchNCE

PACKAGES = "numpy", "scipy", "keras", "keras_hub", "jax"
TOP = 10
ARMS = "causal source=gemma2_tiny_docs:causal", "bidirectional encoder=gemma2_tiny_docs"


def task(options):
    """Training pairs; queries, corpus, and the documents of each query by number."""
    parts = [
        [d.summary_and_body for d in some if d.summary_and_body]
        for some in docstrings.load(PACKAGES, lambda files: track(files, "Reading docstrings"))
    ]
    order = np.random.default_rng(0).permutation(len(parts[0]))
    fit = [parts[0][i] for i in order]
    held = parts[1][: options.documents]
    filler = fit[options.pairs : options.pairs + options.documents - len(held)]
    corpus = list(dict.fromkeys(body for _, body in (*held, *filler)))
    place = {body: number for number, body in enumerate(corpus)}
    relevant = {}
    for summary, body in held:
        relevant.setdefault(summary, set()).add(place[body])
    # Trained on no pair that is asked for, nor on its document.
    pairs = [(s, b) for s, b in fit[: options.pairs] if s not in relevant and b not in place]
    return pairs, list(relevant), corpus, list(relevant.values())


def recall(scores, relevant):
    """Mean share of a query's documents among its TOP best; scores are (queries, documents)."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    shares = [len(some & set(row)) / len(some) for some, row in zip(relevant, best, strict=True)]
    return float(np.mean(shares))


def bm25(queries, corpus):
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(corpus, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(queries, return_ids=False, show_progress=False)
    return np.stack([retriever.get_scores(words) for words in asked])


def made(said, seed, length):
    """An embedder of `NAME=PRESET` or `NAME=PRESET:causal`."""
    preset, _, attention = said.partition("=")[2].partition(":")
    options = {"encoder_attention": attention} if attention else {}
    keras.utils.set_random_seed(seed)
    embedder = EncDecTextEmbedder.from_preset(preset, sequence_length=length, **options)
    embedder.preprocessor.seed = seed
    return embedder


def trained(embedder, measured, pairs, options):
    """Recall before and after training."""
    before = measured(embedder)
    steps = options.epochs * (len(pairs) // 64 + 1)
    rate = keras.optimizers.schedules.CosineDecay(options.rate, steps)
    embedder.compile(keras.optimizers.AdamW(rate, global_clipnorm=1.0), InBatchNCE())
    embedder.fit(pairs, batch_size=64, epochs=options.epochs, verbose=2)
    return before, measured(embedder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in {"pairs": 1024, "epochs": 2, "documents": 1000, "tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--models", nargs="+", default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rate", type=float, default=3e-4)
    options = parser.parse_args()
    pairs, queries, corpus, relevant = task(options)
    said = [f"BM25 {recall(bm25(queries, corpus), relevant):.3f}"]

    def measured(embedder):
        asked = embedder.encode_text(queries, "query")
        found = embedder.similarity(asked, embedder.encode_text(corpus, "document"))
        return recall(found, relevant)

    for model in options.models:
        runs = [
            trained(made(model, seed, options.tokens), measured, pairs, options)
            for seed in options.seeds
        ]
        before, after = np.mean(runs, axis=0)
        spread = np.std([last for _, last in runs], ddof=1) if len(runs) > 1 else np.nan
        said.append(f"{model.partition('=')[0]} {before:.3f} -> {after:.3f} +- {spread:.3f}")
        print(said[-1], flush=True)
    print(
        f"recall@{TOP}, {len(queries)} queries, {len(corpus)} documents, {len(pairs)} pairs x "
        f"{options.epochs}, seeds {options.seeds}: {' | '.join(said)}"
    )


if __name__ == "__main__":
    main()
