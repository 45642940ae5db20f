"""What a model was made of and what was done to it stays with it, whatever is done."""

import json

import keras
import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec import formats, provenance
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.sharing import catalog, licenses
from keras_encdec.testing.models import make_inputs, tiny_backbone, tiny_lm


@pytest.fixture(scope="module")
def adapted():
    return keras_encdec.adapt("gemma2_tiny_docs", "gemma2_mini_docs", decoder_layers=range(0, 4, 2))


def told(lm):
    return [entry["what"] for entry in lm.provenance["history"]]


def test_sources_and_conversion(adapted):
    record = adapted.provenance
    encoder, decoder = (record["sources"][side] for side in ("encoder", "decoder"))
    assert (encoder["name"], encoder["license"]) == ("gemma2_tiny_docs", "apache-2.0")
    assert encoder["parameters"] == 5_773_568  # of the preset's metadata.json
    assert (decoder["name"], decoder["layers"]) == ("gemma2_mini_docs", 4)
    (converted,) = record["history"]
    assert converted["options"] == {"decoder_layers": [0, 2]}
    assert "decoder of layers 0, 2 of 4" in converted["plan"]
    json.dumps(record)


def test_what_is_read_is_a_copy(adapted):
    adapted.provenance["sources"].clear()
    adapted.provenance["history"][0]["what"] = "nothing"
    assert told(adapted) == ["converted"]
    assert adapted.provenance["sources"]
    with pytest.raises(AttributeError):
        adapted.provenance = {}


def test_a_folder_on_this_machine_is_not_told_of(tmp_path):
    source = keras_hub.models.CausalLM.from_preset(catalog.embedded("gemma2_mini_docs"))
    secret = tmp_path / "customer_x" / "model"
    source.save_to_preset(str(secret))
    lm = keras_encdec.adapt(str(secret))
    assert lm.provenance["sources"]["encoder"]["name"] == "model"
    assert "customer_x" not in json.dumps(lm.provenance)
    in_memory = keras_encdec.adapt(source).provenance["sources"]["encoder"]
    assert in_memory["name"] == "a GemmaCausalLM in memory"
    assert "license" not in in_memory


LOADERS = {
    "keras_encdec": keras_encdec.from_preset,
    "keras_hub": keras_hub.models.Seq2SeqLM.from_preset,
}


@pytest.mark.parametrize("loader", LOADERS)
def test_it_is_saved_and_loaded(adapted, tmp_path, loader):
    adapted.save_to_preset(tmp_path / "model")
    again = LOADERS[loader](str(tmp_path / "model"))
    assert again.provenance == adapted.provenance
    assert adapted.provenance == json.loads((tmp_path / "model/provenance.json").read_text())


def test_a_backbone_and_a_keras_file_keep_it(tmp_path):
    lm = tiny_lm()
    lm.backbone.record.add("noted", by="a test")
    lm.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").provenance == lm.provenance
    lm.backbone.save_to_preset(tmp_path / "backbone")
    backbone = EncDecBackbone.from_preset(str(tmp_path / "backbone"))
    assert EncDecSeq2SeqLM(backbone).provenance == lm.provenance


@pytest.mark.slow
def test_lora_training_merging_and_export(adapted, tmp_path):
    adapted.save_to_preset(tmp_path / "first")
    lm = keras_encdec.from_preset(tmp_path / "first")
    lm.backbone.enable_lora(2)
    lm.compile(keras.optimizers.SGD(1e-2))
    x = make_inputs()
    lm.fit(x, np.roll(x["decoder_token_ids"], -1, 1), verbose=0)
    assert told(lm) == ["converted", "lora", "fit"]
    lm.save_to_preset(tmp_path / "model")
    assert told(lm) == ["converted", "lora", "fit"]  # in memory they are apart
    again = keras_encdec.from_preset(tmp_path / "model")
    assert told(again) == ["converted", "lora", "fit", "lora merged"]
    again.quantize("int8")
    lm.export_to_transformers(tmp_path / "exported")
    back = keras_encdec.from_preset(tmp_path / "exported")
    assert told(back) == ["converted", "lora", "fit", "lora merged", "exported"]
    assert back.provenance["sources"] == adapted.provenance["sources"]
    assert told(again)[-1] == "quantised"


def test_weights_from_elsewhere_are_said(tmp_path):
    lm = tiny_lm()
    lm.save_weights(tmp_path / "others.weights.h5")
    lm.backbone.save_weights(tmp_path / "backbone.weights.h5")
    lm.backbone.load_weights(tmp_path / "backbone.weights.h5")
    entry = lm.provenance["history"][-1]
    assert (entry["what"], entry["name"]) == ("weights loaded", "backbone.weights.h5")


@pytest.fixture
def folder(tmp_path):
    EncDecSeq2SeqLM(tiny_backbone()).save_to_preset(tmp_path / "model")
    return tmp_path / "model"


def rewritten(folder, change):
    path = folder / provenance.FILE
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_preset_of_before_loads_and_says_that_nothing_is_known(folder):
    for name in (provenance.FILE, "digests.json"):
        (folder / name).unlink()
    (entry,) = keras_encdec.from_preset(folder).provenance["history"]
    assert (entry["what"], entry["record"]) == ("loaded", None)


def test_another_record_is_refused(folder):
    rewritten(folder, lambda record: record["history"].append({"what": "fit"}))
    with pytest.raises(ValueError, match=r"Received: another provenance\.json"):
        keras_encdec.from_preset(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": {"number": 99, "version": "7.1.0"}}, r'"keras-encdec>=7\.1\.0"'),
        ({"format": 99}, "pip install --upgrade keras-encdec"),
        ({"format": {"number": "one"}}, "Expected the number of a format"),
        ({"history": None}, "Expected sources and a history"),
        ({"history": [3]}, "Expected sources and a history"),
        ({"sources": []}, "Expected sources and a history"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(folder, changes, message):
    rewritten(folder, lambda record: record.update(changes))
    (folder / "digests.json").unlink()
    with pytest.raises(ValueError, match=message):
        keras_encdec.from_preset(folder)


def test_what_is_written_says_by_which_version(folder):
    own = formats.version_of()
    for name in (provenance.FILE, "config.json"):
        data = json.loads((folder / name).read_text())
        assert data.get("config", data)["format"] == {"number": 1, "version": own}


@pytest.mark.parametrize(
    ("preset", "license", "name"),
    [
        ("gemma2_9b_en", "gemma", "google/gemma-2-9b"),
        ("gemma2_instruct_27b_en", "gemma", "google/gemma-2-27b-it"),
        ("gemma3_instruct_4b_text", "gemma", "google/gemma-3-4b-it"),
        ("gemma3_270m", "gemma", "google/gemma-3-270m"),
        ("kaggle://keras/gemma2/keras/gemma2_2b_en/2", "gemma", "google/gemma-2-2b"),
        ("kaggle://keras/gemma2/keras/gemma2_2b_en", "gemma", "google/gemma-2-2b"),
        ("llama3.2_instruct_1b", "llama3.2", "meta-llama/Llama-3.2-1B-Instruct"),
        ("qwen2.5_0.5b_en", "apache-2.0", "Qwen/Qwen2.5-0.5B"),
        ("gpt_oss_20b_en", "apache-2.0", "openai/gpt-oss-20b"),
        ("qwen2.5_3b_en", None, None),  # of Qwen's own
        ("me/mine", None, None),
    ],
)
def test_licences_of_known_presets(preset, license, name):
    known = catalog.license_of(preset)
    assert (known.get("license"), known.get("hugging_face")) == (license, name)


def test_every_recipe_has_sources_of_known_licence():
    sources = {s for r in catalog.presets.values() for s in (r.encoder, r.decoder) if s}
    assert all(catalog.license_of(source)["license"] in licenses.KNOWN for source in sources)
