"""What trained after `enable_lora` goes through a file, the whole cross-attention included."""

import h5py
import keras_hub
import numpy as np
import pytest

from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.testing.models import draw, make_inputs, run, tiny_backbone
from keras_encdec.testing.specs import other_pair, tiny_pair
from keras_encdec.training.warmup import is_new

# How LoRA is enabled, and on which pair.
WAYS = {
    "usual": ({}, tiny_pair),
    "with a gate and biases": ({}, other_pair),
    "in the cross-attention too": ({"train_cross_attention": False}, tiny_pair),
    "on other layers": ({"target_layer_names": ["gate", "embedding"]}, tiny_pair),
}
every_way = pytest.mark.parametrize(("options", "make_pair"), WAYS.values(), ids=WAYS)


def trained(options, make_pair, **kwargs):
    """A pair with LoRA whose every trainable weight has moved."""
    lm = EncDecSeq2SeqLM(tiny_backbone(make_pair(), **kwargs))
    lm.backbone.enable_lora(3, **options)
    for variable in lm.trainable_variables:
        variable.assign(0.3 * draw(f"trained {variable.path}", tuple(variable.shape)))
    return lm


@pytest.mark.slow
@every_way
@pytest.mark.parametrize("enabled", [True, False])
def test_a_freshly_adapted_pair_gets_all_that_trained(options, make_pair, enabled, tmp_path):
    lm, path = trained(options, make_pair), tmp_path / "run.lora.h5"
    expected = run(lm, make_inputs())
    lm.backbone.save_lora_weights(path)
    fresh = EncDecSeq2SeqLM(tiny_backbone(make_pair()))
    before = run(fresh, make_inputs())
    if enabled:
        fresh.backbone.enable_lora(3, **options)
    fresh.backbone.load_lora_weights(path)
    np.testing.assert_array_equal(run(fresh, make_inputs()), expected)
    assert np.abs(before - expected).max() > 0.1
    names = {v.path for v in lm.trainable_variables}
    assert {v.path for v in fresh.trainable_variables} == names


def test_it_holds_what_trained_and_no_more(tmp_path):
    lm = trained({}, other_pair)
    lm.backbone.save_lora_weights(tmp_path / "run.lora.h5")
    with h5py.File(tmp_path / "run.lora.h5") as file:
        assert file["lora/vars/rank"][()] == 3
        items = {}
        file.visititems(items.__setitem__)
        arrays = [name for name, item in items.items() if isinstance(item, h5py.Dataset)]
    whole = {name.removeprefix("trained/") for name in arrays if name.startswith("trained/")}
    assert whole == {path for path in other_pair().weights() if is_new(path)}
    assert any("cross_attention_gate" in path for path in whole)
    assert len(arrays) == 1 + len(lm.trainable_variables)


def test_frozen_afterwards_it_is_saved_all_the_same(tmp_path):
    lm = trained({}, tiny_pair)
    expected = run(lm, make_inputs())
    lm.backbone.trainable = False
    lm.backbone.save_lora_weights(tmp_path / "run.lora.h5")
    fresh = EncDecSeq2SeqLM(tiny_backbone())
    fresh.backbone.load_lora_weights(tmp_path / "run.lora.h5")
    np.testing.assert_array_equal(run(fresh, make_inputs()), expected)


def test_keras_hub_reads_its_part(tmp_path):
    options = {"train_cross_attention": False}
    lm = trained(options, tiny_pair)
    lm.backbone.save_lora_weights(tmp_path / "run.lora.h5")
    fresh = EncDecSeq2SeqLM(tiny_backbone())
    fresh.backbone.enable_lora(3, **options)
    keras_hub.models.Backbone.load_lora_weights(fresh.backbone, tmp_path / "run.lora.h5")
    np.testing.assert_array_equal(run(fresh, make_inputs()), run(lm, make_inputs()))


def test_a_file_of_keras_hub_is_read_and_what_it_lacks_is_said(tmp_path):
    lm, path = trained({}, tiny_pair), tmp_path / "run.lora.h5"
    keras_hub.models.Backbone.save_lora_weights(lm.backbone, path)
    fresh = EncDecSeq2SeqLM(tiny_backbone())
    fresh.backbone.enable_lora(3)
    with pytest.warns(UserWarning, match="holds LoRA alone: the cross-attention stays"):
        fresh.backbone.load_lora_weights(path)
    theirs = {v.path: v for v in lm.weights}
    for variable in fresh.weights:
        same = np.array_equal(variable.numpy(), theirs[variable.path].numpy())
        assert same != is_new(variable.path), variable.path


@pytest.mark.slow
def test_half_precision_goes_through_exactly(tmp_path):
    lm = trained({}, tiny_pair, dtype="bfloat16")
    lm.backbone.save_lora_weights(tmp_path / "run.lora.h5")
    fresh = EncDecSeq2SeqLM(tiny_backbone(dtype="bfloat16"))
    fresh.backbone.load_lora_weights(tmp_path / "run.lora.h5")
    np.testing.assert_array_equal(run(fresh, make_inputs()), run(lm, make_inputs()))


@pytest.mark.parametrize(
    ("make_pair", "options", "message"),
    [
        (other_pair, {}, "of a pair like this one.*Received"),
        (tiny_pair, {"target_layer_names": ["query"]}, "Received: .*target_layer_names"),
    ],
)
def test_a_file_of_another_pair_changes_nothing(make_pair, options, message, tmp_path):
    trained({}, tiny_pair).backbone.save_lora_weights(tmp_path / "run.lora.h5")
    other = trained(options, make_pair)
    before = {v.path: v.numpy() for v in other.weights}
    with pytest.raises(ValueError, match=rf"Expected LoRA .*{message}"):
        other.backbone.load_lora_weights(tmp_path / "run.lora.h5")
    for variable in other.weights:
        np.testing.assert_array_equal(variable.numpy(), before[variable.path])


@pytest.mark.parametrize("make_pair", [other_pair, tiny_pair])
def test_nor_does_it_enable_lora_in_another_pair(make_pair, tmp_path):
    wrong = tiny_pair if make_pair is other_pair else other_pair
    trained({}, wrong).backbone.save_lora_weights(tmp_path / "run.lora.h5")
    fresh = tiny_backbone(make_pair())
    before = [(v.path, v.trainable) for v in fresh.weights]
    with pytest.raises(ValueError, match=r"Expected LoRA of a pair like this one.*Received"):
        fresh.load_lora_weights(tmp_path / "run.lora.h5")
    assert [(v.path, v.trainable) for v in fresh.weights] == before
    fresh.save_to_preset(tmp_path / "still whole")


@pytest.mark.slow
def test_a_flipped_bit_is_refused_or_was_of_no_use(tmp_path):
    lm, path = trained({}, tiny_pair), tmp_path / "run.lora.h5"
    lm.backbone.save_lora_weights(path)
    data, values = path.read_bytes(), {v.path: v.numpy() for v in lm.trainable_variables}
    rng, refused = np.random.default_rng(0), 0
    for place in (*rng.integers(0, 8000, 30), *rng.integers(0, len(data), 30)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            lm.backbone.load_lora_weights(path)
        except ValueError as error:
            assert "Expected" in str(error)  # noqa: PT017
            refused += 1
        for variable in lm.trainable_variables:
            np.testing.assert_array_equal(variable.numpy(), values[variable.path])
    assert refused > 20


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    lm = trained({}, tiny_pair)
    lm.trainable_variables[3].assign(np.full(lm.trainable_variables[3].shape, np.nan))
    with pytest.raises(ValueError, match=r"NaN or Inf in .*block_0"):
        lm.backbone.save_lora_weights(tmp_path / "run.lora.h5")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_such_file(tmp_path):
    lm, path = trained({}, tiny_pair), tmp_path / "run.lora.h5"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"Expected a whole file of save_lora_weights.*Received"):
        lm.backbone.load_lora_weights(path)
    with pytest.raises(ValueError, match=r"ends in \.lora\.h5"):
        lm.backbone.save_lora_weights(tmp_path / "run.h5")
    with pytest.raises(ValueError, match="Call enable_lora first"):
        tiny_backbone().save_lora_weights(path)
    lm.backbone.save_lora_weights(path)
    fresh = tiny_backbone()
    fresh.enable_lora(2)
    with pytest.raises(ValueError, match=r"Received: .*lora_.* the same rank"):
        fresh.load_lora_weights(path)


def test_a_full_disk_leaves_the_file_of_before(tmp_path, monkeypatch):
    lm, path = trained({}, tiny_pair), tmp_path / "run.lora.h5"
    lm.backbone.save_lora_weights(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("keras_encdec.models.lora._keep", full)
    with pytest.raises(OSError, match="No space left"):
        lm.backbone.save_lora_weights(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.lora.h5"]
