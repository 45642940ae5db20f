"""lm-eval through keras_encdec.evaluation.LM beside its own HFLM, on one export of one pair.

    python bench/harness.py
    python bench/harness.py --preset gemma2_tiny_mini --requests 200 --texts 32

The pair is exported in the T5Gemma layout and loaded by lm-eval's `hf` model
(`backend="seq2seq"`, float32, torch on as many threads as there are cores). Requests are made of
held-out docstrings as multiple-choice tasks make them: a body of 20 to 120 tokens, four summaries
each. Texts go on behind as many bodies, up to 32 tokens; HFLM is given a max_length, as it would
else write as many tokens more as the context has. Both get the same batch size; in each
round both are asked, ours first. "cold" is ours with all of its compilation, once, in a process
that has compiled nothing; the ratios, of medians over rounds, are of calls after it. The answers
are compared, too. The last number of a line can be compared.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import keras_encdec
from keras_encdec.data import docstrings
from keras_encdec.evaluation import LM
from keras_encdec.evaluation.harness_answers import Answers

WINDOW = 128


def documents(tokenizer, count):
    """`(body, four summaries)`: the right one and three of others."""
    pairs = [pair for doc in docstrings.load()[0] if (pair := doc.summary_and_body)]
    rng = random.Random(0)
    rng.shuffle(pairs)
    for summary, body in pairs[:count]:
        ids = [int(i) for i in tokenizer(body)][: rng.randint(20, WINDOW - 8)]
        others = [rng.choice(pairs)[0] for _ in range(3)]
        yield tokenizer.detokenize(ids).strip(), [summary, *others]


def instances(kind, each):
    return [Instance(kind, {}, args, 0, ("docstrings", 0, 1)) for args in each]


def timed(function, requests):
    start = time.perf_counter()
    found = function(requests)
    return time.perf_counter() - start, found


def rounds(ours, theirs, kind, requests, count, same):
    """Seconds of a first call of ours, medians of both, and what both found."""

    def anew(some):
        ours._answers = Answers()  # or nothing would be asked twice
        return getattr(ours, kind)(some)

    cold, found = timed(anew, requests)
    seconds: dict = {"ours": [], "theirs": []}
    for _ in range(count):
        seconds["ours"].append(timed(anew, requests)[0])
        spent, expected = timed(getattr(theirs, kind), same)
        seconds["theirs"].append(spent)
    return cold, *(statistics.median(each) for each in seconds.values()), found, expected


def report(name, cold, mine, other, agreement):
    print(
        f"lm_eval {name}: ours {mine:.1f} s (cold {cold:.1f} s), HFLM {other:.1f} s, {agreement}, "
        f"cold {other / cold:.2f}x, {other / mine:.2f}x",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="gemma2_tiny_tiny")
    parser.add_argument("--requests", type=int, default=1000, help="of loglikelihood, 4 a context")
    parser.add_argument("--texts", type=int, default=64, help="of generate_until")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pair = keras_encdec.from_preset(options.preset)
    mine = LM(pair, max_length=WINDOW, batch_size=options.batch_size)
    every = list(documents(pair.preprocessor.tokenizer, max(options.requests // 4, options.texts)))
    scored = [(body, f" {choice}") for body, choices in every for choice in choices]
    scored = instances("loglikelihood", scored[: options.requests])
    how = {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False}
    written = [(f"{body}\nSummary:", dict(how)) for body, _ in every[: options.texts]]
    written = instances("generate_until", written)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export"
        pair.export_to_transformers(path)
        how = {"backend": "seq2seq", "device": "cpu", "dtype": "float32", "max_length": WINDOW}
        other = HFLM(pretrained=str(path), batch_size=options.batch_size, **how)
        kind = "loglikelihood"
        cold, *seconds, found, expected = rounds(mine, other, kind, scored, options.rounds, scored)
        far = np.abs(np.array(found)[:, 0] - np.array(expected)[:, 0]).max()
        report(f"loglikelihood of {len(scored)}", cold, *seconds, f"largest difference {far:.0e}")
        kind, same = (
            "generate_until",
            [(r.args[0], {**r.args[1], "max_length": 33}) for r in written],
        )
        same = instances(kind, same)
        cold, *seconds, found, expected = rounds(mine, other, kind, written, options.rounds, same)
        alike = np.mean([a == b for a, b in zip(found, expected, strict=True)])
        report(f"generate_until of {len(written)}", cold, *seconds, f"texts alike {alike:.0%}")


if __name__ == "__main__":
    main()
