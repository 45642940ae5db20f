"""The first steps of an unbalanced pair: only what is new in it trains.

Knows which weights are new, the cross-attention's and an adaptor's, and when all of them join.
Leaves steps on some of the weights to `keras_encdec.training.jax_step`.
"""

from typing import Any

import keras

from keras_encdec import check
from keras_encdec.training.calls import batches_behind, steps_done


class CrossAttentionWarmup(keras.callbacks.Callback):
    """Trains the cross-attention alone for K steps, then everything, in one `fit`.

    Cross-attention that starts from random weights would disturb what both models know
    (arXiv 2504.06225, section 3.2). Its norms train with it, and so does an adaptor.
    Gradients and optimizer state of the rest stay as they are until then. Steps are counted by
    the optimizer: a resumed run goes on in the phase that it was in.

    Args:
        steps: K; 1000 in the paper.

    Raises:
        ValueError: in `fit`, if the K steps would end in the middle of a call of
            `steps_per_execution` steps; the last call of an epoch has what is left.

    Example:
        >>> lm.fit(texts, callbacks=[keras_encdec.training.CrossAttentionWarmup(steps=1000)])
    """

    def __init__(self, steps: int = 1000):
        super().__init__()
        self.steps = check.whole("steps", steps)
        self._frozen: list[keras.Variable] = []

    def on_train_begin(self, logs: Any = None) -> None:
        together = self.model.steps_per_execution
        if self.steps % together:
            raise ValueError(
                f"Expected steps that steps_per_execution ({together}) divides. "
                f"Received: {self.steps}."
            )
        if not any(is_new(variable.path) for variable in self.model.trainable_variables):
            raise ValueError(
                "Expected a pair with a cross-attention of its own, or an adaptor, to warm up. "
                "Received: one without, such as with merged attention. Leave the warm-up out."
            )
        if self._done() < self.steps:
            self._freeze([v for v in self.model.trainable_variables if not is_new(v.path)])

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._frozen:
            self._begun = self._done()
            self._check_calls(self.params.get("steps"))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self._frozen:
            return
        # No more than these, which costs no look at the device: an optimizer may skip steps.
        most = self._begun + batches_behind(batch, self.params.get("steps"))
        if most >= self.steps and self._done() >= self.steps:
            self._thaw()

    def on_train_end(self, logs: Any = None) -> None:
        self._thaw()

    def on_fit_interrupted(self) -> None:
        """`lm.fit` calls this when an error ends it: the weights train again."""
        self._thaw()

    def _done(self) -> int:
        """Steps of the optimizer so far."""
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        return steps_done(self.model)

    def _check_calls(self, epoch: int | None) -> None:
        """Raises ValueError if the phase would end inside a call.

        Args:
            epoch: batches of this epoch, or None.
        """
        left, together = self.steps - self._begun, self.model.steps_per_execution
        if epoch and not self._begun:  # a new run: its epochs are alike
            left %= epoch
        if left % together and (not epoch or left < epoch):
            raise ValueError(
                f"Expected the {self.steps} steps of a warm-up to end where a call of "
                f"steps_per_execution ({together}) does. Received: epochs of {epoch or 'some'} "
                f"batches, in which they end {left % together} into one. Choose a "
                "steps_per_execution that divides the batches of an epoch."
            )

    def _freeze(self, variables: list[keras.Variable]) -> None:
        self._frozen = variables
        self._set(trainable=False)

    def _thaw(self) -> None:
        self._set(trainable=True)
        self._frozen = []

    def _set(self, trainable: bool) -> None:
        if not self._frozen:
            return
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        for variable in self._frozen:
            variable.trainable = trainable
        # What is compiled knows which variables it gets.
        self.model.make_train_function(force=True)
        self.model.test_function = None


def is_new(path: str) -> bool:
    """Whether a decoder-only model has no such weight."""
    return "cross_attention" in path or "encoder/adaptor" in path


def pretrained(layer: keras.layers.Layer) -> bool:
    """Whether a decoder-only model has such a layer: `lm.quantize("int8", filters=pretrained)`."""
    return not is_new(layer.path or "")
