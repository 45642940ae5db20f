"""PrefixLM: input and target reassemble the tokens."""

import numpy as np
import pytest

from keras_encdec.objectives.prefix_lm import PrefixLM, windows


@pytest.mark.parametrize("length", [2, 3, 4, 127, 128, 8192])
def test_halves_reassemble(length):
    tokens = np.arange(length, dtype="int32")
    example = PrefixLM()(tokens)
    np.testing.assert_array_equal(np.concatenate([example.inputs, example.targets]), tokens)
    assert len(example.targets) - len(example.inputs) == length % 2


@pytest.mark.parametrize("tokens", [[], [1], [[1, 2]]])
def test_too_little(tokens):
    with pytest.raises(ValueError, match=r"Expected .* Received"):
        PrefixLM()(np.array(tokens, "int32"))


@pytest.mark.parametrize(("length", "sizes"), [(10, [4, 4, 2]), (9, [4, 4]), (4, [4]), (1, [])])
def test_windows(length, sizes):
    assert [len(w) for w in windows(np.arange(length), 4)] == sizes
