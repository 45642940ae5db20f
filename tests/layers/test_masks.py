"""Who sees whom, written out: windows, padding on either side, queries that stand at an index."""

import numpy as np
import pytest
from keras import ops

from keras_encdec.layers import masks


def dense(visible, length):
    """Intervals as a boolean mask (B, T, S)."""
    mask = ops.convert_to_numpy(masks.dense(visible, length))
    assert mask.dtype == bool
    return mask


def drawn(mask):
    """A (T, S) mask as rows of `x` (sees) and `.` (does not)."""
    return ["".join(".x"[int(seen)] for seen in row) for row in mask]


def brute_force(keys, queries, causal=False, window=None):
    """The definition in all its booleans, (B, T, S)."""
    mask = (keys[:, None, :] != 0) & (queries[:, :, None] == keys[:, None, :])
    distance = np.arange(queries.shape[1])[:, None] - np.arange(keys.shape[1])[None, :]
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= np.abs(distance) < window
    return mask


def segments(rng, rows, length):
    """Rows of 0 to 4 segments; padding before, between and after them."""
    rows_of = np.zeros((rows, length), "int32")
    for row in rows_of:
        count = rng.integers(0, 5)
        cuts = np.sort(rng.choice(length + 1, 2 * count, replace=False))
        for number, (start, end) in enumerate(cuts.reshape(-1, 2), start=1):
            row[start:end] = number
    return rows_of


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
    mask = dense(masks.self_attention(no_padding(5), causal=causal, window=window), 5)
    assert drawn(mask[0]) == expected


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_intervals_equal_the_definition(causal, window):
    rng = np.random.default_rng(0)
    keys, queries = segments(rng, 200, 12), segments(rng, 200, 9)
    visible = masks.self_attention(keys, causal=causal, window=window)
    np.testing.assert_array_equal(dense(visible, 12), brute_force(keys, keys, causal, window))
    across = masks.cross_attention(keys, queries)
    np.testing.assert_array_equal(dense(across, 12), brute_force(keys, queries))
    one = np.ones((200, 9), "int32") * (keys.max(axis=1, keepdims=True) > 0)
    keys = np.minimum(keys, 1) * (keys == keys.max(axis=1, keepdims=True))  # the last segment
    across = np.broadcast_to(dense(masks.cross_attention(keys), 12), (200, 9, 12))
    np.testing.assert_array_equal(across, brute_force(keys, one))


def test_padding_inside_a_segment_is_seen():
    """The rule that intervals ask for; the padding itself still sees nothing."""
    visible = masks.self_attention(np.array([[0, 1, 0, 1, 0]]), causal=False)
    assert drawn(dense(visible, 5)[0]) == [".....", ".xxx.", ".....", ".xxx.", "....."]


def test_padding_is_seen_by_none_and_differs_by_row():
    padding_mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    causal = dense(masks.self_attention(padding_mask, causal=True), 4)
    bidirectional = dense(masks.self_attention(padding_mask, causal=False, window=2), 4)
    assert drawn(causal[0]) == ["x...", "xx..", "xxx.", "...."]
    assert drawn(causal[1]) == ["....", ".x..", ".xx.", ".xxx"]
    assert drawn(bidirectional[0]) == ["xx..", "xxx.", ".xx.", "...."]
    assert drawn(bidirectional[1]) == ["....", ".xx.", ".xxx", "..xx"]


def test_cross_attention_sees_every_token_and_no_padding():
    padding_mask = np.array([[1, 1, 0], [0, 0, 0]])
    mask = dense(masks.cross_attention(padding_mask, np.array([[1, 0], [1, 1]])), 3)
    assert drawn(mask[0]) == ["xx.", "..."]
    assert drawn(mask[1]) == ["...", "..."]
    assert drawn(dense(masks.cross_attention(padding_mask), 3)[0]) == ["xx."]


def test_a_segment_sees_itself_only():
    segments = np.array([[1, 1, 2, 2, 2, 0]])
    causal = dense(masks.self_attention(segments, causal=True), 6)
    assert drawn(causal[0]) == ["x.....", "xx....", "..x...", "..xx..", "..xxx.", "......"]
    bidirectional = dense(masks.self_attention(segments, causal=False, window=2), 6)
    assert drawn(bidirectional[0]) == ["xx....", "xx....", "..xx..", "..xxx.", "...xx.", "......"]
    cross = dense(masks.cross_attention(segments, np.array([[1, 2, 2, 3]])), 6)
    assert drawn(cross[0]) == ["xx....", "..xxx.", "..xxx.", "......"]


def test_positions_start_again_in_each_segment():
    segments = np.array([[1, 1, 2, 3, 3, 3, 0, 0], [0, 1, 1, 1, 0, 2, 2, 0]], "int32")
    found = ops.convert_to_numpy(masks.positions(segments))
    expected = np.array([[0, 1, 0, 0, 1, 2, 9, 9], [9, 0, 1, 2, 9, 0, 1, 9]])
    np.testing.assert_array_equal(found[segments > 0], expected[segments > 0])
    assert found.min() >= 0


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_positions_count_from_the_first_token(dtype):
    padding_mask = np.array(
        [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype
    )
    real = padding_mask.astype(bool)
    found = ops.convert_to_numpy(masks.positions(padding_mask))
    expected = np.array(
        [[0, 1, 2, 3, 4], [0, 1, 2, 9, 9], [9, 9, 0, 1, 2], [9, 0, 1, 9, 9], [9] * 5]
    )
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[real], expected[real])
    assert found.min() >= 0
