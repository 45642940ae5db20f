"""What a run did at each step, and likelihoods apart from the package."""

import keras
import numpy as np


class Seen(keras.callbacks.Callback):
    """Weights before the first step and after each, and what each step logged."""

    def on_train_begin(self, logs=None):
        self.weights, self.logs = [self.now()], []

    def now(self):
        return [np.array(weight) for weight in self.model.get_weights()]  # PyTorch gives views

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.weights.append(self.now())
        self.logs.append(dict(logs))


def log_softmax(x):
    x = x.astype("float64")
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
