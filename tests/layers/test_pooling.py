"""One vector of a row's states, beside NumPy."""

import numpy as np
import pytest

from keras_encdec.layers.pooling import ChoicesToRows, Pool
from keras_encdec.testing.models import assert_close, to_numpy

MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1]], "int32")
STATES = np.random.default_rng(0).normal(0, 1, (3, 5, 4)).astype("float32")
EXPECTED = {
    "last": np.stack([STATES[0, 2], STATES[1, 3], STATES[2, 4]]),
    "first": np.stack([STATES[0, 0], STATES[1, 2], STATES[2, 0]]),
    "mean": np.stack([STATES[0, :3].mean(0), STATES[1, 2:4].mean(0), STATES[2].mean(0)]),
}


@pytest.mark.parametrize("pooling", EXPECTED)
def test_of_tokens_alone(pooling):
    assert_close(to_numpy(Pool(pooling)(STATES, MASK)), EXPECTED[pooling], 1e-6)


@pytest.mark.parametrize("pooling", EXPECTED)
def test_rows_of_nothing_are_finite(pooling):
    found = to_numpy(Pool(pooling)(STATES, np.zeros_like(MASK)))
    assert np.isfinite(found).all()


def test_choices_and_their_shape():
    x = np.arange(12).reshape(2, 3, 2)
    np.testing.assert_array_equal(to_numpy(ChoicesToRows()(x)), x.reshape(6, 2))


def test_another_pooling():
    with pytest.raises(ValueError, match="'last'"):
        Pool("lats")
