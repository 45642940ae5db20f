"""From logits to the weights of what is seen, the same on every path of plain operations.

Knows the soft cap and what hides a key. Leaves who sees whom to `keras_encdec.layers.masks`.
"""

from keras import ops

from keras_encdec.spec import Tensor

_HIDDEN = -1e30  # finite, so that a row with nothing to see stays a number


def softmax(logits: Tensor, seen: Tensor, soft_cap: float | None, dtype: str) -> Tensor:
    """Weights of what is seen, in float32 until the end.

    Args:
        logits: (..., S).
        seen: bool, broadcast to them.
        soft_cap: cap on the logits, before the mask; or None.
        dtype: of the weights.
    """
    logits = ops.cast(logits, "float32")
    if soft_cap is not None:
        logits = soft_cap * ops.tanh(logits / soft_cap)
    return ops.cast(ops.softmax(ops.where(seen, logits, _HIDDEN), axis=-1), dtype)
