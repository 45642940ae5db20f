"""Curves out of what runs keep: the same numbers, whatever kept them."""

import csv
import json

import keras
import numpy as np
import pytest

from keras_encdec.evaluation import curve_of, evaluated
from keras_encdec.evaluation.curves import Curve
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_lm
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training import Checkpoint

# Threads of Orbax outlive the loop that they report to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

READ, WRITTEN = (5, 9, 3, 7), (4, 2, 6, 1)  # tokens of four rows: 24 and 13 in an epoch
EPOCH = 24 + 13
HISTORY = {"loss": [4.0, 3.0, 2.5], "val_loss": [4.5, 3.5, 3.25], "tokens": [100.0, 200.0, 300.0]}


def model():
    pair = PairSpec(tiny_encoder(windows=(8,)), tiny_decoder(windows=(8,)))
    lm = tiny_lm(pair=pair)
    lm.compile(keras.optimizers.SGD(1e-2))
    return lm


def data():
    x = make_inputs(READ, WRITTEN)
    y, weight = np.roll(x["decoder_token_ids"], -1, 1), x["decoder_padding_mask"]
    return {"x": x, "y": y, "sample_weight": weight.astype("float32")}


def loss(lm):
    return lm.evaluate(**data(), verbose=0, return_dict=True)["loss"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three epochs, and all that it kept."""
    keras.utils.set_random_seed(0)
    folder, lm = tmp_path_factory.mktemp("kept"), model()
    losses = []
    callbacks = [
        Checkpoint(folder / "checkpoints", every=100, keep=3),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: losses.append(loss(lm))),
    ]
    options = {"epochs": 3, "batch_size": 2, "verbose": 0, "callbacks": callbacks}
    history = lm.fit(**data(), validation_data=tuple(data().values()), **options)
    (folder / "history.json").write_text(json.dumps(history.history))
    lm.save_to_preset(folder / "model")
    return folder, history.history, losses


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["history", "history.json", "log.csv", "checkpoints"])
def test_what_keeps_a_run_makes_no_difference(run, kept):
    folder, history, losses = run
    curve = curve_of(history if kept == "history" else folder / kept)
    assert (curve.name, curve.metric) == (kept, "val_loss")
    assert curve.tokens == (EPOCH, 2 * EPOCH, 3 * EPOCH)
    assert curve.values == pytest.approx(history["val_loss"], rel=1e-6)
    assert curve.values == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
def test_a_saved_model_has_the_ends_of_its_runs(run):
    folder, history, _ = run
    end = curve_of(folder / "model")
    assert (end.tokens, end.values) == ((3 * EPOCH,), pytest.approx(history["val_loss"][-1:]))
    both = curve_of(folder / "model", "loss")
    assert both.tokens == (0, 3 * EPOCH)
    assert both.values[1] == pytest.approx(history["loss"][-1])
    assert both.values[0] > both.values[1]
    assert curve_of(folder / "model" / "provenance.json", "loss").values == both.values


def test_tokens_of_several_runs_add_up(tmp_path):
    first = {"what": "fit", "tokens": {"encoder": 10, "decoder": 5}, "last": {"loss": 3.0}}
    second = {"what": "fit", "tokens": {"encoder": 7, "decoder": 1}, "last": {"loss": 2.0}}
    history = [{"what": "converted"}, {**first, "first": {"loss": 4.0}}, {"what": "lora"}, second]
    file = tmp_path / "provenance.json"
    file.write_text(json.dumps({"sources": {}, "history": history}))
    for path in (file, tmp_path):
        assert curve_of(path) == Curve(path.name, "loss", (0, 15, 23), (4.0, 3.0, 2.0))


@pytest.mark.slow
def test_checkpoints_are_evaluated_one_by_one(run):
    folder, _, losses = run
    lm = model()
    curve = evaluated(lm, folder / "checkpoints", loss, "held-out loss")
    assert curve.tokens == (EPOCH, 2 * EPOCH, 3 * EPOCH)
    assert curve.values == pytest.approx(losses, rel=1e-5)
    assert curve.metric == "held-out loss"
    assert loss(lm) == pytest.approx(losses[-1], rel=1e-5)


def test_epochs_without_a_metric_have_no_point(tmp_path):
    rows = [{"epoch": 0, "loss": 4, "tokens": 100, "val_loss": "NA"}]
    rows += [{"epoch": 1, "loss": 3, "tokens": 200, "val_loss": 3.5}]
    with open(tmp_path / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert curve_of(tmp_path / "log.csv") == Curve("log.csv", "val_loss", (200,), (3.5,))
    with_nan = {**HISTORY, "val_loss": [4.5, float("nan"), 3.25]}
    assert curve_of(with_nan).tokens == (100, 300)


def test_what_is_no_run(tmp_path):
    files = {
        "text.json": "{",
        "other.json": '{"a": 1}',
        "uneven.json": '{"loss": [1], "b": [1, 2]}',
        "words.json": '{"loss": ["low"], "tokens": [1]}',
        "words.csv": "epoch,loss,tokens\n0,low,1\n",
        "provenance.json": '{"sources": {}}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="Expected"):
            curve_of(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"Expected a history of fit .*empty"):
        curve_of(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    for call in (
        lambda: curve_of(tmp_path / "gone"),
        lambda: evaluated(None, tmp_path / "gone", loss),
    ):
        with pytest.raises(FileNotFoundError, match="gone"):
            call()
    assert not (tmp_path / "gone").exists()


def test_a_metric_that_there_is_not():
    with pytest.raises(ValueError, match=r"metric of history 'loss' or 'val_loss'.*'val_los'"):
        curve_of(HISTORY, "val_los")
    with pytest.raises(ValueError, match="a log 'tokens'"):
        curve_of({"loss": [1.0]})
