"""Where a hub says no to a load: what it means, and what to do."""

import hub_servers
import pytest
from hub_process import run

pytestmark = pytest.mark.long  # processes of their own, a dozen models


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def done(home):
    """All cases, with the hubs there and then without."""
    folder, source = str(home / "my_model"), str(home / "source")
    hf, kaggle = "hf://me/{}", "kaggle://me/{}/keras/v1"
    cases = {
        "save": ("save", {"folder": folder}),
        "embedded": ("embedded", {"name": "gemma2_mini_docs", "folder": source}),
    }
    with hub_servers.hugging_face() as one, hub_servers.kaggle() as other:
        to = {"hugging_face": one.url, "kaggle": other.url}
        for model in ("mine", "file-cut", "file-gone"):
            for handle in (hf, kaggle):
                name = handle.format(model)
                cases[f"put {name}"] = ("upload", {"folder": folder, "handle": name})
        run(home / "uploader", cases, **to)
        one.repos["me/source"] = {**one.repos["me/mine"], "files": files_of(source)}
        one.repos["me/source"]["files"]["README.md"] = (
            b"---\nlicense: gemma\nlanguage: [de, en]\n---\nIts card.\n"
        )
        one.repos["me/empty"] = {**one.repos["me/mine"], "files": {"README.md": b"none"}}
        other.models["me/empty"] = {"private": True, "instances": {}}
        load = {
            **{
                name.format("mine"): ("load", {"name": name.format("mine")})
                for name in (hf, kaggle)
            },
            "adapt": ("adapt", {"name": "hf://me/source"}),
            "cut hf": ("load", {"name": hf.format("file-cut")}),
            "gone hf": ("load", {"name": hf.format("file-gone")}),
            "again hf": ("load", {"name": hf.format("file-gone")}),
            "empty hf": ("load", {"name": hf.format("empty")}),
            "empty kaggle": ("load", {"name": kaggle.format("empty")}),
            "near hf": ("load", {"name": "hf://google/t5gemma-2b-2b-ul3"}),
            "near kaggle": ("load", {"name": "kaggle://keras/gemma2/keras/gemma2_2b_em/2"}),
            "plan": ("plan", {"name": "hf://google/t5gemma-2b-2b-ul3"}),
        }
        for fault in ("401", "403", "429", "500"):
            load[f"hf {fault}"] = ("load", {"name": f"hf://me/get-{fault}"})
            call = f"GetModelInstance-{fault}"
            load[f"kaggle {fault}"] = ("load", {"name": f"kaggle://me/{call}/keras/v1"})
        load["cut kaggle"] = ("load", {"name": kaggle.format("file-gone")})
        load["no tokens"] = ("environment", {"HF_TOKEN": None, "KAGGLE_API_TOKEN": None})
        load["nobody hf"] = ("load", {"name": "hf://me/get-401"})
        load["nobody kaggle"] = ("load", {"name": kaggle.format("mine")})
        found = run(home, load, **to)
    offline = {
        "off hf": ("load", {"name": hf.format("mine")}),
        "off kaggle": ("load", {"name": kaggle.format("mine") + "/1"}),
        "off unversioned": ("load", {"name": kaggle.format("mine")}),
        "off other hf": ("load", {"name": "hf://me/never_seen"}),
        "off part hf": ("load", {"name": hf.format("file-gone")}),
        "off other kaggle": ("load", {"name": "kaggle://me/never/keras/v1/1"}),
    }
    return {**found, **run(home, offline)}


def files_of(folder):
    from hub_process import contents

    return dict(contents(folder))


def said(done, name, kind):
    assert done[name].error is not None, done[name].result
    assert done[name].error[0] == kind, done[name].error
    message = done[name].error[1]
    assert message.startswith("Expected ")
    assert "Received: " in message
    return message


@pytest.mark.parametrize(
    "name", ["hf://me/mine", "kaggle://me/mine/keras/v1", "cut hf", "off hf", "off kaggle"]
)
def test_it_loads(done, name):
    """Also over a connection that breaks once, and from the cache with no network."""
    assert done[name].error is None, done[name].error
    assert done[name].result["parameters"] == 7_808_384
    assert done[name].result["history"][0]["what"] == "converted"


def test_a_sources_card_is_read(done):
    source = done["adapt"].result["encoder"]
    assert source["name"] == "hf://me/source"
    assert (source["license"], source["language"]) == ("gemma", ["de", "en"])
    assert source["hugging_face"] == "me/source"


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("hf 401", "PermissionError", ["HF_TOKEN"]),
        ("hf 403", "PermissionError", ["gated", "https://huggingface.co/me/get-403", "accept"]),
        ("hf 429", "ConnectionError", ["429, too many requests", "Wait 7 seconds"]),
        ("hf 500", "ConnectionError", ["Received: 500"]),
        ("kaggle 401", "PermissionError", ["KAGGLE_API_TOKEN", "KAGGLE_USERNAME"]),
        ("kaggle 403", "PermissionError", ["gated", "https://www.kaggle.com/models/me/", "accept"]),
        ("kaggle 429", "ConnectionError", ["429, too many requests", "Wait 7 seconds"]),
        ("kaggle 500", "ConnectionError", ["Received: 500"]),
        ("near hf", "ValueError", ["Did you mean 'hf://google/t5gemma-2b-2b-ul2'?"]),
        ("plan", "ValueError", ["Did you mean 'hf://google/t5gemma-2b-2b-ul2'?"]),
        ("near kaggle", "ValueError", ["'kaggle://keras/gemma2/keras/gemma2_2b_en/2'?"]),
        ("empty hf", "ValueError", ["config.json", "'hf://me/empty'"]),
        ("empty kaggle", "ValueError", ["does not know"]),
        ("nobody hf", "PermissionError", ["HF_TOKEN"]),
        ("nobody kaggle", "PermissionError", ["KAGGLE_API_TOKEN"]),
        ("gone hf", "ConnectionError", ["what had come is kept"]),
        ("cut kaggle", "ConnectionError", ["what had come is kept"]),
        ("off unversioned", "ConnectionError", ["kaggle://me/mine/keras/v1/1: load it by that"]),
        ("off other hf", "ConnectionError", ["Nothing of it", "hf://me/mine"]),
        ("off part hf", "ConnectionError", ["MB are on this machine, not all of it"]),
        ("off other kaggle", "ConnectionError", ["Nothing of it", "kaggle://me/mine/keras/v1/1"]),
    ],
)
def test_a_no_says_what_to_do(done, name, kind, parts):
    message = said(done, name, kind)
    for part in parts:
        assert part in message
    assert len(message) < 1000
