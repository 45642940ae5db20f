"""Saving and loading: bit for bit, whole or not at all, and without a network."""

import errno
import json
import socket
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from reference_folder import facts_of

import keras_encdec
from keras_encdec.cli.plan import show_plan
from keras_encdec.conversion.effective import effective_weights
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.sharing.load import plan
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, run, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training import pretrained


@pytest.fixture
def lm():
    size = {"vocabulary_size": 4096}  # the tokenizer's
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    return EncDecSeq2SeqLM(backbone, preprocessor())


def preprocessor():
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    return EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 20, chat=True)


def assert_same(first, second):
    for ours, theirs in zip(first.backbone.weights, second.backbone.weights, strict=True):
        assert ours.path == theirs.path
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


LOADERS = {
    "keras_encdec": keras_encdec.from_preset,
    "keras_hub": keras_hub.models.Seq2SeqLM.from_preset,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("shard_size", [10, 8e-4])
def test_round_trip(lm, tmp_path, loader, shard_size):
    folder = str(tmp_path / "model")
    lm.save_to_preset(folder, max_shard_size=shard_size)
    assert (len(list(Path(folder).glob("*.weights.h5"))) > 1) == (shard_size < 1)
    again = LOADERS[loader](folder)
    assert type(again) is EncDecSeq2SeqLM
    assert_same(lm, again)
    assert again.backbone.spec == lm.backbone.spec
    settings = ("encoder_sequence_length", "decoder_sequence_length", "chat", "stop_token_ids")
    for name in settings:
        assert getattr(again.preprocessor, name) == getattr(lm.preprocessor, name)


@pytest.mark.slow
def test_bfloat16_round_trip(tmp_path):
    lm = EncDecSeq2SeqLM(tiny_backbone(dtype="bfloat16"))
    lm.save_to_preset(tmp_path / "model")
    assert_same(lm, keras_encdec.from_preset(tmp_path / "model", dtype="bfloat16"))


BACKBONE_LOADERS = {
    "keras_encdec": lambda *args, **kwargs: keras_encdec.from_preset(*args, **kwargs).backbone,
    "keras_hub": lambda *a, **k: keras_hub.models.Seq2SeqLM.from_preset(*a, **k).backbone,
    "backbone": keras_hub.models.Backbone.from_preset,
}
POLICIES = ["mixed_bfloat16", "mixed_float16", "bfloat16"]
every_loader = pytest.mark.parametrize("loader", BACKBONE_LOADERS.values(), ids=BACKBONE_LOADERS)


def states(backbone):
    return run(backbone, make_inputs())["decoder_sequence_output"]


@pytest.mark.slow
@every_loader
@pytest.mark.parametrize("policy", POLICIES)
def test_a_pair_comes_back_in_the_policy_that_it_was_saved_in(policy, loader, tmp_path):
    lm, folder = EncDecSeq2SeqLM(tiny_backbone(dtype=policy)), str(tmp_path / "model")
    lm.save_to_preset(folder)
    again = loader(folder)
    assert {v.dtype for v in again.weights} == {v.dtype for v in lm.backbone.weights}
    assert {layer.dtype_policy.name for layer in kernels(again)} == {policy}
    assert again.dtype_policy.name == policy
    np.testing.assert_array_equal(states(again), states(lm.backbone))
    for asked in ("float32", "mixed_bfloat16"):
        other = loader(folder, dtype=asked)
        assert {layer.dtype_policy.name for layer in kernels(other)} == {asked}


@pytest.mark.slow
@every_loader
def test_float32_says_nothing_against_keras_default_policy(loader, tmp_path):
    backbone, folder = tiny_backbone(), str(tmp_path / "model")
    EncDecSeq2SeqLM(backbone).save_to_preset(folder)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert loader(folder).dtype_policy.name == "mixed_bfloat16"
        copy = EncDecBackbone.from_config(backbone.get_config())  # as Keras has it
        assert copy.dtype_policy.name == "float32"
    finally:
        keras.config.set_dtype_policy("float32")
    assert loader(folder).dtype_policy.name == "float32"


@pytest.mark.slow
@every_loader
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantised_pair_comes_back_as_it_was(mode, policy, loader, tmp_path):
    """int4 also without the rounding of what is read out, which Keras brings in by itself."""
    lm, folder = EncDecSeq2SeqLM(tiny_backbone(dtype=policy)), str(tmp_path / "model")
    lm.quantize(mode, filters=pretrained)
    lm.save_to_preset(folder)
    again = loader(folder)
    for ours, theirs in zip(lm.backbone.weights, again.weights, strict=True):
        assert (ours.path, ours.dtype) == (theirs.path, theirs.dtype)
    np.testing.assert_array_equal(states(again), states(lm.backbone))
    found, expected = (run(EncDecSeq2SeqLM(b), make_inputs()) for b in (again, lm.backbone))
    np.testing.assert_array_equal(found, expected)
    names = [
        {layer.path: layer.dtype_policy.name for layer in kernels(b)} for b in (again, lm.backbone)
    ]
    assert names[0] == names[1]
    other = loader(folder, dtype="bfloat16")
    modes = [{layer.path: layer.quantization_mode for layer in kernels(b)} for b in (other, again)]
    assert modes[0] == modes[1]
    assert {layer.compute_dtype for layer in kernels(other)} == {"bfloat16"}


@pytest.mark.slow
def test_a_quantised_pair_trains_lora_and_is_saved_again(tmp_path):
    lm, folder = EncDecSeq2SeqLM(tiny_backbone()), str(tmp_path / "model")
    lm.quantize("int8", filters=pretrained)
    lm.save_to_preset(folder)
    again = keras_encdec.from_preset(folder)
    again.backbone.enable_lora(2)
    for variable in again.trainable_variables:
        variable.assign(variable + 0.1)
    again.save_to_preset(folder)
    third = keras_encdec.from_preset(folder).backbone
    expected = effective_weights(again.backbone)
    for path, array in effective_weights(third).items():  # Keras rounds to int8 once more
        step = np.abs(expected[path]).max() / 127
        assert np.abs(array - expected[path]).max() <= 0.51 * step, path


def test_saving_leaves_a_quantised_pair_as_it_is(tmp_path):
    lm = EncDecSeq2SeqLM(tiny_backbone())
    lm.quantize("int8")
    before = {layer.path: layer.dtype_policy.name for layer in kernels(lm.backbone)}
    lm.save_to_preset(tmp_path / "model")
    assert {layer.path: layer.dtype_policy.name for layer in kernels(lm.backbone)} == before


def kernels(backbone):
    """Layers that can be quantised."""
    kinds = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)
    return [layer for layer in backbone._flatten_layers() if isinstance(layer, kinds)]


def test_a_cached_kaggle_handle_needs_no_network(lm, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    version = tmp_path / "models" / "me" / "pair" / "keras" / "tiny" / "1"
    lm.save_to_preset(version)
    version.with_name("1.complete").touch()  # kagglehub's mark of a finished download
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert_same(lm, keras_encdec.from_preset("kaggle://me/pair/keras/tiny/1"))


@pytest.mark.parametrize("write", ["save_to_preset", "export_to_transformers"])
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_nothing_behind(lm, tmp_path, monkeypatch, write, before):
    folder = tmp_path / "model"
    if before:
        getattr(lm, write)(folder)
    names = sorted(path.name for path in folder.rglob("*")) if before else []

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keras.src.saving.saving_lib.save_weights_only", full)
    monkeypatch.setattr("keras.src.models.model.saving_api.save_weights", full)
    monkeypatch.setattr("keras_encdec.sharing.export.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        getattr(lm, write)(folder)
    assert sorted(path.name for path in folder.rglob("*")) == names
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if before else [])


def test_a_folder_with_something_else_is_left_alone(lm, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for write in (lm.save_to_preset, lm.export_to_transformers, lm.backbone.save_to_preset):
        with pytest.raises(ValueError, match="holds something else"):
            write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_saving_again_replaces(lm, tmp_path):
    lm.save_to_preset(tmp_path / "model")
    stale, foreign = (tmp_path / "model" / name for name in ("model_7.weights.h5", "thesis.tex"))
    stale.touch()
    lm.save_to_preset(tmp_path / "model")
    assert not stale.exists()
    foreign.touch()
    for save in (lm.save_to_preset, lm.backbone.save_to_preset, lm.export_to_transformers):
        with pytest.raises(ValueError, match=r"something else: thesis\.tex"):
            save(tmp_path / "model")
    assert foreign.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_an_architecture_starts_from_random_weights(monkeypatch):
    recipe = catalog.presets["gemma2_tiny_mini"]
    monkeypatch.setattr(
        catalog,
        "_recipes",
        lambda: {"arch": catalog.Recipe(None, None, *[recipe.encoder_spec] * 2, False, "")},
    )
    lm = keras_encdec.from_preset("arch", preprocessor=None)
    assert lm.backbone.count_params() == catalog.presets["arch"].parameters


def test_the_list_of_presets():
    assert keras_encdec.presets["gemma2_9b_2b"].parameters == 12_292_375_296
    assert "gemma2_instruct_27b_27b" in repr(keras_encdec.presets)
    assert keras_encdec.presets["gemma2_instruct_9b_2b"].chat


def test_an_architecture_plans_every_weight_fresh():
    result = plan("t5gemma_s_s")
    assert len(result.fresh) == len(result.steps) > 0
    assert "0 from the source, 312,517,632 fresh" in result.summary()


def test_a_random_pair_takes_options_too():
    result = plan("t5gemma_s_s", merged_attention=True, tied_embeddings=True)
    assert result.pair.tied_embeddings
    assert not any("cross_attention" in step.target for step in result.steps)


def test_a_plan_of_two_models_needs_their_configs_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(facts_of("qwen2")["config"]))
    result = plan(tmp_path, "gemma2_mini_docs", decoder_layers=range(0, 4, 2))
    assert result.decoder_layers == (0, 2)
    assert result.pair.encoder.width == 40
    assert result.pair.decoder.vocabulary_size == 4096
    show_plan(str(tmp_path), "gemma2_mini_docs", "bfloat16", "0:4:2")
    assert "decoder of layers 0, 2 of 4" in capsys.readouterr().out
    assert "layers 1, 3" in str(result)


@pytest.mark.parametrize("layers", ["two", "0,x", "0:1:2:3:4", "9"])
def test_layers_that_there_are_not(layers):
    with pytest.raises(ValueError, match=r"Expected (--)?decoder.layers"):
        show_plan("gemma2_tiny_docs", None, "bfloat16", layers)
