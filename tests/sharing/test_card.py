"""The model card: true, in the hubs' vocabulary, and never written over what is its author's."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

import keras_encdec
from keras_encdec.sharing import card, card_text, licenses
from keras_encdec.testing.models import tiny_lm

OWN = "\n## Intended use\n\nFor docstrings alone.\n"


@pytest.fixture(scope="module")
def lm():
    return keras_encdec.from_preset("gemma2_tiny_mini")


@pytest.fixture(scope="module")
def trained():
    found = keras_encdec.from_preset("gemma2_tiny_mini")
    found.compile()
    for side in ("encoder", "decoder"):
        setattr(found.preprocessor, f"{side}_sequence_length", 16)
    found.fit(["Returns the sum of two arrays, element by element."] * 4, batch_size=2, verbose=0)
    return found


def saved(lm, folder):
    lm.save_to_preset(folder)
    return (folder / card.FILE).read_text()


@pytest.mark.long
def test_a_person_can_tell_how_it_was_made(trained, tmp_path):
    text = saved(trained, tmp_path / "my_model")
    run = trained.provenance["history"][-1]
    for said in (
        "# my_model",
        "7,808,384 parameters",
        "| made of | gemma2_tiny_docs | gemma2_mini_docs |",
        "525,312 fresh",
        f"| {run['tokens']['encoder']:,} / {run['tokens']['decoder']:,} | 2 |",
        f"{run['first']['loss']:.3f} → {run['last']['loss']:.3f}",
        "PrefixLM(split='half', rate=0.5)",
        "AdamW",
        'keras_encdec.from_preset("./my_model")',
        'Seq2SeqLM.from_preset("./my_model")',
        "export_to_transformers",
        "## Intended use\n\nTo be filled by the author.",
        "## Limits",
    ):
        assert said in text


@pytest.mark.parametrize("exported", [False, True])
def test_front_matter_is_in_the_hubs_vocabulary(lm, tmp_path, exported):
    lm.backbone.record.sources["encoder"]["hugging_face"] = "me/tiny"
    write = lm.export_to_transformers if exported else lm.save_to_preset
    write(tmp_path / "model")
    data = ModelCard.load(tmp_path / "model" / "README.md").data.to_dict()
    # https://huggingface.co/docs/hub/model-cards, and the names of huggingface.js
    assert data["library_name"] == ("transformers" if exported else "keras-hub")
    assert data["pipeline_tag"] == "text2text-generation"
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == ["me/tiny"]
    assert data["base_model_relation"] in ("adapter", "merge", "quantized", "finetune")
    assert data["language"] == ["en"]
    assert all(isinstance(tag, str) for tag in data["tags"])


def test_the_users_text_stays_and_ours_is_new(lm, tmp_path):
    folder = tmp_path / "model"
    text = saved(lm, folder)
    front = "license: apache-2.0\nmy_field: [1, 2]  # mine"
    edited = text.replace("license: apache-2.0", front).replace("# model", "# A better title")
    edited = edited.split("\n## Intended use")[0] + OWN
    inside = edited.replace("7,808,384 parameters", "8 parameters")
    (folder / card.FILE).write_text(inside)
    assert saved(lm, folder) == edited
    other = tiny_lm()
    again = saved(other, folder)
    assert again.partition(card.BEGIN)[0] == edited.partition(card.BEGIN)[0]
    assert again.partition(card.END)[2] == edited.partition(card.END)[2]
    assert "7,808,384" not in again


@pytest.mark.parametrize(
    "text",
    [
        "# Mine alone\n",
        "",
        "---\nlicense: mit\n---\n\nNo marks.\r\n",
    ],
)
def test_a_card_without_marks_is_its_authors(tmp_path, text):
    lm = tiny_lm()
    saved(lm, tmp_path / "model")
    (tmp_path / "model" / card.FILE).write_bytes(text.encode())
    lm.save_to_preset(tmp_path / "model")
    assert (tmp_path / "model" / card.FILE).read_bytes() == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        f"a\n{card.BEGIN}\nb\n",
        f"a\n{card.END}\nb\n",
        f"{card.END}\n{card.BEGIN}\n",
        f"{card.BEGIN}\n{card.BEGIN}\nb\n{card.END}\n",
    ],
)
def test_broken_marks_are_said_and_nothing_is_lost(tmp_path, text):
    lm = tiny_lm()
    saved(lm, tmp_path / "model")
    (tmp_path / "model" / card.FILE).write_text(text)
    with pytest.warns(UserWarning, match="kept as it is"):
        assert saved(lm, tmp_path / "model") == text


BROKEN = {
    "---\nlicense: mit\ntags: [a, b\n---\nMine.\n": 4,
    "---\nlicense: mit\n\tlanguage: en\n---\nMine.\n": 3,
    "---\nlicense: mit\nlicense: : x\n---\nMine.\n": 3,
    "---\n- a list\n---\nMine.\n": 2,
    "---\nlicense: mit\nMine, and no end.\n": 1,
    "---\ntags: [a]\nlicense: apache2\n---\nMine.\n": 3,
    "---\nlanguage: English\n---\nMine.\n": 2,
    "---\nbase_model: 'not a name'\n---\nMine.\n": 2,
    "---\nbase_model_relation: child\n---\nMine.\n": 2,
}


@pytest.mark.parametrize(("text", "line"), BROKEN.items())
def test_broken_front_matter_is_named_by_line_and_kept(tmp_path, text, line):
    lm = tiny_lm()
    whole = f"{text}\n{card.BEGIN}\nold\n{card.END}\nThe end.\n"
    saved(lm, tmp_path / "model")
    (tmp_path / "model" / card.FILE).write_text(whole)
    with pytest.warns(UserWarning, match=rf"Received: line {line} of .*README\.md: .*was kept"):
        again = saved(lm, tmp_path / "model")
    assert again.startswith(text)
    assert again.endswith(f"{card.END}\nThe end.\n")
    assert "\nold\n" not in again


def test_another_encoding_is_kept(tmp_path):
    lm, data = tiny_lm(), b"caf\xe9"
    saved(lm, tmp_path / "model")
    (tmp_path / "model" / card.FILE).write_bytes(data)
    with pytest.warns(UserWarning, match="not in UTF-8"):
        lm.save_to_preset(tmp_path / "model")
    assert (tmp_path / "model" / card.FILE).read_bytes() == data


def test_line_ends_of_windows_stay(tmp_path):
    lm = tiny_lm()
    text = saved(lm, tmp_path / "model").replace("\n", "\r\n")
    (tmp_path / "model" / card.FILE).write_bytes(text.encode())
    lm.save_to_preset(tmp_path / "model")
    assert (tmp_path / "model" / card.FILE).read_bytes() == text.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mine.\n", "---\nlicense: gemma\n---\n\nMine.\n"),
        ("---\na: 1\n---\nMine.\n", "---\na: 1\nlicense: gemma\n---\nMine.\n"),
        ("---\nlicense: mit  # why\na: 1\n---\n", "---\nlicense: gemma\na: 1\n---\n"),
        ("---\nlicense:\n- mit\n- isc\na: 1\n---\nb\n", "---\nlicense: gemma\na: 1\n---\nb\n"),
        ("---\r\na: 1\r\n---\r\nb\r\n", "---\r\na: 1\r\nlicense: gemma\r\n---\r\nb\r\n"),
        ("---\nb: {license: mit}\n---\n", "---\nb: {license: mit}\nlicense: gemma\n---\n"),
    ],
)
def test_a_field_is_set_and_nothing_else_changes(text, expected):
    assert card.with_field(text, "license", "gemma") == expected
    assert yaml.safe_load(re.split("---\r?\n", expected)[1])["license"] == "gemma"


def test_terms_that_want_a_notice_get_one(lm, tmp_path):
    lm.backbone.record.sources["decoder"]["license"] = "gemma"
    try:
        text = saved(lm, tmp_path / "model")
        notice = (tmp_path / "model" / "NOTICE").read_text()
        assert notice == licenses.TERMS["gemma"].notice + "\n"
        assert "license: gemma" in text  # of the two the one that travels
        (tmp_path / "model" / "NOTICE").write_text("Of mine.\n" + notice)
        saved(lm, tmp_path / "model")
        assert (tmp_path / "model" / "NOTICE").read_text() == "Of mine.\n" + notice
    finally:
        lm.backbone.record.sources["decoder"]["license"] = "apache-2.0"


def test_a_model_of_random_weights_says_so(tmp_path):
    text = saved(tiny_lm(), tmp_path / "model")
    assert "Its weights are random" in text
    assert "license" not in text.partition(card.BEGIN)[0]
    assert "base_model" not in text


@pytest.mark.slow
def test_every_entry_can_be_told(trained):
    record = trained.provenance
    record["history"] += [
        {"what": "something new", "date": "2030-01-01"},
        {"what": "lora", "rank": 2, "layers": [], "whole_cross_attention": False},
        {"what": "quantised", "mode": "int4"},
        {"what": "train_on_batch", "times": 1000},
        {"what": "loaded", "record": None},
        {"what": "weights loaded", "name": "a.weights.h5"},
    ]
    stages = {"class": "Stages", "objectives": [{"class": "UL2"}, {"class": "PrefixLM"}]}
    run = json.loads(json.dumps(record["history"][1]))
    run["data"]["objective"] = stages
    run["learning_rate"] = {"class_name": "CosineDecay", "config": {"warmup_target": 1e-3}}
    record["history"].append(run)
    text = card_text.marked_part(record, trained.backbone.spec, "hf://me/it", False)
    for said in (
        "something new",
        "quantised: int4",
        "1,000 times",
        "Stages of UL2 and PrefixLM",
        "CosineDecay, 0.001",
        'from_preset("hf://me/it")',
    ):
        assert said in text
