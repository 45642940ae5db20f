"""What a cache holds after a prompt and after each token, with a window and without."""

import numpy as np
import pytest

from keras_encdec.layers import cache
from keras_encdec.testing.models import to_numpy

TOKENS = 9


def keys_values(tokens):
    """Keys that are their token's number, and values 100 more: (1, P, 2, 3) each."""
    keys = np.broadcast_to(np.array(tokens, "float32")[None, :, None, None], (1, len(tokens), 2, 3))
    return keys, keys + 100


def held(layer, index, window):
    """The tokens that token `index` sees before itself."""
    visible = cache.visible(index, 1, layer[0].shape[2], window)
    start, end = (int(to_numpy(x).item()) for x in visible[:2])
    keys, values = map(to_numpy, layer)
    np.testing.assert_array_equal(values, keys + 100)
    return sorted(keys[0, 0, start:end, 0].tolist())


@pytest.mark.parametrize("window", [None, 1, 2, 4, 20])
@pytest.mark.parametrize("prompt", [0, 1, 3, 4, 5, 7])
def test_the_newest_tokens_are_seen(window, prompt):
    size = cache.room(TOKENS, window)
    assert size <= (window or TOKENS)
    junk = [50.0, 51.0, 52.0]  # a prompt is padded
    layer = cache.fill(keys_values([*range(prompt), *junk]), prompt, size)
    assert layer[0].shape == (1, 2, size, 3)
    for index in range(prompt, TOKENS):
        assert held(layer, index, window) == list(
            range(max(0, index + 1 - (window or TOKENS)), index)
        )
        own = cache.keep(keys_values([index]))
        layer = cache.write(layer, own, index, np.ones(1, "int32"))
