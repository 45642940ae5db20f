"""Who sees whom, written out: windows, padding on either side, queries that stand at an index."""

import numpy as np
import pytest

from keras_encdec.layers import masks


def drawn(mask):
    """A (T, S) mask as rows of `x` (sees) and `.` (does not)."""
    return ["".join(".x"[int(seen)] for seen in row) for row in np.asarray(mask)]


def no_padding(length):
    return np.ones((1, length), "int32")


@pytest.mark.parametrize(
    ("causal", "window", "expected"),
    [
        (True, None, ["x....", "xx...", "xxx..", "xxxx.", "xxxxx"]),
        (True, 3, ["x....", "xx...", "xxx..", ".xxx.", "..xxx"]),
        (True, 1, ["x....", ".x...", "..x..", "...x.", "....x"]),
        (False, None, ["xxxxx"] * 5),
        (False, 3, ["xxx..", "xxxx.", "xxxxx", ".xxxx", "..xxx"]),
        (False, 1, ["x....", ".x...", "..x..", "...x.", "....x"]),
    ],
)
def test_window_counts_the_query_itself(causal, window, expected):
    mask = masks.self_attention(no_padding(5), causal=causal, window=window)
    assert np.asarray(mask).dtype == bool
    assert drawn(mask[0]) == expected


def test_padding_is_seen_by_none_and_differs_by_row():
    padding_mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    causal = masks.self_attention(padding_mask, causal=True)
    bidirectional = masks.self_attention(padding_mask, causal=False, window=2)
    assert drawn(causal[0]) == ["x...", "xx..", "xxx.", "...."]
    assert drawn(causal[1]) == ["....", ".x..", ".xx.", ".xxx"]
    assert drawn(bidirectional[0]) == ["xx..", "xxx.", ".xx.", "...."]
    assert drawn(bidirectional[1]) == ["....", ".xx.", ".xxx", "..xx"]


def test_query_index_picks_rows_of_the_full_mask():
    padding_mask = np.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]])
    for causal in (True, False):
        full = np.asarray(masks.self_attention(padding_mask, causal=causal, window=2))
        query_index = np.array([1, 3], "int32")
        part = masks.self_attention(padding_mask, causal=causal, window=2, query_index=query_index)
        np.testing.assert_array_equal(part, full[:, [1, 3]])


def test_query_index_with_a_window_written_out():
    query_index = np.array([2, 3, 4], "int32")
    mask = masks.self_attention(no_padding(6), causal=True, window=3, query_index=query_index)
    assert drawn(mask[0]) == ["xxx...", ".xxx..", "..xxx."]


def test_cross_attention_sees_every_token_and_no_padding():
    padding_mask = np.array([[1, 1, 0], [0, 0, 0]])
    mask = masks.cross_attention(padding_mask, np.array([[1, 0], [1, 1]]))
    assert np.asarray(mask).dtype == bool
    assert drawn(mask[0]) == ["xx.", "..."]
    assert drawn(mask[1]) == ["...", "..."]
    assert drawn(masks.cross_attention(padding_mask)[0]) == ["xx."]


def test_a_segment_sees_itself_only():
    segments = np.array([[1, 1, 2, 2, 2, 0]])
    causal = masks.self_attention(segments, causal=True)
    assert drawn(causal[0]) == ["x.....", "xx....", "..x...", "..xx..", "..xxx.", "......"]
    bidirectional = masks.self_attention(segments, causal=False, window=2)
    assert drawn(bidirectional[0]) == ["xx....", "xx....", "..xx..", "..xxx.", "...xx.", "......"]
    cross = masks.cross_attention(segments, np.array([[1, 2, 2, 3]]))
    assert drawn(cross[0]) == ["xx....", "..xxx.", "..xxx.", "......"]


def test_positions_start_again_in_each_segment():
    segments = np.array([[1, 1, 2, 3, 3, 3, 0, 0], [0, 1, 1, 1, 0, 2, 2, 0]], "int32")
    found = np.asarray(masks.positions(segments))
    expected = np.array([[0, 1, 0, 0, 1, 2, 9, 9], [9, 0, 1, 2, 9, 0, 1, 9]])
    np.testing.assert_array_equal(found[segments > 0], expected[segments > 0])
    assert found.min() >= 0


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_positions_count_from_the_first_token(dtype):
    padding_mask = np.array(
        [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype
    )
    real = padding_mask.astype(bool)
    found = np.asarray(masks.positions(padding_mask))
    expected = np.array(
        [[0, 1, 2, 3, 4], [0, 1, 2, 9, 9], [9, 9, 0, 1, 2], [9, 0, 1, 9, 9], [9] * 5]
    )
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[real], expected[real])
    assert found.min() >= 0
