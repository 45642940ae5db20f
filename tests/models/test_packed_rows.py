"""Several examples in a row give the numbers that each gives alone."""

import numpy as np
import pytest

from keras_encdec.objectives import Example
from keras_encdec.objectives.rows import Rows
from keras_encdec.testing.models import VOCABULARY, assert_close, run, tiny_lm

# Longer than two windows, shorter than one, and a single token.
LENGTHS = [(24, 3), (9, 20), (1, 1), (30, 18), (5, 7), (13, 1), (2, 2)]
ROWS = Rows(source=40, target=30, start=2, end=1, source_pad=0, target_pad=0)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    drawn = [[rng.integers(3, VOCABULARY, n).astype("int32") for n in pair] for pair in LENGTHS]
    return [Example(source, target, ends=i % 2 == 0) for i, (source, target) in enumerate(drawn)]


def logits_and_labels(rows):
    """Of each example of each row, row after row, from a single forward."""
    x, y, weight = ROWS.batch(rows)
    logits, mask = run(tiny_lm(), x), x["decoder_padding_mask"]
    assert np.array_equal(weight, mask > 0)
    places = [(i, row == n) for i, row in enumerate(mask) for n in range(1, row.max() + 1)]
    return [(logits[i][at], y[i][at]) for i, at in places]


@pytest.mark.slow
def test_packed_equals_unpacked(examples):
    """And in the other order, where everything stands at other places."""
    plan = ROWS.plan(examples)
    assert len(plan) < len(examples) / 2
    backwards = [row[::-1] for row in plan]
    order = [i for row in plan + backwards for i in row]
    rows = [[examples[i] for i in row] for row in plan + backwards]
    found = logits_and_labels([*rows, *([example] for example in examples)])
    alone = found[len(order) :]
    for index, (logits, labels) in zip(order, found[: len(order)], strict=True):
        assert_close(logits, alone[index][0])
        assert labels.tolist() == alone[index][1].tolist()


@pytest.mark.slow
def test_a_neighbour_is_not_seen(examples):
    """The test above needs masks that tell segments apart: without, it would not hold."""
    lm = tiny_lm()
    x, _, _ = ROWS.batch([[examples[1], examples[4]]])
    joined = {**x, **{key: np.minimum(x[key], 1) for key in x if key.endswith("mask")}}
    both = run(lm, {key: np.concatenate([x[key], joined[key]]) for key in x})
    second = x["decoder_padding_mask"][0] == 2
    assert np.abs(both[0][second] - both[1][second]).max() > 1e-3
