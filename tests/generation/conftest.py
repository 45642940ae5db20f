"""The pair that most tests of generation ask."""

import pytest

import keras_encdec


@pytest.fixture(scope="module")
def lm():
    """The embedded pair with greedy search, one for each module."""
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler="greedy")
    return lm
