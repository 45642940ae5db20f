"""Bad files and names: one clear error each, and nothing left behind."""

import json
import shutil
from pathlib import Path

import keras_hub
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import keras_encdec
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.testing.models import tiny_backbone

PARITY = Path(__file__).parents[1] / "parity"
NAME = "model.decoder.layers.1.cross_attn.k_proj.weight"
CLEAR = r"(?s)Expected .*Received"


@pytest.fixture
def release(tmp_path):
    return Path(shutil.copytree(PARITY / "hf_t5gemma", tmp_path / "release"))


def missing(tensors):
    del tensors[NAME]


def extra(tensors):
    tensors["model.decoder.layers.7.mlp.up_proj.weight"] = tensors[NAME]


def wrong_shape(tensors):
    tensors[NAME] = np.ascontiguousarray(tensors[NAME].T)


def integers(tensors):
    tensors[NAME] = tensors[NAME].astype("int32")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, f"{NAME} is missing"),
        (extra, "layers.7.mlp.up_proj.weight is not part"),
        (wrong_shape, f"{NAME} has shape"),
        (integers, f"{NAME} has dtype I32"),
    ],
)
def test_tensors_that_do_not_fit(release, damage, message):
    tensors = load_file(release / "model.safetensors")
    damage(tensors)
    save_file(tensors, release / "model.safetensors")
    with pytest.raises(ValueError, match=f"{CLEAR}.*{message}"):
        keras_encdec.from_preset(release)


def test_half_precision_is_welcome(release):
    tensors = load_file(release / "model.safetensors")
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    save_file(half, release / "model.safetensors")
    assert keras_encdec.from_preset(release).backbone.dtype == "float32"


def test_a_truncated_file(release):
    path = release / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=CLEAR):
        keras_encdec.from_preset(release)


def test_a_missing_shard(tmp_path):
    folder = shutil.copytree(PARITY / "hf_t5gemma_sharded", tmp_path / "release")
    next(Path(folder).glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=CLEAR):
        keras_encdec.from_preset(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b"])
def test_an_index_that_leads_out_of_its_folder(release, name):
    index = {"metadata": {}, "weight_map": {NAME: name}}
    (release / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="leads out"):
        keras_encdec.from_preset(release)


@pytest.fixture
def ours(tmp_path):
    EncDecSeq2SeqLM(tiny_backbone()).save_to_preset(tmp_path / "ours", max_shard_size=2e-4)
    return tmp_path / "ours"


def test_our_own_index_that_leads_out(ours):
    path = ours / "model.weights.json"
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = "../elsewhere.weights.h5"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="leads out"):
        keras_encdec.from_preset(ours)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:500])])
def test_our_own_weights_damaged(ours, damage):
    damage(sorted(ours.glob("model_*.weights.h5"))[1])
    with pytest.raises(ValueError, match=CLEAR):
        keras_encdec.from_preset(ours)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_json_that_is_none_or_something_else(release, name, text):
    (release / name).write_text(text)
    with pytest.raises(ValueError, match=CLEAR):
        keras_encdec.from_preset(release)


@pytest.mark.parametrize(("field", "value"), [("head_dim", None), ("layer_types", ["chunked"] * 2)])
def test_a_config_that_is_no_t5gemma(release, field, value):
    config = json.loads((release / "config.json").read_text())
    config["decoder"].pop(field)
    if value:
        config["decoder"][field] = value
    (release / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=CLEAR):
        keras_encdec.from_preset(release)


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        keras_encdec.from_preset(tmp_path)


@pytest.mark.parametrize("name", ["gemma2_9b_3b", "gemma2_2b2b"])
def test_an_unknown_name_suggests_the_nearest(name):
    with pytest.raises(ValueError, match=r"Did you mean 'gemma2_"):
        keras_encdec.from_preset(name)
    with pytest.raises(ValueError, match="Received: 'qwertz'"):
        keras_encdec.adapt("qwertz")


def test_a_model_of_another_family():
    backbone = keras_hub.models.GPT2Backbone(50, 1, 2, 16, 32)
    with pytest.raises(
        ValueError, match=r"a KerasHub backbone of a known family.*Gemma.*GPT2Backbone"
    ):
        keras_encdec.adapt(backbone)


def test_options_of_a_conversion_on_a_finished_pair(release):
    with pytest.raises(ValueError, match="expand_gqa"):
        keras_encdec.from_preset(release, expand_gqa=True)
