"""Asks transformers, through lm-eval's own HFLM, what `keras_encdec.evaluation.LM` is asked.

The embedded pair is exported in the T5Gemma layout and loaded by lm-eval's `hf` model with
`backend="seq2seq"` in float32. Contexts and continuations are pieces of held-out docstrings,
contexts of at most 120 tokens: behind the encoder's window of 128 transformers sees one token
more than the release (`keras_encdec.layers.masks`). Prints how far ours is on 500 continuations,
and writes the first of them, with texts and windows, to lm_eval_seq2seq.npz. Texts are asked
of HFLM with a `max_length`, as it would else write as many tokens more as the context has; the
beginnings that it writes are asked for again as continuations, which are then greedy. Run with
`python make_lm_eval_reference.py` where keras_encdec with its extra `eval`, lm-eval 0.4.13,
transformers 5.23, torch 2.13 (CPU) and accelerate are installed with pip.
"""

import os
import random
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import keras_encdec
from keras_encdec.data import docstrings
from keras_encdec.evaluation import LM

HERE = Path(__file__).parent
COUNT, KEPT, TEXTS, WINDOWS = 500, 60, 20, 4
MOST = 24  # tokens of a text
WINDOW = 128  # targets of a window
LONGEST = 120


def instance(kind, *args):
    return Instance(kind, {}, args, 0, ("docstrings", 0, 1))


def pieces(tokenizer, count, seed=0):
    """`(context, continuation)` as words of docstrings, of many lengths."""
    _, held_out = docstrings.load(("keras", "numpy", "jax"))
    rng, found = random.Random(seed), []
    while len(found) < count:
        words = rng.choice(held_out).text.split(" ")
        if len(words) < 12:
            continue
        start = rng.randrange(len(words) - 10)
        cut = rng.randint(1, 60)
        context = " ".join(words[start : start + cut])
        rest = words[start + cut : start + cut + rng.randint(1, 12)]
        continuation = " " + " ".join(rest)
        fits = 0 < len(tokenizer(context)) <= LONGEST and context.strip() and "".join(rest).strip()
        if fits and context == context.rstrip():
            found.append((context, continuation))
    return found


def asked(pairs):
    """Requests of all three kinds."""
    long = [f"{context}{continuation}" for context, continuation in pairs]
    how = {"until": ["\n"], "max_gen_toks": MOST, "do_sample": False}
    whole = [" ".join(long[i * 8 : i * 8 + 8]) for i in range(WINDOWS)]
    return {
        "loglikelihood": [instance("loglikelihood", *pair) for pair in pairs],
        "loglikelihood_rolling": [instance("loglikelihood_rolling", text) for text in whole],
        "generate_until": [
            instance("generate_until", context, dict(how)) for context, _ in pairs[:TEXTS]
        ],
    }


def theirs(lm, folder, batch_size=16):
    """lm-eval's `hf` model of our export."""
    lm.export_to_transformers(folder)
    return HFLM(
        pretrained=str(folder),
        backend="seq2seq",
        device="cpu",
        dtype="float32",
        max_length=WINDOW,
        batch_size=batch_size,
    )


def texts_of(other, requests):
    """What HFLM writes in as many tokens as were asked for; with them stands a start token."""
    asked = [(r.args[0], {**r.args[1], "max_length": 1 + MOST}) for r in requests]
    return other.generate_until([instance("generate_until", *args) for args in asked])


def greedy_pairs(contexts, texts):
    """The first words of texts as continuations, and the same with another last word."""
    found = []
    for context, text in zip(contexts, texts, strict=True):
        begin = " ".join(text.split(" ")[:3])
        if begin.strip() and context == context.rstrip():
            found += [(context, begin), (context, f"{begin} x")]
    return found


def main():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.preprocessor.decoder_sequence_length = WINDOW
    pairs = pieces(lm.preprocessor.tokenizer, COUNT)
    requests = asked(pairs)
    ours = LM(lm, max_length=WINDOW)
    with tempfile.TemporaryDirectory() as folder:
        other = theirs(lm, Path(folder) / "export")
        texts = texts_of(other, requests["generate_until"])
        pairs = [*greedy_pairs([context for context, _ in pairs[:TEXTS]], texts), *pairs][:COUNT]
        requests["loglikelihood"] = asked(pairs)["loglikelihood"]
        kinds = "loglikelihood", "loglikelihood_rolling"
        expected = {kind: getattr(other, kind)(requests[kind]) for kind in kinds}
    found = {kind: getattr(ours, kind)(some) for kind, some in requests.items()}
    totals, greedy = (np.array(each) for each in zip(*expected["loglikelihood"], strict=True))
    mine, also = (np.array(each) for each in zip(*found["loglikelihood"], strict=True))
    rolled = np.array(expected["loglikelihood_rolling"])
    print(
        f"{COUNT} continuations: largest difference {np.abs(totals - mine).max():.1e}, "
        f"greedy alike {np.mean(greedy == also):.1%} of {greedy.mean():.1%}"
    )
    far = np.abs(rolled - np.array(found["loglikelihood_rolling"])).max()
    alike = np.mean([a == b for a, b in zip(texts, found["generate_until"], strict=True)])
    print(f"{WINDOWS} texts in windows: {far:.1e}; texts alike: {alike:.1%}")
    np.savez_compressed(
        HERE / "lm_eval_seq2seq.npz",
        pairs=np.array(pairs[:KEPT]),
        totals=totals[:KEPT],
        greedy=greedy[:KEPT],
        long=np.array([request.args[0] for request in requests["loglikelihood_rolling"]]),
        rolled=rolled,
        contexts=np.array([request.args[0] for request in requests["generate_until"]]),
        texts=np.array(texts),
    )


if __name__ == "__main__":
    main()
