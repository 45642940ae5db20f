"""How far a student is from its teacher where it writes itself: taught on labels, or on that.

    python bench/on_policy.py --steps 300

The student is a pair, first trained on labels for `--start` steps; the teacher a decoder-only model
of the same tokenizer. Docstrings by PrefixLM: the first 48 tokens of a window to write the next 24
from. From that start two arms go on for as many steps, at the same rate, on the same rows, by the
reverse divergence: `labels` on the texts, `own` on what the student writes
(`Distillation(on_policy=...)`).

Printed is, at the start and behind each arm, KL(student || teacher) per token, exact at each token,
on what the student itself then draws to held-out inputs at temperature 1: the mean and its standard
error over inputs; and the held-out loss on labels. The last line can be compared: what share each
arm took off the start, and how far `own` is below `labels`.
"""

import argparse

import keras
import keras_hub
import numpy as np

import keras_encdec
from keras_encdec.data import docstrings
from keras_encdec.progress import track
from keras_encdec.sharing import catalog
from keras_encdec.training import Distillation

PACKAGES = "numpy", "keras"
READ, WRITE, TOGETHER = 48, 24, 32


def student(preset):
    keras.utils.set_random_seed(0)
    lm = keras_encdec.from_preset(preset)
    lm.preprocessor.encoder_sequence_length = READ
    lm.preprocessor.decoder_sequence_length = WRITE
    return lm


def whole_windows(lm, texts, count):
    """Whole windows of the beginnings of some texts, drawn without order."""
    texts = [text[:1000] for text in texts if len(text) > 1000]
    x, y, weight = lm.preprocessor(texts)
    whole = np.flatnonzero(np.asarray(weight).all(axis=1))
    some = np.random.default_rng(0).permutation(whole)[:count]
    return {name: a[some] for name, a in x.items()}, y[some], weight[some]


def train(lm, texts, steps, options, distillation=None):
    """On the same rows, in the same order, whatever the arm."""
    rate = keras.optimizers.schedules.CosineDecay(options.rate, steps)
    optimizer = keras.optimizers.AdamW(rate, global_clipnorm=1.0)
    lm.compile(optimizer, distillation=distillation, sampler="random")
    lm.fit(texts, batch_size=options.batch, steps_per_epoch=steps, verbose=0)


def log_softmax(logits):
    logits = logits.astype("float64")
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def reverse_kl(lm, teacher, x):
    """KL(student || teacher), summed over the tokens drawn to each input, and their number."""
    start = {name: a[:, :1] if name.startswith("decoder") else a for name, a in x.items()}
    drawn = lm.generate(start, max_length=WRITE + 1, seed=1)
    ids, there = drawn["decoder_token_ids"], drawn["decoder_padding_mask"]
    x = x | {"decoder_token_ids": ids[:, :-1], "decoder_padding_mask": there[:, 1:]}
    labels, asked, sums = ids[:, 1:], Distillation(teacher), []
    for first in range(0, len(ids), TOGETHER):
        some = slice(first, first + TOGETHER)
        part = {name: np.asarray(a[some], "int32") for name, a in x.items()}
        targets = asked.teacher_targets(part, np.asarray(labels[some], "int32"))
        theirs = keras.ops.convert_to_numpy(targets.chunk(*targets.inputs)[0])
        q, p = log_softmax(np.array(lm.predict_on_batch(part))), log_softmax(theirs)
        sums.append(((np.exp(q) * (q - p)).sum(axis=-1) * part["decoder_padding_mask"]).sum(axis=1))
    return np.concatenate(sums), np.asarray(there[:, 1:]).sum(axis=1)


def mean(sums, counts):
    """Per token, and its standard error over inputs (a ratio's, by its linear part)."""
    found = sums.sum() / counts.sum()
    return found, np.std(sums - found * counts) / np.mean(counts) / len(sums) ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"start": 150, "steps": 300, "batch": 16, "inputs": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--on-policy", type=float, default=1.0)
    parser.add_argument("--student", default="gemma2_tiny_tiny")
    parser.add_argument("--teacher", default="gemma2_mini_docs")
    options = parser.parse_args()
    training, held = docstrings.load(PACKAGES, lambda files: track(files, "Reading"))
    texts = [d.text for d in training]
    teacher = keras_hub.models.CausalLM.from_preset(catalog.embedded(options.teacher))
    lm = student(options.student)
    x, y, weight = whole_windows(lm, [d.text for d in held], options.inputs)

    def measure(arm):
        sums, counts = reverse_kl(lm, teacher, x)
        kl, error = mean(sums, counts)
        loss = lm.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)["loss"]
        drawn = f"{counts.mean():.1f} drawn"
        print(f"{arm:6s} {kl:.4f} ± {error:.4f}, loss {loss:.3f}, {drawn}", flush=True)
        return kl

    train(lm, texts, options.start, options)
    at_start, begun = measure("start"), lm.get_weights()
    fell = {}
    for arm, share in {"labels": 0.0, "own": options.on_policy}.items():
        lm.set_weights(begun)
        own = Distillation(teacher, divergence="reverse", on_policy=share)
        train(lm, texts, options.steps, options, own)
        fell[arm] = measure(arm)
    shares = {arm: 100 * (1 - kl / at_start) for arm, kl in fell.items()}
    below = 100 * (1 - fell["own"] / fell["labels"])
    print(
        f"reverse KL on own samples after {options.steps} steps: labels -{shares['labels']:.1f}%, "
        f"own -{shares['own']:.1f}%; own below labels by {below:.1f}%"
    )


if __name__ == "__main__":
    main()
