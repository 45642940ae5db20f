"""What Keras counts: steps of the optimizer, and calls of the training function in batches."""

from typing import Any

from keras import ops


def steps_done(model: Any) -> int:
    """Steps that the optimizer of a compiled model took so far."""
    return int(ops.convert_to_numpy(model.optimizer.iterations.value))


def batches_behind(batch: int, steps: int | None) -> int:
    """Batches of an epoch, or of the part of it that is fitted, after a call.

    With `steps_per_execution`, Keras counts the last call of an epoch as a whole one, also
    where fewer batches were left for it.

    Args:
        batch: what Keras gives `on_train_batch_end`.
        steps: `params["steps"]` of the callback; None where only the end of the data tells.
    """
    return min(batch + 1, steps) if steps else batch + 1
