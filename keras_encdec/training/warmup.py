"""The first steps of an unbalanced pair: only what is new in it trains.

Knows which weights are the cross-attention's and when all of them join. Leaves steps on
some of the weights to `keras_encdec.training.jax_step`.
"""

import keras


class CrossAttentionWarmup(keras.callbacks.Callback):
    """Trains the cross-attention alone for K steps, then everything, in one `fit`.

    Cross-attention that starts from random weights would disturb what both models know
    (arXiv 2504.06225, section 3.2). Its norms train with it. Gradients and optimizer
    state of the rest stay as they are until then. Steps are counted by the optimizer:
    a run that is taken up goes on in the phase that it was in.

    Args:
        steps: K; 1000 in the paper.

    Raises:
        ValueError: in `fit`, if `steps` is not a multiple of `steps_per_execution`.

    Example:
        >>> lm.fit(texts, callbacks=[keras_encdec.training.CrossAttentionWarmup(steps=1000)])
    """

    def __init__(self, steps=1000):
        super().__init__()
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"Expected steps of 1 or more. Received: {steps!r}.")
        self.steps = steps
        self._frozen: list = []

    def on_train_begin(self, logs=None):
        together = self.model.steps_per_execution
        if self.steps % together:
            raise ValueError(
                f"Expected steps that steps_per_execution ({together}) divides. "
                f"Received: {self.steps}."
            )
        if not any(is_new(variable.path) for variable in self.model.trainable_variables):
            raise ValueError(
                "Expected a pair with a cross-attention of its own to warm up. Received: one "
                "without, such as with merged attention. Leave the warm-up out."
            )
        self._done = int(self.model.optimizer.iterations.numpy())
        if self._done < self.steps:
            self._freeze([v for v in self.model.trainable_variables if not is_new(v.path)])

    def on_train_batch_end(self, batch, logs=None):
        self._done += self.model.steps_per_execution
        if self._frozen and self._done >= self.steps:
            self._thaw()

    def on_train_end(self, logs=None):
        self._thaw()

    def on_fit_interrupted(self):
        """`lm.fit` calls this when an error ends it: the weights train again."""
        self._thaw()

    def _freeze(self, variables):
        self._frozen = variables
        self._set(trainable=False)

    def _thaw(self):
        self._set(trainable=True)
        self._frozen = []

    def _set(self, trainable):
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
    return "cross_attention" in path


def pretrained(layer) -> bool:
    """Whether a decoder-only model has such a layer: `lm.quantize("int8", filters=pretrained)`."""
    return not is_new(layer.path or "")
