"""What is not fit to be shared is refused by name, before a hub is asked anything."""

import json
import shutil
import socket

import h5py
import numpy as np
import pytest

import keras_encdec
from keras_encdec.sharing import licenses
from keras_encdec.sharing.whole import check_whole
from keras_encdec.testing.models import tiny_lm

TO = {"handle": "hf://me/mine", "license": "mit"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    parent = tmp_path_factory.mktemp("whole")
    tiny_lm().save_to_preset(parent / "one")
    tiny_lm().save_to_preset(parent / "shards", max_shard_size=1e-4)
    keras_encdec.from_preset("gemma2_tiny_mini").export_to_transformers(parent / "export")
    tiny_lm(dtype="bfloat16").save_to_preset(parent / "bfloat16")
    lora = tiny_lm()
    lora.backbone.enable_lora(2)
    lora.save_to_preset(parent / "lora")
    quantised = tiny_lm()
    quantised.quantize("int8")
    quantised.save_to_preset(parent / "int8")
    return parent


@pytest.fixture
def folder(whole, tmp_path, monkeypatch, request):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    shutil.copytree(whole / getattr(request, "param", "one"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "is_export"),
    [
        *(("one", False), ("shards", False), ("bfloat16", False)),
        *(("lora", False), ("int8", False), ("export", True)),
    ],
)
def test_whole_ones_pass(whole, name, is_export):
    assert check_whole(whole / name) is is_export


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another(path):
    """One number of one tensor."""
    with h5py.File(path, "r+") as file:
        found = []
        file.visititems(
            lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None
        )
        found[3][...] = np.array(found[3]) + 1


def gone(path):
    path.unlink()


def a_letter(path):
    path.write_text("Dear ...")


def a_link(path):
    path.symlink_to("/etc/hostname")


def other_kind(path):
    path.write_text(json.dumps({"registered_name": "keras_hub>GemmaBackbone"}))


def no_model(path):
    path.write_text("{}")


CASES = [
    ("one", "config.json", gone, "without a config.json"),
    ("one", "config.json", other_kind, r"keras_hub>GemmaBackbone.*keras_hub\.upload_preset"),
    ("one", "config.json", no_model, "something else"),
    ("one", "letter.txt", a_letter, r"letter\.txt"),
    ("one", "model_0.weights.h5", a_link, r"model_0\.weights\.h5"),
    ("one", "model.weights.h5", cut, r"model\.weights\.h5"),
    ("one", "model.weights.h5", gone, r"model\.weights\.h5"),
    ("one", "model.weights.h5", another, "1 tensors that differ or are missing, such as"),
    ("one", "digests.json", gone, "no digests.json"),
    ("one", "provenance.json", gone, "without provenance.json"),
    ("one", "provenance.json", cut, "provenance"),
    ("shards", "model_00001.weights.h5", gone, "model_00001"),
    ("shards", "model_00001.weights.h5", another, "differ or are missing"),
    ("export", "model.safetensors", cut, "safetensors"),
    ("export", "model.safetensors", gone, "no such file"),
    ("export", "notes.txt", a_letter, r"notes\.txt"),
]


@pytest.mark.parametrize(("folder", "name", "damage", "message"), CASES, indirect=["folder"])
def test_others_are_refused(folder, name, damage, message):
    damage(folder / name)
    with pytest.raises(ValueError, match=f"(?s)Expected .*{message}"):
        keras_encdec.upload_preset(folder, **TO)


@pytest.mark.parametrize(
    "handle",
    [
        *("me/mine", "./mine", "", "https://huggingface.co/me/mine", "gs://me/mine"),
        *("hf://", "hf://mine", "hf://me/mine/more", "hf://me/a b", "hf://me/.git"),
        *("kaggle://", "kaggle://me", "kaggle://me/mine", "kaggle://me/mine/keras"),
        *("kaggle://me/mine/keras/v1/2", "kaggle://me/mine/keras/v1/last", "kaggle:///a/keras/b"),
        *("kaggle://me/mine/nokeras/v1", "kaggle://me/mine/keras/v1/2/3"),
    ],
)
def test_a_handle_of_another_form_is_refused(folder, handle):
    with pytest.raises(ValueError, match=r"Expected .*Received: "):
        keras_encdec.upload_preset(folder, handle, license="mit")
    with pytest.raises(ValueError, match=r"Expected .*Received: "):
        tiny_lm().upload(handle, license="mit")


@pytest.mark.parametrize(
    "handle", ["hf://me/mine/more", "kaggle://me/mine", "kaggle://a/b/keras/c/x"]
)
def test_so_is_one_to_load(handle):
    with pytest.raises(ValueError, match=r"Expected a handle of .*Received: "):
        keras_encdec.from_preset(handle)


@pytest.mark.parametrize("license", ["mine", 3, "", "apache-2", ["mit"]])
def test_a_licence_that_nobody_knows_is_refused(folder, license):
    with pytest.raises(ValueError, match="Expected a licence"):
        keras_encdec.upload_preset(folder, "hf://me/mine", license=license)


def test_broken_front_matter_is_refused_by_line(folder):
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a, b\n---\nMine.\n")
    with pytest.raises(ValueError, match=r"line 4 of .*README\.md"):
        keras_encdec.upload_preset(folder, **TO)
    assert "Mine." in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("said", "known"),
    [
        *(("MIT", "mit"), ("Apache 2.0", "apache-2.0"), ("apache-2.0", "apache-2.0")),
        *(("Gemma Terms of Use", "gemma"), ("Gemma", "gemma"), ("CC BY-SA 4.0", "cc-by-sa-4.0")),
        *(("Llama 3 Community License", "llama3"), ("llama3.1", "llama3.1"), ("other", "other")),
        ("Attribution 4.0 International (CC BY 4.0)", "cc-by-4.0"),
    ],
)
def test_names_of_licences(said, known):
    assert licenses.normalised(said) == known


def test_names_on_kaggle():
    # https://github.com/Kaggle/kaggle-api: what its models allow
    for ours, theirs in [
        *(("apache-2.0", "Apache 2.0"), ("mit", "MIT"), ("gemma", "Gemma")),
        *(("llama2", "Llama 2 Community License"), ("isc", "Other (specified in description)")),
    ]:
        assert licenses.on_kaggle(ours) == theirs


SOURCES = {"encoder": {"name": "a", "license": "gemma"}, "decoder": {"name": "b", "license": "mit"}}


@pytest.mark.parametrize(
    ("license", "count"), [("gemma", 0), ("mit", 1), ("apache-2.0", 1), ("other", 1)]
)
def test_terms_that_travel(license, count):
    assert len(licenses.conflicts(license, SOURCES)) == count
    both = {"encoder": SOURCES["encoder"], "decoder": {"name": "c", "license": "llama3"}}
    assert len(licenses.conflicts(license, both)) == (1 if license == "gemma" else 2)
    assert licenses.conflicts(license, {"pair": {"name": "x"}}) == []


def test_the_licence_that_sources_have_in_common():
    one, other = SOURCES.values()
    assert licenses.common({"encoder": one, "decoder": one}) == "gemma"
    assert licenses.common(SOURCES) == "gemma"
    assert licenses.common({"encoder": other, "decoder": other}) == "mit"
    assert licenses.common({"encoder": other, "decoder": {"license": "isc"}}) is None
    assert licenses.common({"encoder": one, "decoder": {}}) is None
    assert licenses.common({}) is None


def test_options_of_uploads_are_refused_for_a_folder(tmp_path):
    lm = tiny_lm()
    with pytest.raises(ValueError, match="Expected a handle with \\['license'\\]"):
        lm.export_to_transformers(tmp_path / "model", license="mit")
    with pytest.raises(TypeError, match="Did you mean 'license'"):
        lm.export_to_transformers("hf://me/mine", licence="mit")
