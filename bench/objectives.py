"""Tokens per second of span corruption and UL2, beside T5's own preprocessor.

    python bench/objectives.py --t5-python t5-env/bin/python

Both make examples of the same 20,000 documents of log-normal lengths (13.6 million
tokens), crossing documents, at 512 tokens of input; each is run in turn, in a process
of its own, and the medians are compared. t5-env is the environment that
tests/objectives/make_t5_reference.py names. Last comes raw text: docstrings through the
tokenizer to packed batches, with the tokenizer's share of the time.
"""

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np

LENGTH, VOCABULARY = 512, 32000
RUNS = ("span corruption", "ul2", "t5 span corruption")


def documents():
    """Token ids of each document."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(400), 1.03, 20000), 2, 65536).astype(int)
    return [rng.integers(200, VOCABULARY - 200, n).astype("int32") for n in lengths]


def count_ours(docs, name):
    """Tokens and seconds."""
    from keras_encdec.objectives import UL2, SpanCorruption
    from keras_encdec.objectives.windows import cut

    start = time.perf_counter()
    objective = UL2() if name == "ul2" else SpanCorruption(3, 0.15)
    stream = np.concatenate(docs)
    lengths = [len(doc) for doc in docs]
    windows = cut(lengths, objective, LENGTH, LENGTH, seed=0, cross_documents=True)
    seen = 0
    for index in range(len(windows)):
        window, example = windows.example(index, stream, objective)
        seen += len(window)
        assert len(example.inputs) <= LENGTH
    return seen, time.perf_counter() - start


def count_theirs(docs):
    """Tokens and seconds."""
    import seqio
    import t5.data.preprocessors as t5
    import tensorflow as tf

    feature = seqio.Feature(seqio.PassThroughVocabulary(VOCABULARY), add_eos=True)
    ragged = tf.RaggedTensor.from_row_lengths(np.concatenate(docs), [len(doc) for doc in docs])
    data = tf.data.Dataset.from_tensor_slices(ragged).map(lambda doc: {"targets": doc})
    start = time.perf_counter()
    data = t5.span_corruption(
        data,
        {"inputs": LENGTH, "targets": LENGTH},
        {"inputs": feature, "targets": feature},
    )
    seen = 0
    for example in data.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        sentinels = np.sum(example["targets"] > VOCABULARY - 200)
        seen += len(example["inputs"]) + len(example["targets"]) - 2 * sentinels
    return seen, time.perf_counter() - start


def one_run(name):
    """Runs in a process of its own; prints tokens and seconds, imports left out."""
    docs = documents()
    print(*(count_theirs(docs) if name.startswith("t5") else count_ours(docs, name)))


def rate(python, name):
    command = [python, __file__, "--run", name]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seen, seconds = output.split()[-2:]
    return int(seen) / float(seconds)


def raw_text():
    """Docstrings to batches: documents per second, and what part is the tokenizer's."""
    from keras_hub.models import Tokenizer

    from keras_encdec.data import batches, docstrings, tokenize
    from keras_encdec.data.pipeline import READ_AHEAD
    from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
    from keras_encdec.sharing import catalog

    tokenizer = Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    texts = [doc.text for doc in docstrings.load(("numpy", "keras", "scipy", "jax"))[0]]
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, LENGTH, LENGTH, objective="ul2")
    preprocessor.cross_documents = True
    start = time.perf_counter()
    tokens = tokenize(texts, tokenizer)
    tokenised = time.perf_counter()
    for batch in batches(tokens, preprocessor, 32).to_iter_dataset(READ_AHEAD):  # as in fit
        assert len(batch[1]) == 32
    end = time.perf_counter()
    share = (tokenised - start) / (end - start)
    print(
        f"raw text to UL2 batches: {len(tokens) / (end - start) / 1e6:.2f} million tokens/s "
        f"({len(texts)} docstrings, {len(tokens) / 1e6:.2f} million tokens), "
        f"of the time {share:.0%} in the tokenizer"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--t5-python", help="of an environment with t5==0.9.4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        one_run(arguments.run)
        return
    pythons = {
        name: arguments.t5_python if name.startswith("t5") else sys.executable for name in RUNS
    }
    rates = {name: [] for name in RUNS if pythons[name]}
    for _ in range(arguments.repeats):
        for name in rates:
            rates[name].append(rate(pythons[name], name))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    theirs = medians.get(RUNS[-1])
    for name, value in medians.items():
        ratio = f", {value / theirs:.1f} x T5" if theirs else ""
        print(f"{name}: {value / 1e6:.2f} million tokens/s{ratio}")
    raw_text()


if __name__ == "__main__":
    main()
