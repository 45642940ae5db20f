"""Batches some of which have images, on their way to TensorFlow, whose programs have one form."""

import numpy as np
import pytest

from keras_encdec.training.adapter import BatchAdapter, own_errors

IDS = np.ones((2, 3), "int32")
TEXTS = {"encoder_token_ids": IDS}
SEEN = {**TEXTS, "images": np.ones((2, 1, 4, 4, 3), "float32")}


def batches(*x):
    """The model inputs that TensorFlow gets."""
    adapter = BatchAdapter(lambda: iter([(each, IDS) for each in x]), None)
    with own_errors(adapter):
        return [inputs for inputs, _ in adapter.get_tf_dataset()]


def test_a_batch_of_texts_has_images_that_nobody_reads():
    assert [x["images"].numpy().sum() for x in batches(SEEN, TEXTS, SEEN)] == [96, 0, 96]


def test_images_behind_a_first_batch_without_are_refused_by_name():
    with pytest.raises(ValueError, match="Expected images in the first batch"):
        batches(TEXTS, SEEN)
