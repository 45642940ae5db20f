"""Who may see whom: for each query the interval of keys it sees, and positions.

The one place that says what causal, window, padding and segment mean. All of them reduce
to intervals, so a mask takes O(T) memory, because of one rule for padding masks:

    The number of a segment stands in one run of the row. Padding may stand on both ends,
    and between segments; padding inside a segment is seen by its other tokens.

Leaves what a mask does to the logits to `keras_encdec.layers.attention`.
"""

from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_encdec.spec import Tensor, Window, window_lengths


class Segments(NamedTuple):
    """Which keys each query may see but for `Limits`: those of the same number that is not 0.

    Args:
        queries: (B, T or 1) int32.
        keys: (B, S) int32.
    """

    queries: Tensor
    keys: Tensor


class KeyRange(NamedTuple):
    """The keys that each query may see: those from `start` up to, without, `end`.

    Args:
        start: (B or 1, T or 1) int32.
        end: (B or 1, T or 1) int32; where it is not beyond `start`, nothing is seen.
        segments: what the range came from; None where that is not known. With `Limits`, it says
            the same to kernels that leave out whole tiles.
    """

    start: Tensor
    end: Tensor
    segments: Segments | None = None


class Limits(NamedTuple):
    """What an attention hides beside other segments, known when it is compiled.

    Args:
        causal: as of `self_attention`.
        window: as of `self_attention`.
    """

    causal: bool = False
    window: Window = None


Visible = KeyRange | Tensor  # or booleans (B or 1, T or 1, S), where keys are in no order


def positions(padding_mask: Tensor) -> Tensor:
    """Positions of the tokens that count, from 0 in each segment; padding may be anywhere.

    Args:
        padding_mask: (B, S), 0 for padding; where several examples share a row, the
            number of the segment, 1, 2, 3, ... from left to right.

    Returns:
        (B, S) int32: the number of tokens before each one in its segment.
        Source: `build_positions_from_mask` in gemma/research/t5gemma/t5gemma.py.
    """
    segment, token, sizes = _segments(padding_mask)
    before = ops.cumsum(sizes, axis=-1) - sizes
    count = ops.cumsum(token, axis=-1) - ops.take_along_axis(before, segment, axis=-1)
    return ops.maximum(count - 1, 0)


def text_lengths(padding_mask: Tensor) -> Tensor:
    """How many tokens the segment of each one has, (B, S) int32; as of `positions`."""
    segment, _, sizes = _segments(padding_mask)
    return ops.take_along_axis(sizes, segment, axis=-1)


def key_counts(segments: Segments) -> Tensor:
    """How many keys the segment of each query has, (B, T) int32; (B, 1) of one for all queries."""
    query, segment = segments
    bins = ops.shape(segment)[-1] + ops.shape(query)[-1] + 1  # more than the numbers of either
    token = ops.cast(ops.not_equal(segment, 0), "int32")
    sizes = _by_segment(ops.segment_sum, token, segment, bins)
    return ops.take_along_axis(sizes, query, axis=-1)


def _segments(padding_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each place its segment and 1 for a token (B, S), and tokens by segment (B, S + 1)."""
    segment = ops.cast(padding_mask, "int32")
    token = ops.cast(ops.not_equal(segment, 0), "int32")
    bins = ops.shape(segment)[-1] + 1  # segments are not empty: their numbers go up to the length
    return segment, token, _by_segment(ops.segment_sum, token, segment, bins)


def _by_segment(
    reduce: Callable[..., Tensor], x: Tensor, segment: Tensor, bins: int | Tensor
) -> Tensor:
    """`x` (B, S) by segment, (B, bins)."""
    batch = ops.shape(segment)[0]
    flat = ops.reshape(segment + bins * ops.arange(batch, dtype="int32")[:, None], (-1,))
    reduced = reduce(ops.reshape(x, (-1,)), flat, num_segments=batch * bins)
    return ops.reshape(reduced, (batch, bins))


def self_attention(padding_mask: Tensor, *, causal: bool, window: Window = None) -> KeyRange:
    """What each query of a self-attention sees.

    A window of W lets a query see the W nearest keys up to and with itself, and
    as many again ahead of it where the attention is not causal: |q - k| < W on
    both sides (`get_sliding_mask` in gemma/research/t5gemma/modules.py).

    Args:
        padding_mask: (B, S), 0 for padding, else the number of the segment.
        causal: whether keys after the query are hidden.
        window: W; `(before, after)` where the sides differ; or None for no limit.

    Returns:
        `KeyRange`, each part (B, T): there is a query at each key, and it sees the keys
        of its own segment.
    """
    query_index = ops.arange(ops.shape(padding_mask)[-1], dtype="int32")
    start, end, segments = cross_attention(padding_mask, padding_mask)
    if window is not None:
        before, after = window_lengths(window)
        start = ops.maximum(start, query_index - before + 1)
        end = ops.minimum(end, query_index + after)
    if causal:
        end = ops.minimum(end, query_index + 1)
    return KeyRange(start, end, segments)


def cross_attention(padding_mask: Tensor, query_mask: Tensor | None = None) -> KeyRange:
    """What each query of a cross-attention sees: every key of its segment.

    Args:
        padding_mask: (B, S) of the keys, 0 for padding, else the number of the segment.
        query_mask: (B, T) of the queries, likewise; None where there is one segment.

    Returns:
        `KeyRange`, each part (B, T), or (B, 1) without `query_mask`.
    """
    segment = ops.cast(padding_mask, "int32")
    length = ops.shape(segment)[-1]
    token = ops.cast(ops.not_equal(segment, 0), "int32")
    index = ops.arange(length, dtype="int32")
    to_end, past_start = token * (length - index), token * (index + 1)  # both 0 at padding
    if query_mask is None:
        to_end, past_start = (ops.max(x, axis=-1, keepdims=True) for x in (to_end, past_start))
        query, segment = ops.ones_like(token[:, :1]), token  # of each row: rows change places
    else:
        query = ops.cast(query_mask, "int32")
        to_end, past_start = (_largest(x, segment, query) for x in (to_end, past_start))
    return KeyRange(length - to_end, past_start, Segments(query, segment))


def _largest(x: Tensor, segment: Tensor, query: Tensor) -> Tensor:
    """The largest of `x` (B, S) in the segment of each query (B, T), 0 where it has none."""
    bins = ops.shape(segment)[-1] + ops.shape(query)[-1] + 1  # more than the numbers of either
    largest = _by_segment(ops.segment_max, x, segment, bins)
    largest = ops.maximum(largest, 0)  # of nothing it is negative
    return ops.take_along_axis(largest, query, axis=-1)


def dense(visible: Visible, length: int) -> Tensor:
    """The same as booleans, in quadratic memory: (B or 1, T or 1, S), true where it sees."""
    if not isinstance(visible, KeyRange):
        return visible
    index = ops.arange(length, dtype="int32")
    start, end = visible.start[..., None], visible.end[..., None]
    return ops.logical_and(index >= start, index < end)


def sees_any(visible: Visible) -> Tensor:
    """(B or 1, T or 1) bool, whether a query sees a key."""
    if not isinstance(visible, KeyRange):
        return ops.any(visible, axis=-1)
    return visible.end > visible.start
