"""Batches on their way into Keras.

Knows how each backend of Keras asks for data. Leaves which batches there are to
`keras_encdec.data.batching`.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_encdec.private import DataAdapter


class BatchAdapter(DataAdapter):
    """Batches of one epoch as what `keras.Model.fit`, `evaluate` and `predict` take.

    Args:
        begin: begins the epoch: an iterator of `(x, y, sample_weight)`, whose last parts
            may be None.
        steps: how many batches there are; None where only the end tells.
        ahead: whether one may be read before it is asked for.
    """

    def __init__(self, begin: Callable[[], Iterator[Any]], steps: int | None, ahead: bool = True):
        self._begin, self._steps, self._ahead = begin, steps, ahead
        self._error: Exception | None = None  # of the data

    def _batches(self) -> Iterator[tuple]:
        for batch in self._begin():
            yield tuple(part for part in batch if part is not None)

    def get_numpy_iterator(self) -> Iterator[tuple]:
        return self._batches()

    def get_jax_iterator(self) -> Iterator[tuple]:
        return self._batches()

    def get_tf_dataset(self) -> Any:
        import tensorflow as tf

        first = next(self._batches())
        signature = keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), first
        )

        def of_one_width() -> Iterator[tuple]:
            try:
                for batch in self._batches():
                    batch = _with_images_of(batch, first)
                    keras.tree.map_structure(_check_width, batch, first)
                    yield batch
            except Exception as error:
                self._error = error  # TensorFlow keeps its text alone
                raise

        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = self._ahead
        dataset = tf.data.Dataset.from_generator(of_one_width, output_signature=signature)
        return dataset.with_options(options)

    def get_torch_dataloader(self) -> Any:
        import torch

        class Batches(torch.utils.data.IterableDataset):
            def __iter__(_) -> Iterator[tuple]:
                return self._batches()

        return torch.utils.data.DataLoader(Batches(), batch_size=None)

    @property
    def num_batches(self) -> int | None:
        return self._steps

    @property
    def batch_size(self) -> None:
        return None

    @property
    def has_partial_batch(self) -> bool:
        return False

    @property
    def partial_batch_size(self) -> None:
        return None


@contextlib.contextmanager
def own_errors(*adapters: BatchAdapter | None) -> Iterator[None]:
    """Makes an error of the data the one that its reader raised, on TensorFlow too."""
    try:
        yield
    except Exception:
        for adapter in adapters:
            if adapter is not None and adapter._error is not None:
                raise adapter._error from None
        raise


def _with_images_of(batch: tuple, first: tuple) -> tuple:
    """A batch with images, which nobody reads, where it has none and the first one has some.

    Raises:
        ValueError: if it has some and the first one has none.
    """
    (x, *others), named = batch, isinstance(first[0], dict)
    if not named or ("images" in x) == ("images" in first[0]):
        return batch
    if "images" in x:
        raise ValueError(
            "Expected images in the first batch where a later one has some, as TensorFlow's "
            "programs need. Received: none. Put a row with images first and pass shuffle=False, or "
            "give a blank image to texts without."
        )
    shape = len(x["encoder_token_ids"]), *first[0]["images"].shape[1:]
    return {**x, "images": np.zeros(shape, "float32")}, *others


def _check_width(array: Any, first: Any) -> None:
    if array.shape[1:] != first.shape[1:]:
        raise ValueError(
            "Expected batches of one width, as TensorFlow's programs need. Received: rows of shape "
            f"{array.shape[1:]} after {first.shape[1:]}. Pad them alike."
        )
