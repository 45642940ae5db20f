"""Documents to windows: nothing lost, nothing twice, and no document matters to another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_encdec.objectives import UL2, Mixture, PrefixLM, SpanCorruption
from keras_encdec.objectives.windows import cut

OBJECTIVES = [PrefixLM(), SpanCorruption(), UL2(), Mixture([PrefixLM(), UL2("ul2r")], [3, 1])]
SIZES = st.lists(st.integers(0, 3000), max_size=30)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
@pytest.mark.parametrize("cross", [False, True])
@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**32))
def test_windows_follow_one_another(objective, cross, sizes, seed):
    windows = cut(sizes, objective, 64, 48, seed, cross)
    assert windows.lengths.sum() + windows.dropped == sum(sizes)
    assert windows.dropped <= (1 if cross else len(sizes))
    assert np.all(windows.lengths >= 2)
    gaps = windows.starts[1:] - windows.starts[:-1] - windows.lengths[:-1]
    assert np.all(gaps >= 0)
    assert gaps.sum() <= windows.dropped
    assert len(set(windows.seeds.tolist())) == len(windows)
    most = objective.raw_lengths(64, 48, windows.seeds)
    assert np.all(windows.lengths <= most)
    if not cross:  # a shorter window ends its document
        ends = np.cumsum(sizes)
        short = windows.lengths < most
        assert np.isin((windows.starts + windows.lengths)[short], ends).all()


def test_a_document_is_cut_alike_beside_others():
    alone = cut([700], UL2(), 64, 64, 5, first=2)
    beside = cut([300, 10, 700, 90], UL2(), 64, 64, 5)
    inside = (beside.starts >= 310) & (beside.starts < 1010)
    np.testing.assert_array_equal(beside.starts[inside] - 310, alone.starts)
    np.testing.assert_array_equal(beside.seeds[inside], alone.seeds)


@pytest.mark.parametrize(
    ("length", "sizes"), [(10, [4, 4, 2]), (9, [4, 4]), (4, [4]), (1, []), (0, [])]
)
def test_halves(length, sizes):
    assert cut([length], PrefixLM(), 2, 2, 0).lengths.tolist() == sizes


def test_crossing_documents_fills_every_window_but_the_last():
    windows = cut([100] * 50, SpanCorruption(), 64, 64, 0, cross_documents=True)
    assert len(set(windows.lengths[:-1].tolist())) == 1
    assert len(windows) < len(cut([100] * 50, SpanCorruption(), 64, 64, 0))
