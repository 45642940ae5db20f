"""How likely texts are, without the logits of all their tokens at once."""

from typing import Any

from keras import ops

from keras_encdec.spec import Tensor

_LOGITS_AT_ONCE = 512  # tokens, whose logits over 256,000 words are half a gigabyte


def log_likelihoods(
    decoder: Any, states: Tensor, labels: Tensor, temperature: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """The log-probability of each label, in nats, and whether it is the likeliest word.

    Args:
        decoder: `keras_encdec.layers.Decoder`, or what else makes `logits` of states.
        states: (B, T, D) of the decoder, of known shape.
        labels: (B, T) int.
        temperature: that logits are divided by.

    Returns:
        (B, T) float32 and (B, T) bool; of two words that are as likely, the first one counts as
        the likeliest, as in greedy search.
    """
    rows, length, width = states.shape
    step = min(max(1, _LOGITS_AT_ONCE // rows), length)
    count = -(-length // step)
    more = count * step - length
    states = ops.pad(states, [(0, 0), (0, more), (0, 0)])
    labels = ops.pad(ops.cast(labels, "int32"), [(0, 0), (0, more)])

    def body(i: Tensor, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        logits = decoder.logits(ops.slice(states, [0, i * step, 0], [rows, step, width]))
        log_probs = ops.log_softmax(ops.cast(logits, "float32") / temperature)
        chosen = ops.slice(labels, [0, i * step], [rows, step])
        some = ops.squeeze(ops.take_along_axis(log_probs, chosen[..., None], axis=-1), -1)
        likeliest = ops.equal(ops.cast(ops.argmax(log_probs, axis=-1), "int32"), chosen)
        likeliest = ops.cast(likeliest, "int32")  # not every backend updates slices of bools
        at = [0, i * step]
        return ops.slice_update(found[0], at, some), ops.slice_update(found[1], at, likeliest)

    shape = (rows, count * step)
    start = ops.zeros(shape, "float32"), ops.zeros(shape, "int32")
    log_probs, likeliest = ops.fori_loop(0, count, body, start)
    return log_probs[:, :length], likeliest[:, :length] > 0
