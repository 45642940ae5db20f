"""What a stack keeps of its layers while it runs: all states, or the last alone."""

import functools
import gc
import weakref

import numpy as np
import pytest
from keras import ops

from keras_encdec.layers.block import Block
from keras_encdec.layers.decoder import Decoder
from keras_encdec.layers.encoder import Encoder
from keras_encdec.testing.models import to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder

DEPTH = 6
IDS = np.arange(3, 15, dtype="int32")[None]
MASK = np.ones_like(IDS)


@pytest.fixture
def alive(monkeypatch):
    """For each block as it begins: how many inputs and keys of earlier ones are in memory."""
    counts, inputs, keys, call = [], [], [], Block.call

    @functools.wraps(call)
    def counted(self, x, *args, **kwargs):
        gc.collect()
        counts.append(tuple(sum(ref() is not None for ref in refs) for refs in (inputs, keys)))
        inputs.append(weakref.ref(x))
        found = call(self, x, *args, **kwargs)
        keys.append(weakref.ref(found[1][0]))
        return found

    monkeypatch.setattr(Block, "call", counted)
    return counts


def run(function, *inputs):
    """Without gradients, for which PyTorch keeps everything."""
    inputs = [ops.convert_to_tensor(x) for x in inputs]
    if not hasattr(inputs[0], "requires_grad"):
        return function(*inputs)
    import torch

    with torch.no_grad():
        return function(*inputs)


@pytest.mark.slow
def test_an_encoder_lets_go_of_earlier_states(alive):
    encoder = Encoder(tiny_encoder(windows=(None,) * DEPTH))
    output = run(encoder, IDS, MASK)
    assert len(alive) == DEPTH
    assert max(alive) <= (0, 1)
    alive.clear()
    states = run(encoder.all_states, IDS, MASK)
    assert len(states) == DEPTH + 1
    assert alive[-1][0] >= DEPTH - 1  # who asks for them has them
    np.testing.assert_array_equal(to_numpy(states[-1]), to_numpy(output))


@pytest.mark.slow
def test_a_decoder_lets_go_of_earlier_states_and_keys(alive):
    decoder = Decoder(tiny_decoder(windows=(6,) * DEPTH), context_width=20)
    run(decoder, IDS, MASK, np.ones((1, 5, 20), "float32"), np.ones((1, 5), "int32"))
    assert len(alive) == DEPTH
    assert max(alive) <= (0, 1)


@pytest.mark.slow
def test_all_states_are_what_goes_into_each_block():
    encoder = Encoder(tiny_encoder(windows=(None,) * 3))
    encoder.build()
    states = run(encoder.all_states, IDS, MASK)
    assert len(states) == 4
    np.testing.assert_array_equal(to_numpy(states[0]), to_numpy(encoder.embed(IDS)))
    positions, visible = encoder._places(ops.convert_to_tensor(MASK))
    *inputs, output = states
    for block, before, after in zip(encoder.blocks, inputs, [*inputs[1:], output], strict=True):
        found, *_ = block(before, visible[None], positions)
        found = encoder.final_norm(found) if after is output else found
        np.testing.assert_allclose(to_numpy(found), to_numpy(after), atol=1e-6)
