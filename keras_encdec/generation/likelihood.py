"""How likely texts are, without the logits of all their tokens at once."""

from typing import Any

from keras import ops

from keras_encdec.spec import Tensor

_LOGITS_AT_ONCE = 512  # tokens, whose logits over 256,000 words are half a gigabyte


def log_likelihoods(decoder: Any, states: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of each label, in nats.

    Args:
        decoder: `keras_encdec.layers.Decoder`.
        states: (B, T, D) of the decoder, of known shape.
        labels: (B, T) int.

    Returns:
        (B, T) float32.
    """
    rows, length, width = states.shape
    step = min(max(1, _LOGITS_AT_ONCE // rows), length)
    count = -(-length // step)
    more = count * step - length
    states = ops.pad(states, [(0, 0), (0, more), (0, 0)])
    labels = ops.pad(ops.cast(labels, "int32"), [(0, 0), (0, more)])

    def body(i: Tensor, found: Tensor) -> Tensor:
        logits = decoder.logits(ops.slice(states, [0, i * step, 0], [rows, step, width]))
        log_probs = ops.log_softmax(ops.cast(logits, "float32"))
        chosen = ops.slice(labels, [0, i * step], [rows, step])[..., None]
        some = ops.squeeze(ops.take_along_axis(log_probs, chosen, axis=-1), -1)
        return ops.slice_update(found, [0, i * step], some)

    found = ops.fori_loop(0, count, body, ops.zeros((rows, count * step), "float32"))
    return found[:, :length]
