"""A small pair that reads text, what a run did at each step, and likelihoods by NumPy."""

import functools

import keras
import keras_hub
import numpy as np

from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import tiny_backbone
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder


@functools.cache
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


def pair_of_texts(read=40, written=16):
    """The tiny pair with a tokenizer, and the sequence lengths of its sides."""
    size = {"windows": (8,), "vocabulary_size": 4096}
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    return EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer(), read, written))


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
