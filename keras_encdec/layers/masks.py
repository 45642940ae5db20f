"""Who may see whom: boolean attention masks and the positions behind them.

The one place that says what causal, window, padding and segment mean. Leaves what a mask
does to the logits to `keras_encdec.layers.attention`.
"""

from keras import ops


def positions(padding_mask):
    """Positions of the tokens that count, from 0 in each segment; padding may be anywhere.

    Args:
        padding_mask: (B, S), 0 for padding; where several examples share a row, the
            number of the segment, 1, 2, 3, ... from left to right.

    Returns:
        (B, S) int32: the number of tokens before each one in its segment.
        Source: `build_positions_from_mask` in gemma/research/t5gemma/t5gemma.py.
    """
    segment = ops.cast(padding_mask, "int32")
    batch, length = ops.shape(segment)
    token = ops.cast(ops.not_equal(segment, 0), "int32")
    bins = length + 1  # segments are not empty: their numbers go up to `length`
    flat = ops.reshape(segment + bins * ops.arange(batch, dtype="int32")[:, None], (-1,))
    sizes = ops.segment_sum(ops.reshape(token, (-1,)), flat, num_segments=batch * bins)
    sizes = ops.reshape(sizes, (batch, bins))
    before = ops.cumsum(sizes, axis=-1) - sizes
    count = ops.cumsum(token, axis=-1) - ops.take_along_axis(before, segment, axis=-1)
    return ops.maximum(count - 1, 0)


def self_attention(padding_mask, *, causal, window=None, query_index=None):
    """The mask of a self-attention.

    A window of W lets a query see the W nearest keys up to and with itself, and
    as many again ahead of it where the attention is not causal: |q - k| < W on
    both sides (`get_sliding_mask` in gemma/research/t5gemma/modules.py).

    Args:
        padding_mask: (B, S), 0 for padding, else the number of the segment.
        causal: whether keys after the query are hidden.
        window: W, or None for no limit.
        query_index: (T,) int32, where the queries stand among the keys of a single
            segment; by default there is a query at each key, and it sees the keys
            of its own segment.

    Returns:
        (B, T, S) bool, true where the query may see the key.
    """
    key_index = ops.arange(ops.shape(padding_mask)[-1], dtype="int32")
    if query_index is None:
        query_index, visible = key_index, cross_attention(padding_mask, padding_mask)
    else:
        query_index, visible = ops.convert_to_tensor(query_index), cross_attention(padding_mask)
    distance = query_index[:, None] - key_index[None, :]
    if causal:
        visible = ops.logical_and(visible, distance >= 0)
    if window is not None:
        visible = ops.logical_and(visible, ops.abs(distance) < window)
    return ops.logical_and(visible, (query_index >= 0)[:, None])


def cross_attention(padding_mask, query_mask=None):
    """The mask of a cross-attention: a query sees every key of its segment.

    Args:
        padding_mask: (B, S) of the keys, 0 for padding, else the number of the segment.
        query_mask: (B, T) of the queries, likewise; None where there is one segment.

    Returns:
        (B, T, S) bool, or (B, 1, S) without `query_mask`.
    """
    keys = ops.cast(padding_mask, "int32")[:, None, :]
    visible = ops.not_equal(keys, 0)
    if query_mask is None:
        return visible
    return ops.logical_and(visible, ops.cast(query_mask, "int32")[:, :, None] == keys)
