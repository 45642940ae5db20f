"""Packing: every example in one row, none too full, little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_encdec.objectives.packing import GROUP, pack

LENGTHS = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 32)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS)
def test_every_example_is_in_one_row_that_holds_it(lengths):
    rows = list(pack(np.array(lengths).reshape(-1, 2), (64, 32)))
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert np.all(np.sum([lengths[i] for i in row], axis=0) <= (64, 32))


def log_normal(count, seed):
    drawn = np.random.default_rng(seed).lognormal(np.log(120), 0.9, 2 * count).round()
    return drawn[(drawn >= 2) & (drawn <= 1024)][:count].astype(int)


PAIRS = {
    "as long": lambda n: np.repeat(log_normal(n, 0)[:, None], 2, axis=1),
    "within a half": lambda n: (log_normal(n, 0)[:, None] + [[0, 1]]) // 2,
    "apart": lambda n: np.stack([log_normal(n, 0), log_normal(n, 1)], axis=1),
}
ROOM = {"as long": 1024, "within a half": 512, "apart": 1024}


@pytest.mark.parametrize("kind", PAIRS)
def test_padding_waste_on_log_normal_lengths(kind):
    lengths = PAIRS[kind](2 * GROUP)
    rows = list(pack(lengths, (ROOM[kind],) * 2))
    waste = 1 - lengths.sum() / (2 * ROOM[kind] * len(rows))
    unpacked = 1 - lengths.sum() / (2 * lengths.max() * len(lengths))
    assert waste < 0.05 < 0.8 < unpacked


def test_rows_stay_near_their_order():
    rows = list(pack(np.full((3 * GROUP, 2), 10), (64, 64)))
    assert all(max(row) // GROUP == min(row) // GROUP for row in rows)


def test_an_example_larger_than_a_row():
    with pytest.raises(ValueError, match=r"Expected examples that fit .*example 1 of \(3, 40\)"):
        list(pack(np.array([[1, 1], [3, 40]]), (64, 32)))
