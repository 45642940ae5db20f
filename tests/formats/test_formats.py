"""What earlier versions wrote is read for ever; what a later one wrote is named."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from make import compiled, distilled, facts_of, new_lm

import keras_encdec
from keras_encdec import formats
from keras_encdec.data import Teacher, Tokens
from keras_encdec.training import Checkpoint

HERE = Path(__file__).parent
KEPT = [path for path in sorted(HERE.iterdir()) if path.name.isdigit()]
TOLERANCE = 1e-4


@pytest.fixture(params=KEPT, ids=lambda path: path.name)
def kept(request):
    return request.param


@pytest.fixture
def expected(kept):
    with np.load(kept / "expected.npz") as found:
        return dict(found)


def assert_same(lm, expected, ending=""):
    found = facts_of(lm)
    np.testing.assert_allclose(found["logits"], expected[f"logits{ending}"], atol=TOLERANCE)
    assert found["texts"].tolist() == expected[f"texts{ending}"].tolist()


def test_there_is_one_of_each_number():
    assert [int(path.name) for path in KEPT][-1] == max(formats._NUMBERS.values())


@pytest.mark.slow
def test_a_preset_its_lora_and_a_teachers_rows(kept, expected):
    lm = compiled(keras_encdec.from_preset(str(kept / "preset")))
    assert_same(lm, expected)
    (run,) = lm.provenance["history"]
    assert (run["what"], run["state"]) == ("fit", "finished")
    lm.backbone.load_lora_weights(kept / "lora.lora.h5")
    assert_same(lm, expected, "_with_lora")
    tokens = Tokens.load(kept / "tokens")
    loss = distilled(lm, tokens, kept)
    np.testing.assert_allclose(loss, expected["distilled"], rtol=TOLERANCE)


def test_tokens(kept, expected):
    found = Tokens.load(kept / "tokens")
    np.testing.assert_array_equal(found[: sum(found.lengths)], expected["tokens"])


@pytest.mark.slow
def test_a_checkpoint(kept, expected, tmp_path):
    shutil.copytree(kept / "run", tmp_path / "run")
    tokenizer = keras_encdec.from_preset(str(kept / "preset")).preprocessor.tokenizer
    lm = new_lm(tokenizer)
    lm.optimizer.build(lm.trainable_variables)
    Checkpoint(tmp_path / "run", every=10).restore(lm)
    assert_same(lm, expected)
    assert int(keras.ops.convert_to_numpy(lm.optimizer.iterations.value)) > 0


def of_the_future(path):
    """A file in which the number of its format is one that nobody knows yet."""
    text = path.read_text()
    for number in range(1, 10):
        text = text.replace(f'"number": {number}', '"number": 1000')
    assert "1000" in text
    path.write_text(text.replace(formats.version_of(), "9.9.9"))


READERS = {
    "preset/config.json": lambda folder: keras_encdec.from_preset(str(folder / "preset")),
    "preset/provenance.json": lambda folder: keras_encdec.from_preset(str(folder / "preset")),
    "tokens/shards.json": lambda folder: Tokens.load(folder / "tokens"),
    "teacher/shards.json": lambda folder: Teacher(folder / "teacher"),
    "run": lambda folder: Checkpoint(folder / "run", every=10).restore(
        new_lm(keras_encdec.from_preset(str(folder / "preset")).preprocessor.tokenizer)
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_later_version_is_named(name, tmp_path):
    folder = tmp_path / "later"
    shutil.copytree(KEPT[-1], folder)
    (folder / "preset/digests.json").unlink()  # or the record would be another
    if name == "run":
        (name,) = (str(p.relative_to(folder)) for p in folder.glob("run/*/about/metadata"))
        READERS[name] = READERS["run"]
    if name == "preset/config.json":
        of_the_future(folder / "preset/task.json")
    of_the_future(folder / name)
    with pytest.raises(ValueError, match=r'"keras-encdec>=9\.9\.9"'):
        READERS[name](folder)


def test_what_has_no_number_is_of_before_there_were_any(tmp_path):
    shutil.copytree(KEPT[0], tmp_path / "early")
    path = tmp_path / "early/tokens/shards.json"
    index = json.loads(path.read_text())
    del index[formats.KEY]
    path.write_text(json.dumps(index))
    assert len(Tokens.load(tmp_path / "early/tokens").lengths)


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", None, True])
def test_a_number_that_is_none(number, tmp_path):
    shutil.copytree(KEPT[0], tmp_path / "broken")
    path = tmp_path / "broken/tokens/shards.json"
    index = json.loads(path.read_text())
    index[formats.KEY]["number"] = number
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="Expected the number of a format in"):
        Tokens.load(tmp_path / "broken/tokens")
