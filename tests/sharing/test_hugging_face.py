"""Uploads to a small Hugging Face on loopback by the real client, and what comes back."""

import shutil

import hub_servers
import pytest
from hub_process import contents, run

from keras_encdec.sharing import card

pytestmark = pytest.mark.slow  # processes of their own, a dozen models

FAULTS = ["create-401", "create-403", "create-404", "create-409", "create-429", "create-500"]
FAULTS += ["preupload-500", "lfs-gone", "lfs-500", "commit-409", "commit-500", "commit-429"]
FAULTS += ["commit-gone", "commit-403"]
OWN = "\n## Intended use\n\nMine, written on the hub.\n"


@pytest.fixture(scope="module")
def server():
    with hub_servers.hugging_face() as found:
        yield found


@pytest.fixture(scope="module")
def done(server, tmp_path_factory):
    """All cases, in their order; and the folder that they happened in."""
    home = tmp_path_factory.mktemp("hub")
    folder, other = str(home / "my_model"), str(home / "other")
    to = {"folder": folder, "license": "apache-2.0"}
    cases = {"save": ("save", {"folder": folder})}
    cases |= {"upload": ("upload", {**to, "handle": "hf://me/my_model", "message": "The first"})}
    cases |= {"fetch": ("fetch", {"handle": "hf://me/my_model", "folder": str(home / "fetched")})}
    cases |= {"load": ("load", {"name": "hf://me/my_model"})}
    to["folder"] = str(home / "copy")  # whose card then says other handles
    cases |= {"copy": ("copy", {"source": folder, "folder": to["folder"]})}
    cases |= {"cut": ("upload", {**to, "handle": "hf://me/lfs-cut", "private": True})}
    cases |= {"answer lost": ("upload", {**to, "handle": "hf://me/commit-cut"})}
    for fault in FAULTS:
        cases[fault] = ("upload", {**to, "handle": f"hf://me/{fault}"})
    cases |= {"public": ("upload", {**to, "handle": "hf://me/my_model", "private": True})}
    gemma = {"decoder": {"license": "gemma", "hugging_face": "google/gemma-2-2b"}}
    cases |= {"save gemma": ("save", {"folder": other, "sources": gemma})}
    cases |= {"mit": ("upload", {"folder": other, "handle": "hf://me/mit", "license": "MIT"})}
    cases |= {"by lm": ("lm_upload", {"preset": other, "handle": "hf://me/by_lm"})}
    export = {"preset": other, "handle": "hf://me/exported", "method": "export_to_transformers"}
    cases |= {"export": ("lm_upload", {**export, "license": "gemma"})}
    cases |= {"load export": ("load", {"name": "hf://me/exported"})}
    cases |= {"no token": ("environment", {"HF_TOKEN": None})}
    cases |= {"nobody": ("upload", {**to, "handle": "hf://me/nobodys"})}
    found = run(home, cases, hugging_face=server.url)
    return found, home


def error_of(done, name, kind):
    found = done[0][name]
    assert found.error is not None, found.out
    assert found.error[0] == kind, found.error
    assert found.error[1].startswith("Expected ")
    assert "from_preset(" not in found.out
    return found.error[1]


def test_what_comes_back_is_what_was_sent(done, server):
    found, home = done
    assert found["upload"].error is None
    assert contents(home / "fetched") == contents(home / "my_model")
    assert server.repos["me/my_model"]["files"] == contents(home / "my_model")
    assert server.repos["me/my_model"]["commits"] == ["The first"]
    assert found["load"].result["parameters"] == 7_808_384
    assert found["load"].result["history"][0]["what"] == "converted"


def test_what_is_printed_begins_with_the_size_and_ends_with_the_line_to_load_it(done):
    first, *_, last = done[0]["upload"].out.strip().splitlines()
    assert "MB, to hf://me/my_model (licence: apache-2.0)." in first
    assert last == 'keras_encdec.from_preset("hf://me/my_model")'


def test_the_card_says_how_to_load_it_from_there(server):
    text = server.repos["me/my_model"]["files"]["README.md"].decode()
    assert 'from_preset("hf://me/my_model")' in text
    assert card.front_matter(text, "it")["license"] == "apache-2.0"


def test_a_connection_that_broke_goes_on(done, server):
    found, home = done
    for name, model in (("cut", "lfs-cut"), ("answer lost", "commit-cut")):
        assert found[name].error is None, found[name].error
        files = server.repos[f"me/{model}"]["files"]
        assert files["model.weights.h5"] == (home / "my_model/model.weights.h5").read_bytes()
    assert server.repos["me/lfs-cut"]["private"]
    assert not server.repos["me/commit-cut"]["private"]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("create-401", "PermissionError", "HF_TOKEN"),
        ("create-403", "PermissionError", "token must be one that may write"),
        ("create-404", "ValueError", "does not know"),
        ("create-429", "ConnectionError", "Wait 7 seconds"),
        ("create-500", "ConnectionError", "Received: 500, an error on its side"),
        ("preupload-500", "ConnectionError", "Received: 500"),
        ("lfs-gone", "ConnectionError", "need not be sent again"),
        ("lfs-500", "ConnectionError", "Received: 500"),
        ("commit-409", "ConnectionError", "something else changed it"),
        ("commit-429", "ConnectionError", "Wait 7 seconds"),
        ("commit-500", "ConnectionError", "Received: 500"),
        ("commit-403", "PermissionError", "token must be one that may write"),
        ("commit-gone", "ConnectionError", "Received: none, or one that broke"),
    ],
)
def test_a_no_says_what_to_do_and_publishes_nothing(done, server, fault, kind, said):
    message = error_of(done, fault, kind)
    assert said in message
    assert "Nothing was published" in message or "is as it was" in message
    assert f"hf://me/{fault}" in message or "429" in message or "500" in message
    assert server.repos.get(f"me/{fault}", {"files": {}})["files"] == {}


def test_a_name_that_is_taken_is_told_as_a_model_that_is_not_there(done):
    """409 is what the hub says of a name that exists: the client then looks for the model."""
    error_of(done, "create-409", "ValueError")


def test_without_a_token_it_says_which_variable(done, server):
    message = error_of(done, "nobody", "PermissionError")
    assert "HF_TOKEN" in message
    assert "me/nobodys" not in server.repos


def test_what_is_to_be_private_is_not_sent_to_a_public_place(done, server):
    message = error_of(done, "public", "ValueError")
    assert "a public one" in message
    assert server.repos["me/my_model"]["commits"] == ["The first"]


def test_terms_travel(done, server):
    found, _ = done
    (warning,) = found["mit"].warned
    assert "Gemma Terms of Use" in warning
    assert "travels with whatever is made of it" in warning
    assert found["upload"].warned == []
    files = server.repos["me/mit"]["files"]
    assert b"Gemma Terms of Use" in files["NOTICE"]
    assert b"license: mit\n" in files["README.md"]
    assert b"google/gemma-2-2b" in files["README.md"]


def test_a_model_in_memory_is_uploaded_under_the_licence_of_its_sources(done, server):
    found, _ = done
    assert found["by lm"].error is None, found["by lm"].error
    assert found["by lm"].out.strip().splitlines()[-1].endswith('from_preset("hf://me/by_lm")')
    files = server.repos["me/by_lm"]["files"]
    assert b"license: gemma\n" in files["README.md"]
    assert b"# by_lm\n" in files["README.md"]
    assert "model.weights.h5" in files


def test_an_export_is_uploaded_and_loads(done, server):
    found, _ = done
    assert found["export"].error is None, found["export"].error
    assert 'T5GemmaForConditionalGeneration.from_pretrained("me/exported")' in found["export"].out
    assert "model.safetensors" in server.repos["me/exported"]["files"]
    history = [entry["what"] for entry in found["load export"].result["history"]]
    assert history == ["converted", "exported"]


@pytest.mark.long
def test_cards_there_and_here(server, done, tmp_path):
    """One edited there is taken over; one edited here replaces it; stale shards go."""
    _, home = done
    shutil.copytree(home / "my_model", tmp_path / "my_model")
    files = server.repos["me/my_model"]["files"]
    own = files["README.md"].decode().split("\n## Intended use")[0] + OWN
    files["README.md"] = own.encode()
    files["model_00007.weights.h5"] = b"of an earlier save"
    files["figure.png"] = b"the author's"
    to = {"folder": str(tmp_path / "my_model"), "handle": "hf://me/my_model"}
    found = run(tmp_path, {"again": ("upload", to)}, hugging_face=server.url)
    assert found["again"].error is None, found["again"].error
    files = server.repos["me/my_model"]["files"]
    assert files["README.md"].decode().endswith(OWN)
    assert (tmp_path / "my_model/README.md").read_bytes() == files["README.md"]
    assert "model_00007.weights.h5" not in files
    assert files["figure.png"] == b"the author's"
    puts = server.puts.count("me/my_model")
    path = tmp_path / "my_model/README.md"
    path.write_text(path.read_text().replace("Mine, written on the hub.", "Written here."))
    files["README.md"] = own.encode()
    run(tmp_path, {"again": ("upload", to)}, hugging_face=server.url)
    assert b"Written here." in server.repos["me/my_model"]["files"]["README.md"]
    assert server.puts.count("me/my_model") == puts  # what is there is not sent again
