"""Uploads to a small Kaggle on loopback by the real client, and what comes back."""

import hub_servers
import pytest
from hub_process import contents, run

pytestmark = pytest.mark.slow  # processes of their own, a dozen models

TO = "keras/v1"


@pytest.fixture(scope="module")
def server():
    with hub_servers.kaggle() as found:
        yield found


FAULTS = {
    "GetModel-401": ("PermissionError", "KAGGLE_API_TOKEN"),
    "GetModel-429": ("ConnectionError", "Wait 7 seconds"),
    "GetModel-500": ("ConnectionError", "Received: 500, an error on its side"),
    "GetModel-cut": ("ConnectionError", "Received: none, or one that broke"),
    "CreateModel-403": ("PermissionError", "token must be one that may write"),
    "CreateModel-404": ("ValueError", "does not know"),
    "CreateModel-409": ("ConnectionError", "something else changed it"),
    "CreateModelInstance-403": ("PermissionError", "token must be one that may write"),
    "CreateModelInstance-500": ("ConnectionError", "Received: 500"),
    "CreateModelInstance-cut": ("ConnectionError", "before you call again"),
}


@pytest.fixture(scope="module")
def done(server, tmp_path_factory):
    home = tmp_path_factory.mktemp("hub")
    to = {"folder": str(home / "my_model"), "license": "Apache 2.0"}
    handle = f"kaggle://me/my_model/{TO}"
    cases = {"save": ("save", {"folder": to["folder"]})}
    cases |= {"upload": ("upload", {**to, "handle": handle})}
    cases |= {"fetch": ("fetch", {"handle": handle, "folder": str(home / "fetched")})}
    cases |= {"load": ("load", {"name": f"{handle}/1"})}
    cases |= {"again": ("upload", {**to, "handle": handle, "message": "Better"})}
    cases |= {"load newest": ("load", {"name": handle})}
    to["folder"] = str(home / "copy")  # whose card then says other handles
    cases |= {"copy": ("copy", {"source": str(home / "my_model"), "folder": to["folder"]})}
    for fault in FAULTS:
        cases[fault] = ("upload", {**to, "handle": f"kaggle://me/{fault}/{TO}"})
    export = {"folder": f"{home}/my_model-exported", "license": "apache-2.0"}
    cases |= {
        "export": ("upload", {**export, "handle": "kaggle://me/mine/transformers/v1"}),
        "export as keras": ("upload", {**export, "handle": f"kaggle://me/mine/{TO}"}),
        "preset as jax": ("upload", {**to, "handle": "kaggle://me/mine/jax/v1"}),
        "public": ("upload", {**to, "handle": f"kaggle://me/mine/{TO}", "private": False}),
        "version": ("upload", {**to, "handle": f"kaggle://me/mine/{TO}/3"}),
        "no token": ("environment", {"KAGGLE_API_TOKEN": None}),
        "nobody": ("upload", {**to, "handle": f"kaggle://me/nobodys/{TO}"}),
    }
    return run(home, cases, kaggle=server.url), home


def instance(server, model="me/my_model", key=TO):
    return server.models[model]["instances"][f"model_framework_{key}"]


def test_what_comes_back_is_what_was_sent(done, server):
    found, home = done
    assert found["upload"].error is None, found["upload"].error
    sent = contents(home / "my_model")
    assert contents(home / "fetched") == sent == instance(server)["versions"][0]
    assert instance(server)["license"] == "Apache 2.0"
    assert server.models["me/my_model"]["private"]
    assert found["load"].result["parameters"] == 7_808_384
    last = found["upload"].out.strip().splitlines()[-1]
    assert last == f'keras_encdec.from_preset("kaggle://me/my_model/{TO}")'
    assert b'from_preset("kaggle://me/my_model/keras/v1")' in sent["README.md"]


def test_a_second_upload_is_a_second_version(done, server):
    found, _ = done
    assert found["again"].error is None, found["again"].error
    assert len(instance(server)["versions"]) == 2
    assert "Better" in server.notes
    assert found["load newest"].result["parameters"] == 7_808_384


@pytest.mark.parametrize(("fault", "expected"), FAULTS.items())
def test_a_no_says_what_to_do_and_publishes_nothing(done, server, fault, expected):
    found = done[0][fault]
    assert found.error is not None, found.out
    kind, message = found.error
    assert kind == expected[0], message
    assert expected[1] in message
    assert message.startswith("Expected ")
    assert "No version is published before all files have arrived" in message
    assert "from_preset(" not in found.out
    model = server.models.get(f"me/{fault}", {"instances": {}})
    assert model["instances"] == {}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("export as keras", "'kaggle://me/mine/transformers/v1'"),
        ("preset as jax", "'kaggle://me/mine/keras/v1'"),
        ("public", "makes all new models private"),
        ("version", "without a version"),
    ],
)
def test_a_handle_that_does_not_fit_is_refused(done, case, said):
    kind, message = done[0][case].error
    assert kind == "ValueError"
    assert said in message


def test_an_export_goes_to_transformers(done, server):
    assert done[0]["export"].error is None, done[0]["export"].error
    assert "model.safetensors" in instance(server, "me/mine", "transformers/v1")["versions"][0]


def test_without_a_token_it_says_which_variable(done, server):
    kind, message = done[0]["nobody"].error
    assert kind == "PermissionError"
    assert "KAGGLE_API_TOKEN" in message
    assert "me/nobodys" not in server.models


@pytest.mark.long
def test_a_file_that_broke_goes_on_where_it_was(done, server, tmp_path):
    _, home = done
    to = {"folder": str(home / "copy"), "license": "apache-2.0"}
    server.cut_blobs = 2
    handle = f"kaggle://me/resumed/{TO}"
    found = run(tmp_path, {"cut": ("upload", {**to, "handle": handle})}, kaggle=server.url)
    assert found["cut"].error is None, found["cut"].error
    assert instance(server, "me/resumed")["versions"][0] == contents(home / "copy")


@pytest.mark.long
def test_a_file_that_never_came_whole_is_not_called_published(done, server, tmp_path):
    """After five tries kagglehub goes on as if it had; here Kaggle takes it, too."""
    _, home = done
    to = {"folder": str(home / "copy"), "license": "apache-2.0"}
    server.cut_blobs = 5
    handle = f"kaggle://me/broken/{TO}"
    found = run(tmp_path, {"cut": ("upload", {**to, "handle": handle})}, kaggle=server.url)["cut"]
    server.cut_blobs = 0
    assert found.error is not None, found.out
    assert found.error[0] == "ConnectionError"
    assert "Expected all of model.weights.h5 on Kaggle" in found.error[1]
    assert "from_preset(" not in found.out
