"""Makes t5_reference.npz: what T5's own preprocessors make of given tokens and masks.

Run in an environment of its own:

    uv venv --python 3.11 t5-env
    uv pip install --python t5-env/bin/python t5==0.9.4 "setuptools<80"
    t5-env/bin/python tests/objectives/make_t5_reference.py
"""

from pathlib import Path

import numpy as np
import seqio
import t5.data.preprocessors as t5
import tensorflow as tf

VOCABULARY_SIZE = 32100
DENOISERS = [(3, 0.15), (8, 0.15), (12, 0.5), (3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)]
LENGTHS = [2, 3, 7, 20, 333, 568]
MASKED_AT_RANDOM = [(5, 0.5), (40, 0.1), (40, 0.5), (40, 0.9)]
COUNTED = [*range(2, 200), 512, 1000, 1023, 2345, 4095, 8192, 9101, 16130, 16384]
FILLED = [16, 64, 128, 512, 1024, 4096, 8192, 16384]


def span_mask(length, mean_span, rate, seed=0):
    seeds = tf.constant([[seed, 1], [seed, 2]])
    return t5.random_spans_noise_mask(length, rate, seeds, mean_span).numpy()


def masks(rng):
    for span, rate in DENOISERS:
        for length in LENGTHS:
            yield span_mask(length, span, rate, seed=length)
    for length, rate in MASKED_AT_RANDOM:  # also such as no denoiser makes
        yield rng.random(length) < rate


def main():
    rng = np.random.default_rng(0)
    vocabulary = seqio.PassThroughVocabulary(VOCABULARY_SIZE)
    arrays = {}
    for i, mask in enumerate(masks(rng)):
        tokens = rng.integers(3, VOCABULARY_SIZE - 300, len(mask)).astype("int32")
        inputs = t5.noise_span_to_unique_sentinel(tokens, mask, vocabulary, None)
        targets = t5.nonnoise_span_to_unique_sentinel(tokens, mask, vocabulary, None)
        arrays |= {f"{i}/tokens": tokens, f"{i}/mask": mask}
        arrays |= {f"{i}/inputs": inputs.numpy(), f"{i}/targets": targets.numpy()}
    counts, fills = [], []
    for span, rate in DENOISERS:
        for length in COUNTED:
            mask = span_mask(length, span, rate)
            starts = np.flatnonzero(mask & ~np.append(False, mask[:-1]))
            counts.append((span, rate, length, mask.sum(), len(starts)))
        for length in FILLED:
            raw, targets = t5.random_spans_helper(length, rate, span, 1, 1)
            fills.append((span, rate, length, raw, targets))
    path = Path(__file__).with_name("t5_reference.npz")
    np.savez_compressed(path, counts=counts, fills=fills, **arrays)


main()
