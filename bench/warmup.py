"""What a warm-up of the cross-attention costs and brings, on `gemma2_tiny_mini`.

The pair is unbalanced, so its cross-attention starts from random weights. For each number
of warm-up steps K: held-out loss per target token along one PrefixLM run over the same
batches, and the time of a step in either phase.

    python bench/warmup.py --steps 300 --warmup 0 50 100
"""

import argparse
import statistics
import time

import keras

import keras_encdec
from keras_encdec.data import batches, docstrings, tokenize
from keras_encdec.progress import track
from keras_encdec.training import CrossAttentionWarmup

PACKAGES = ("numpy", "keras", "scipy", "jax")
HALF, ROWS = 64, 16


class Clock(keras.callbacks.Callback):
    """Seconds of each step."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])
        self.seconds.append(time.perf_counter() - self.start)


def run(texts, held_out, steps, parts, warmup, rate):
    """Held-out losses after each part, and medians of seconds per step by phase."""
    keras.utils.set_random_seed(0)
    lm = keras_encdec.from_preset("gemma2_tiny_mini")
    lm.preprocessor.encoder_sequence_length = lm.preprocessor.decoder_sequence_length = HALF
    lm.compile(keras.optimizers.AdamW(rate, beta_2=0.98, global_clipnorm=1.0))
    tokens = tokenize(texts, lm.preprocessor.tokenizer)
    data = batches(tokens, lm.preprocessor, ROWS, steps=steps)
    clock = Clock()
    callbacks = [clock, *([CrossAttentionWarmup(warmup)] if warmup else [])]
    losses = [evaluate(lm, held_out)]
    for i in range(parts):
        part = data[i * steps // parts : (i + 1) * steps // parts]
        lm.fit(part, verbose=0, callbacks=callbacks)
        losses.append(evaluate(lm, held_out))
    first, rest = clock.seconds[:warmup], clock.seconds[warmup:]
    return losses, [statistics.median(s) if s else float("nan") for s in (first, rest)]


def evaluate(lm, texts):
    x, y, weight = lm.preprocessor(texts)
    return lm.evaluate(x, y, sample_weight=weight, batch_size=32, verbose=0, return_dict=True)[
        "loss"
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--warmup", type=int, nargs="+", default=[0, 50, 100])
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    training, held_out = docstrings.load(PACKAGES, lambda files: track(files, "Reading"))
    texts, others = [d.text for d in training], [d.text for d in held_out[:150]]
    places = [i * options.steps // options.parts for i in range(options.parts + 1)]
    print("held-out nats per target token at step", *places)
    for warmup in options.warmup:
        losses, (first, rest) = run(
            texts, others, options.steps, options.parts, warmup, options.rate
        )
        shown = " ".join(f"{loss:.3f}" for loss in losses)
        ratio = f"warm-up step {first / rest:.2f} of a full one" if warmup else ""
        print(f"warmup K={warmup}: {shown} | {rest:.3f} s a step {ratio}", flush=True)


if __name__ == "__main__":
    main()
