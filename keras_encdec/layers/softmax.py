"""From logits to the weights of what is seen, the same on every path of plain operations.

Knows the soft cap and what hides a key. Leaves who sees whom to `keras_encdec.layers.masks`.
"""

from keras import ops

from keras_encdec.spec import Tensor

_HIDDEN = -1e30  # finite, so that a row with nothing to see stays a number


def softmax(
    logits: Tensor,
    seen: Tensor,
    soft_cap: float | None,
    dtype: str,
    sinks: Tensor | None = None,
) -> Tensor:
    """Weights of what is seen, in float32 until the end.

    Args:
        logits: (..., S).
        seen: bool, broadcast to them.
        soft_cap: cap on the logits, before the mask; or None.
        dtype: of the weights.
        sinks: (..., 1), broadcast to them: a logit more in each sum, without a weight of its own
            and without a cap; or None.
    """
    logits = ops.cast(logits, "float32")
    if soft_cap is not None:
        logits = soft_cap * ops.tanh(logits / soft_cap)
    logits = ops.where(seen, logits, _HIDDEN)
    if sinks is None:
        return ops.cast(ops.softmax(logits, axis=-1), dtype)
    sinks = ops.cast(sinks, "float32")
    largest = ops.maximum(ops.max(logits, axis=-1, keepdims=True), sinks)
    largest = ops.stop_gradient(largest)  # it divides out
    weights, rest = ops.exp(logits - largest), ops.exp(sinks - largest)
    return ops.cast(weights / (ops.sum(weights, axis=-1, keepdims=True) + rest), dtype)
