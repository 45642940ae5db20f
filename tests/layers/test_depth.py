"""Blocks that are compiled once give the numbers of blocks one after another."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_encdec.layers import depth
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.testing.models import make_inputs, tiny_backbone, tiny_lm, to_numpy
from keras_encdec.testing.specs import sunk, tiny_decoder, tiny_encoder, tiny_pair, uneven

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="blocks are scanned on JAX")
# Two patterns of two and a block that is left; in the decoder five that are alike, and one.
WINDOWS = {"encoder": (8, None, 8, None, 8), "decoder": (6, 6, 6, 6, 6, None)}


def pair(**changes):
    encoder, decoder = (WINDOWS[side] for side in ("encoder", "decoder"))
    return tiny_pair(
        encoder=tiny_encoder(windows=encoder, **changes),
        decoder=tiny_decoder(windows=decoder, **changes),
    )


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("a", [(0, 1, 1)]),
        ("aaaa", [(0, 1, 4)]),
        ("abcd", [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1)]),
        ("ab" * 13, [(0, 2, 13)]),
        ("aaaaab" * 4 + "aa", [(0, 6, 4), (24, 1, 2)]),  # Gemma 3 1B
        ("abbb", [(0, 1, 1), (1, 1, 3)]),
    ],
)
def test_stretches(kinds, expected):
    found = depth.stretches(kinds)
    assert found == expected
    assert sum(stretch.period * stretch.times for stretch in found) == len(kinds)


def test_a_stretch_ends_where_states_are_read():
    blocks = tiny_backbone(pair()).decoder.blocks
    found = depth.stretches_of(blocks, (6,) * 6, True, ends=(2, 6))
    assert found == [(0, 1, 2), (2, 1, 4)]


def test_blocks_are_alike_by_what_they_compute():
    blocks = tiny_backbone(pair()).decoder.blocks
    assert len({depth.kind(block) for block in blocks}) == 1
    blocks[1].trainable = False
    blocks[2].attention.query.enable_lora(2)
    blocks[3].attention.query.enable_lora(2, lora_alpha=8)
    blocks[4].feedforward.up.quantize("int8")
    assert len({depth.kind(block) for block in blocks}) == 5


def test_layers_of_two_shapes_take_turns_and_those_that_hand_on_stay_apart():
    one = dataclasses.replace(uneven(tiny_encoder(), 0), per_layer_dim=None)
    for stack, expected in (
        (one, [(0, 2, 2)]),
        (uneven(tiny_encoder()), [(i, 1, 1) for i in range(4)]),
    ):
        blocks = tiny_backbone(tiny_pair(encoder=stack)).encoder.blocks
        assert depth.stretches_of(blocks, stack.windows, True, (4,)) == expected


def loss(backbone, inputs, training):
    outputs = backbone(inputs, training=training)
    real = ops.cast(inputs["decoder_padding_mask"][..., None] > 0, "float32")
    return ops.sum(ops.square(outputs["decoder_sequence_output"] * real))


def found(backbone, inputs):
    weights = backbone.trainable_variables
    value, gradients = value_and_gradients(lambda: loss(backbone, inputs, True), weights)
    return [np.asarray(value), *gradients]


def programs(backbone, inputs):
    """Equations of a forward pass, loops counted once."""
    import jax

    return len(str(jax.make_jaxpr(lambda x: loss(backbone, x, False))(inputs)).splitlines())


@pytest.mark.slow
@on_jax
@pytest.mark.parametrize("change", [lambda spec: spec, sunk], ids=["usual", "sunk"])
def test_a_scan_changes_no_number(change):
    sides = {side: change(getattr(pair(), side)) for side in WINDOWS}
    backbone, inputs = tiny_backbone(tiny_pair(**sides)), make_inputs((20, 13), (16, 9))
    before, expected = programs(backbone, inputs), found(backbone, inputs)
    backbone.scan = True
    assert programs(backbone, inputs) < 0.6 * before
    for array, value in zip(found(backbone, inputs), expected, strict=True):
        scale = np.abs(value).max() or 1  # compiling the same without a scan differs by 1.4e-5
        np.testing.assert_allclose(array / scale, value / scale, atol=2e-5, rtol=0)


def trained(change, dropout=0.0, **settings):
    """Weights and seeds after two epochs of one step."""
    keras.utils.set_random_seed(0)
    lm = tiny_lm(pair=pair(dropout=dropout))
    change(lm)
    lm.compile(keras.optimizers.SGD(0.1), **settings)
    x = make_inputs((20, 13), (16, 9))
    labels, weights = x["decoder_token_ids"], x["decoder_padding_mask"]
    lm.fit(x, labels, sample_weight=weights, epochs=2, verbose=0)
    return [to_numpy(v) for v in lm.variables]


def changed_nothing(lm):
    pass


def quantised_with_lora(lm):
    lm.backbone.quantize("int8")
    lm.backbone.enable_lora(2, train_cross_attention=False)


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "options"),
    [(changed_nothing, {"dropout": 0.3}), (quantised_with_lora, {})],
)
@pytest.mark.parametrize("remat", [False, True])
def test_a_scan_trains_the_same_weights_and_draws_the_same(change, options, remat):
    expected = trained(change, **options)
    again = trained(change, scan=True, remat=remat, **options)
    for array, value in zip(again, expected, strict=True):
        np.testing.assert_allclose(array, value, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@on_jax
def test_who_wants_each_state_gets_it_from_blocks_one_by_one():
    import jax

    encoder, inputs = tiny_backbone(pair()).encoder, make_inputs((20, 13), (16, 9))
    sides = inputs["encoder_token_ids"], inputs["encoder_padding_mask"]
    expected = jax.jit(encoder.all_states)(*sides)
    encoder.scan = True
    states = jax.jit(encoder.all_states)(*sides)
    assert len(states) == len(expected) == 6
    for array, value in zip(states, expected, strict=True):
        np.testing.assert_array_equal(array, value)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX scans")
def test_other_backends_refuse_a_scan():
    with pytest.raises(ValueError, match=r"Expected scan=False .* Received: True"):
        tiny_backbone().scan = True
