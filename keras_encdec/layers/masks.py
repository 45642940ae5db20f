"""Who may see whom: boolean attention masks and the positions behind them.

The one place that says what causal, window and padding mean. Leaves what a mask
does to the logits to `keras_encdec.layers.attention`.
"""

from keras import ops


def positions(padding_mask):
    """Positions of the tokens that count, from 0; padding may lie on either side.

    Args:
        padding_mask: (B, S), nonzero where there is a token.

    Returns:
        (B, S) int32: the number of tokens before each one.
        Source: `build_positions_from_mask` in gemma/research/t5gemma/t5gemma.py.
    """
    count = ops.cumsum(ops.cast(padding_mask, "int32"), axis=-1)
    return ops.maximum(count - 1, 0)


def self_attention(padding_mask, *, causal, window=None, query_index=None):
    """The mask of a self-attention.

    A window of W lets a query see the W nearest keys up to and with itself, and
    as many again ahead of it where the attention is not causal: |q - k| < W on
    both sides (`get_sliding_mask` in gemma/research/t5gemma/modules.py).

    Args:
        padding_mask: (B, S), nonzero where there is a token.
        causal: whether keys after the query are hidden.
        window: W, or None for no limit.
        query_index: (T,) int32, where the queries stand among the keys; by
            default there is a query at each key.

    Returns:
        (B, T, S) bool, true where the query may see the key.
    """
    key_index = ops.arange(ops.shape(padding_mask)[-1], dtype="int32")
    query_index = key_index if query_index is None else ops.convert_to_tensor(query_index)
    distance = query_index[:, None] - key_index[None, :]
    visible = ops.cast(padding_mask, "bool")[:, None, :]
    if causal:
        visible = ops.logical_and(visible, distance >= 0)
    if window is not None:
        visible = ops.logical_and(visible, ops.abs(distance) < window)
    return _one_row_per_query(visible, query_index)


def cross_attention(padding_mask, query_length):
    """The mask of a cross-attention: every query sees every encoder token.

    Args:
        padding_mask: (B, S) of the encoder's tokens.
        query_length: T.

    Returns:
        (B, T, S) bool.
    """
    visible = ops.cast(padding_mask, "bool")[:, None, :]
    return _one_row_per_query(visible, ops.arange(query_length, dtype="int32"))


def _one_row_per_query(visible, query_index):
    return ops.logical_and(visible, (query_index >= 0)[:, None])
