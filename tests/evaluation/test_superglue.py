"""Runs on SuperGLUE: each is kept, none depends on another, and no effect reads as none."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from superglue_files import write_learnable

import keras_encdec_cli
from keras_encdec.cli.superglue import _model
from keras_encdec.data.labelled import Labelled
from keras_encdec.evaluation import superglue
from keras_encdec.evaluation import superglue_results as results
from keras_encdec.evaluation.superglue_data import TASKS, Split, read_task
from keras_encdec.evaluation.superglue_metrics import all_metrics
from keras_encdec.evaluation.superglue_runs import Arm, Finished, Plan, Point, Run, Trainee

PRESET = "gemma2_tiny_docs"
CAUSAL = PRESET, {"encoder_attention": "causal"}
PLAN = Plan(epochs=2, patience=2, metric="score", sequence_length=24)


def options(folder):
    return {
        "folder": folder / "data",
        "tasks": "CB",
        "grid": {"learning_rate": [1e-3, 3e-3], "batch_size": 6, "dropout": 0.1},
        "seeds": (0, 1),
        "epochs": 2,
        "sequence_length": 24,
        "output": folder / "found",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("superglue")
    write_learnable(path / "data")
    return path


@pytest.fixture(scope="module")
def first(folder):
    return superglue({"causal": CAUSAL, "both": PRESET}, **options(folder))


@pytest.mark.slow
def test_every_run_is_kept_and_the_table_is_of_them(first, folder):
    kept = [json.loads(path.read_text()) for path in (folder / "found" / "runs").iterdir()]
    assert len(kept) == 2 * 2 * 2
    labels = read_task(folder / "data", TASKS["CB"])[1].labels
    for run in kept:
        right = [int(digit) for digit in run["predicted"]] == labels
        assert run["metrics"]["accuracy"] == pytest.approx(np.mean(right))
        assert run["metrics"]["score"] == max(run["epochs"])
    for model, of in first.cells.items():
        for task, cell in of.items():
            means = {}
            for rate in (1e-3, 3e-3):
                asked = {"model": model, "task": task, "learning_rate": rate}
                means[rate] = np.mean(
                    [r["metrics"]["score"] for r in kept if asked.items() <= r.items()]
                )
            assert np.mean(cell.scores) == pytest.approx(max(means.values()))
            assert means[cell.point.learning_rate] == max(means.values())
    said = json.loads((folder / "found" / "superglue.json").read_text())
    assert (
        said["models"]["both"]["tasks"]["CB"]["seeds"]["score"] == first.cells["both"]["CB"].scores
    )
    assert (folder / "found" / "superglue.png").read_bytes().startswith(b"\x89PNG")
    assert "bag of words" in repr(first)
    assert "mean accuracy" in repr(first)


@pytest.mark.slow
def test_the_same_call_trains_nothing(first, folder, monkeypatch):
    monkeypatch.setattr(Trainee, "__init__", None)
    before = (folder / "found" / "superglue.json").read_bytes()
    again = superglue({"causal": CAUSAL, "both": PRESET}, **options(folder))
    assert (folder / "found" / "superglue.json").read_bytes() == before
    assert repr(again) == repr(first)


@pytest.mark.slow
def test_a_run_does_not_depend_on_those_before_it(first, folder):
    """The last of a model that trained several, done again as the only one of its model."""
    files = sorted((folder / "found" / "runs").glob("CB-both-1-*.json"))
    assert len(files) == 2
    for path in files:
        before = json.loads(path.read_text())
        if before["learning_rate"] == 3e-3:
            path.unlink()
            superglue({"causal": CAUSAL, "both": PRESET}, **options(folder))
            after = json.loads(path.read_text())
            assert {**after, "seconds": 0} == {**before, "seconds": 0}


@pytest.mark.long
def test_a_planted_arm_without_effect_is_undecided(first, folder):
    null = superglue({"causal": CAUSAL, "same": CAUSAL}, **options(folder))
    for task in ("CB", "mean"):
        assert null.differences["same"][task].mean == 0
        assert null.differences["same"][task].verdict == "undecided"


@pytest.mark.long
def test_seeds_alone_are_no_effect(folder):
    """One arm, half of its seeds against the other half."""
    splits = read_task(folder / "data", TASKS["CB"])
    arm, point = Arm("one", PRESET, {}), Point(1e-3, 6, 0.1)
    trainee = Trainee(arm, TASKS["CB"], splits, 0.1, PLAN)
    runs = [trainee.train(point, seed) for seed in range(4)]
    assert len({run.scores for run in runs}) > 1
    cells = [{"CB": results.Cell(point, tuple(some), "score")} for some in (runs[:2], runs[2:])]
    found = results._differences(*cells, {"CB": TASKS["CB"]}, {"CB": splits}, PLAN)
    assert found["CB"].verdict == found["mean"].verdict == "undecided"


# What runs say together, of runs that are made up.


def made(task, split, share, seed):
    """A run that is right on about this share."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(split)) > share
    predicted = np.where(wrong, (split.labels + 1) % len(TASKS[task].classes), split.labels)
    return Finished((0.5,), all_metrics(TASKS[task], split, predicted), predicted, 1.0)


def together(shares, seeds=(0, 1, 2), rates=(1e-3,)):
    rng = np.random.default_rng(0)
    data = {}
    for task in ("RTE", "MultiRC"):
        labels = rng.integers(2, size=240).astype("int32")
        split = Split(Labelled([("Text.",)] * 240, None, labels), np.arange(240) // 4, "")
        data[task] = (split, split)
    scored = [
        results.Scored(
            Run(Arm(name, PRESET, {}), TASKS[task], Point(rate, 8, 0.0), seed),
            made(task, data[task][1], share, 100 * number + seed)
            if rate < 1
            else Finished((float("nan"),), {}, np.zeros(0, int), 1.0),
        )
        for number, (name, share) in enumerate(shares.items())
        for task in data
        for rate in rates
        for seed in seeds
    ]
    return results.Results.of(scored, data, PLAN, list(shares))


def test_effects_are_read():
    found = together({"first": 0.6, "better": 0.9, "worse": 0.3, "same": 0.6})
    for name, verdict in (("better", "agrees"), ("worse", "disagrees"), ("same", "undecided")):
        assert [one.verdict for one in found.differences[name].values()] == [verdict] * 3
    assert found.cells["better"]["RTE"].scores == pytest.approx([0.9] * 3, abs=0.06)


def test_one_seed_decides_nothing():
    found = together({"first": 0.3, "better": 0.95}, seeds=(0,))
    assert {one.verdict for one in found.differences["better"].values()} == {"undecided"}
    assert found.to_json()["differences"]["better"]["RTE"]["low"] is None
    assert "(one seed)" in repr(found)


def test_runs_that_diverged_do_not_count():
    found = together({"first": 0.6, "second": 0.6}, rates=(1e-3, 1.5))
    assert found.cells["first"]["RTE"].point.learning_rate == 1e-3
    assert found.diverged["second"] == {"RTE": 3, "MultiRC": 3}
    assert "3 runs of RTE diverged" in repr(found)
    with pytest.raises(ValueError, match=r"where 'first' learns RTE.* Choose lower learning rates"):
        together({"first": 0.6}, rates=(1.5,))


@pytest.mark.long
def test_a_loss_that_is_nan_ends_a_run(folder):
    splits = read_task(folder / "data", TASKS["COPA"])
    trainee = Trainee(Arm("one", PRESET, {}), TASKS["COPA"], splits, 0.0, PLAN)
    found = trainee.train(Point(1e30, 6, 0.0), 0)
    assert np.isnan(found.scores[-1])
    assert len(found.scores) <= 2
    assert found.metrics == {} or found.best_epoch == 1
    after = trainee.train(Point(1e-3, 6, 0.0), 0)
    assert np.isfinite(after.scores).all()


def test_patience():
    class Steps(Trainee):
        def __init__(self, right):
            labels = np.array([0, 1, 0, 1], "int32")
            split = Split(Labelled([("Text.",)] * 4, None, labels), np.arange(4), "")
            self._task, self._val, self._right = TASKS["RTE"], split, right
            self._plan = Plan(epochs=9, patience=2, metric="accuracy", sequence_length=16)

        def _set_back(self, point, seed):
            pass

        def _epoch(self, epoch, point):
            return np.array([0, 1, 0, 1]) ^ (np.arange(4) >= self._right[epoch])

    found = Steps([1, 2, 3, 3, 2, 4, 4, 4, 4]).train(Point(1e-3, 4, 0.0), 0)
    assert found.scores == (0.25, 0.5, 0.75, 0.75, 0.5)
    assert found.best_epoch == 3
    assert found.predicted.tolist() == [0, 1, 0, 0]


# Bad input.


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"tasks": ["CBB"]}, ValueError, "Did you mean 'cb'"),
        ({"metric": "f1", "tasks": ["COPA"]}, ValueError, "COPA, which has score, accuracy"),
        ({"grid": {"learning_rates": [1e-3]}}, TypeError, "Did you mean 'learning_rate'"),
        ({"grid": {"learning_rate": []}}, ValueError, "at least one learning_rate"),
        ({"grid": {"learning_rate": [0.0]}}, ValueError, "learning_rate as a finite number above"),
        ({"grid": {"dropout": 1.0}}, ValueError, "dropout"),
        ({"grid": {"batch_size": "8"}}, ValueError, "batch_size"),
        ({"seeds": [1, 1]}, ValueError, "different seeds"),
        ({"seeds": []}, ValueError, "different seeds"),
        ({"epochs": 0}, ValueError, "epochs of at least 1"),
        ({"models": {}}, ValueError, "models by name"),
        ({"models": {"a": 7}}, ValueError, "save_to_preset first"),
        ({"models": {"a": "gemma2_tiny_dox"}}, ValueError, "gemma2_tiny_docs"),
        ({"models": {"a": (PRESET, {"attention": "x"})}}, TypeError, "encoder_attention"),
        ({"folder": "nowhere"}, FileNotFoundError, "CB/train.jsonl"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_bad_input_is_refused_before_anything_is_written(folder, tmp_path, change, error, says):
    given = {"models": {"a": PRESET}, **options(folder), "output": tmp_path / "new", **change}
    with pytest.raises(error, match=says):
        superglue(**given)
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_not_whole_is_named(folder, tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"epochs": [1.0]}')
    with pytest.raises(ValueError, match=r"a finished run in .*run\.json.*Delete it"):
        Finished.read(path)


# The command.


def test_models_of_the_command():
    assert _model("a=gemma2_2b_en:causal", None) == (
        "a",
        ("gemma2_2b_en", {"encoder_attention": "causal"}),
    )
    assert _model("hf://me/my_model", "bfloat16") == (
        "hf://me/my_model",
        ("hf://me/my_model", {"dtype": "bfloat16"}),
    )


def test_the_command_says_what_is_wrong(tmp_path, capfd):
    said = ["superglue", str(tmp_path), "--models", PRESET, "--output", str(tmp_path / "new")]
    assert keras_encdec_cli.main(said) == 2
    assert "BoolQ/train.jsonl" in capfd.readouterr().err


@pytest.mark.long
def test_killed_it_goes_on_and_ends_with_the_same_table(folder, tmp_path):
    common = [sys.executable, "-m", "keras_encdec_cli", "superglue", str(folder / "data")]
    common += ["--models", f"causal={PRESET}:causal", "--tasks", "CB"]
    common += ["--batch-sizes", "6", "--dropouts", "0.1", "--learning-rates", "1e-3"]
    common += [
        "--seeds",
        "0",
        "1",
        "2",
        "3",
        "--epochs",
        "1",
        "--sequence-length",
        "24",
        "--output",
    ]
    places = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*common, tmp_path / "alone"], env=places, check=True, stdout=subprocess.DEVNULL)
    command = [*common, str(tmp_path / "killed")]
    running = subprocess.Popen(command, env=places, stdout=subprocess.DEVNULL)
    runs = tmp_path / "killed" / "runs"
    while len(list(runs.glob("*.json"))) < 1 and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    kept = {path.name: path.read_bytes() for path in runs.glob("*.json")}
    assert 1 <= len(kept) < 4
    ended = subprocess.run(command, env=places, capture_output=True, text=True, check=True)
    assert f"{len(kept)} of 4 runs were done before." in ended.stdout
    assert all((runs / name).read_bytes() == before for name, before in kept.items())
    expected = (tmp_path / "alone" / "superglue.json").read_bytes()
    assert (tmp_path / "killed" / "superglue.json").read_bytes() == expected
