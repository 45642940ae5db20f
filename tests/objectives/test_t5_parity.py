"""Our input and target equal T5's on the same tokens and mask; see make_t5_reference.py."""

from pathlib import Path

import numpy as np
import pytest

from keras_encdec.objectives.span_corruption import corrupt, fill, noise_counts, side_lengths

REFERENCE = np.load(Path(__file__).with_name("t5_reference.npz"))
CASES = sorted({int(name.split("/")[0]) for name in REFERENCE.files if "/" in name})
# T5 counts down from the last id, without looking what it runs into.
SENTINELS = np.arange(32099, 32099 - 300, -1, dtype="int32")


@pytest.mark.parametrize("case", CASES)
def test_input_and_target(case):
    tokens, mask, inputs, targets = (
        REFERENCE[f"{case}/{name}"] for name in ("tokens", "mask", "inputs", "targets")
    )
    ours = corrupt(tokens, mask, SENTINELS)
    np.testing.assert_array_equal(ours[0], inputs)
    np.testing.assert_array_equal(ours[1], targets)


def test_counts_of_noise_tokens_and_spans():
    """T5's mask multiplies in float32, its length helper in float64; we are exact throughout.

    They may differ by a token where length times rate ends in one half.
    """
    assert len(REFERENCE["counts"]) > 1000
    for span, rate, length, noise, spans in REFERENCE["counts"]:
        ours = noise_counts(int(length), span, rate)
        if (length * rate) % 1 == 0.5 and np.float32(length) * np.float32(rate) % 1 != 0.5:
            assert abs(ours[0] - noise) <= 1
        else:
            assert ours == (noise, spans), (span, rate, length)


def test_windows_that_fill_the_input():
    """Save where T5's helper counts no span at all, and its input comes out one too long."""
    for span, rate, length, raw, targets in REFERENCE["fills"]:
        if round(round(raw * rate) / span) == 0:
            continue
        assert fill(int(length), int(length), span, rate) == raw
        assert side_lengths(int(raw), span, rate)[1] == targets
