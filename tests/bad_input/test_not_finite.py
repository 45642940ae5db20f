"""Weights that are no numbers, or not those that were saved, are named; nothing hides them."""

import json
import shutil

import keras_hub
import ml_dtypes
import numpy as np
import pytest

import keras_encdec
from keras_encdec.generation import BeamSearch
from keras_encdec.integrity import is_finite
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_backbone, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder

PATH = "decoder/block_0/feedforward/up/kernel"


@pytest.fixture
def lm():
    size = {"windows": (8,), "vocabulary_size": 4096}
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    return EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 20))


def spoil(lm, path=PATH, value=np.nan):
    (variable,) = [v for v in lm.weights if v.path == path]
    array = np.array(to_numpy(variable))
    array.flat[3] = value
    variable.assign(array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_what_is_finite(dtype):
    array = np.zeros((3, 70_000), dtype)
    array[0, 0], array[1, 1] = np.finfo(np.float16).max, -0.0
    assert is_finite(array)
    assert is_finite(array.T)
    for value in (np.nan, np.inf, -np.inf):
        array[2, -1] = value
        assert not is_finite(array)
    assert is_finite(np.full(5, 255, "uint8"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_they_are_not_saved(lm, tmp_path, value):
    spoil(lm, value=value)
    for save in (lm.save_to_preset, lm.backbone.save_to_preset, lm.export_to_transformers):
        with pytest.raises(ValueError, match=f"NaN or Inf in {PATH}, 1 of"):
            save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", ["greedy", "top_k", BeamSearch(2), "contrastive"], ids=lambda s: str(s)[:6]
)
def test_they_write_nothing(lm, sampler):
    spoil(lm)
    lm.compile(sampler=sampler)
    with pytest.raises(FloatingPointError, match="Expected finite logits for a token"):
        lm.generate(["Some text."], 12)
    with pytest.raises(FloatingPointError, match="Expected finite logits for a log-probability"):
        lm.score({"encoder_text": ["Some text."], "decoder_text": ["Of it."]})


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", ["greedy", "contrastive", BeamSearch(2)], ids=lambda s: str(s)[:6]
)
def test_nor_where_it_begins_behind_the_prompt(sampler):
    """Two tokens, one of which is always the likeliest, become Inf when they are read."""
    lm = tiny_lm()
    embeddings = lm.backbone.decoder.embedding.embeddings
    rows = np.array(to_numpy(embeddings))
    rows[[90, 91]] = 0
    rows[[90, 91], 0] = 1e38, -1e38
    embeddings.assign(rows)
    x = make_inputs((9, 5), (3, 3))
    x["decoder_token_ids"] %= 80
    lm.compile(sampler=sampler)
    found = lm.generate(x, 4, None)["decoder_token_ids"]  # which reads none of the two
    assert np.isin(found[:, 3], [90, 91]).all()
    with pytest.raises(FloatingPointError, match="Expected finite logits for a token"):
        lm.generate(x, 8, None)


def test_nor_do_streams(lm):
    spoil(lm)
    with pytest.raises(FloatingPointError):
        list(lm.generate_stream("Some text.", 12))


@pytest.fixture
def preset(lm, tmp_path):
    lm.save_to_preset(tmp_path / "model")
    return tmp_path / "model"


LOADERS = {
    "keras_encdec": keras_encdec.from_preset,
    "keras_hub": keras_hub.models.Seq2SeqLM.from_preset,
    "backbone": EncDecBackbone.from_preset,
}


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_a_flipped_bit_is_named(lm, preset, loader):
    loader(str(preset))
    array = to_numpy(lm.backbone.get_layer("decoder").embedding.embeddings)
    data = bytearray((preset / "model.weights.h5").read_bytes())
    at = data.index(np.ascontiguousarray(array).tobytes())
    data[at + 1001] ^= 1
    (preset / "model.weights.h5").write_bytes(data)
    with pytest.raises(ValueError, match="another decoder/embedding/embeddings"):
        loader(str(preset))


@pytest.mark.slow
@pytest.mark.parametrize("max_shard_size", [None, 1e-3])
def test_in_a_narrower_dtype_too(lm, tmp_path, max_shard_size):
    """Where what was loaded says nothing of the last bits of the file."""
    lm.save_to_preset(tmp_path / "model", max_shard_size)
    keras_encdec.from_preset(str(tmp_path / "model"), dtype="bfloat16")
    array = np.ascontiguousarray(to_numpy(lm.backbone.get_layer("decoder").embedding.embeddings))
    for path in (tmp_path / "model").glob("*.weights.h5"):
        data = bytearray(path.read_bytes())
        if (at := data.find(array.tobytes())) >= 0:
            data[at] ^= 1  # the last bit of the first number
            path.write_bytes(data)
    with pytest.raises(ValueError, match="another decoder/embedding/embeddings"):
        keras_encdec.from_preset(str(tmp_path / "model"), dtype="bfloat16")


@pytest.mark.slow
def test_in_a_wider_dtype_too(preset, lm, tmp_path):
    half = keras_encdec.from_preset(str(preset), dtype="bfloat16")
    half.save_to_preset(tmp_path / "half")
    keras_encdec.from_preset(str(tmp_path / "half"), dtype="float32")
    digests = json.loads((tmp_path / "half" / "digests.json").read_text())
    digests["tensors"][PATH][1] ^= 1
    (tmp_path / "half" / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(ValueError, match=f"another {PATH}"):
        keras_encdec.from_preset(str(tmp_path / "half"), dtype="float32")


def test_another_tokenizer_is_refused(preset):
    (asset,) = (preset / "assets" / "tokenizer").iterdir()
    asset.write_bytes(asset.read_bytes() + b"\x0a\x00")
    with pytest.raises(ValueError, match=r"another assets/tokenizer/vocabulary\.spm"):
        keras_encdec.from_preset(str(preset))


def test_without_digests_it_loads_as_ever(preset):
    (preset / "digests.json").unlink()
    keras_encdec.from_preset(str(preset))


@pytest.mark.slow
def test_lora_and_quantised_pairs_come_back(lm, tmp_path):
    lm.backbone.enable_lora(2)
    for layer in lm.backbone._flatten_layers():
        if getattr(layer, "lora_enabled", False):
            layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    logits = to_numpy(lm.predict_on_batch(make_inputs()))
    lm.save_to_preset(tmp_path / "lora")
    again = keras_encdec.from_preset(str(tmp_path / "lora"))
    np.testing.assert_allclose(to_numpy(again.predict_on_batch(make_inputs())), logits, atol=1e-4)


def test_weights_saved_by_keras_have_no_digests(lm, tmp_path):
    lm.save_weights(tmp_path / "own.weights.h5")
    lm.load_weights(tmp_path / "own.weights.h5")


def test_a_source_that_is_not_finite_is_named(tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(catalog.embedded("gemma2_mini_docs"), folder)
    source = keras_hub.models.Backbone.from_preset(str(folder))
    source.token_embedding.embeddings.assign(
        np.where(np.arange(source.token_embedding.embeddings.shape[1]) == 2, np.inf, 0)
        + np.zeros(source.token_embedding.embeddings.shape)
    )
    with pytest.raises(ValueError, match="NaN or Inf in token_embedding/embeddings"):
        keras_encdec.adapt(source)
