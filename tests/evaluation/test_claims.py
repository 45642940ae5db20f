"""The claims' command: who is compared with whom, what is said of it, and that a run is kept."""

import functools
import json

import keras
import keras_hub
import numpy as np
import pytest
from rich.console import Console

import keras_encdec
from keras_encdec import evaluation
from keras_encdec.evaluation import claims_data
from keras_encdec.evaluation.claims_arms import ARMS, SCALES, Scale
from keras_encdec.evaluation.claims_data import Rows
from keras_encdec.evaluation.claims_models import PairTrainee, SourceTrainee
from keras_encdec.evaluation.claims_runs import Bench
from keras_encdec.evaluation.claims_verdicts import (
    CLAIMS,
    COSTS,
    MEASURES,
    Alike,
    Comparison,
    Ratio,
    verdict,
)
from keras_encdec.sharing import catalog

ROWS = Rows([[5, 6, 7], [8]], [[9, 10], [11, 12]])


def test_claims_name_arms_and_measures_that_there_are():
    for claim in CLAIMS.values():
        assert set(claim.arms) <= set(ARMS)
        measures = COSTS if claim.of_costs() else MEASURES
        assert {one.measure for one in claim.comparisons} <= set(measures)
        assert claim.of_encoders() <= set(claim.arms)
    used = {name for claim in CLAIMS.values() for name in claim.arms}
    assert used == set(ARMS)  # nothing is trained for nobody


@pytest.mark.parametrize("measure", ["loss", "encoder"])
def test_a_comparison_says_what_is_better(measure):
    """By Welch's interval: 4.303 and 2.776 are Student's t at 2 and 4 degrees of freedom."""
    low, high = [1.0, 1.1, 1.2], [2.0, 2.1, 2.2]
    better, worse = (high, low) if measure == "encoder" else (low, high)
    scores = {"a": {measure: better}, "b": {measure: worse}}
    found = Comparison("a", "b", measure).of(scores)
    assert found.mean == pytest.approx(1.0)
    assert found.low == pytest.approx(1 - 2.776 * (2 * 0.01 / 3) ** 0.5, abs=1e-3)
    assert found.verdict == "agrees"
    assert Comparison("b", "a", measure).of(scores).verdict == "disagrees"
    assert Comparison("a", "a", measure).of(scores).verdict == "undecided"


def test_a_claim_needs_all_of_its_comparisons():
    scores = {"a": {"loss": [1.0, 1.1]}, "b": {"loss": [3.0, 3.1]}, "c": {"loss": [1.0, 3.0]}}
    yes, no, open_ = (
        Comparison(*pair, "loss").of(scores) for pair in (("a", "b"), ("b", "a"), ("a", "c"))
    )
    assert verdict([yes, yes]) == "agrees"
    assert verdict([yes, open_]) == "undecided"
    assert verdict([yes, open_, no]) == "disagrees"
    alone = Comparison("a", "b", "loss").of({k: {"loss": v["loss"][:1]} for k, v in scores.items()})
    assert alone.verdict == "undecided"


def test_costs_are_alike_within_a_quarter():
    """Means are geometric; 4.303 is Student's t at 2 degrees of freedom, a count is exact."""
    seconds = [1.0, 1.1, 1.21]
    costs = {
        "a": {"flops": [11.0], "seconds": seconds},
        "b": {"flops": [10.0], "seconds": [1.0, 1.0, 1.0]},
    }
    found = Alike("a", "b", "seconds").of(costs)
    width = np.exp(4.303 * np.log(1.1) / 3**0.5)
    assert (found.mean, found.high) == pytest.approx((1.1, 1.1 * width), abs=1e-3)
    assert found.verdict == "undecided"
    exact = Alike("a", "b", "flops").of(costs)
    assert (exact.mean, exact.low, exact.high) == pytest.approx((1.1, 1.1, 1.1))
    assert exact.verdict == "agrees"
    assert Ratio(1.4, 1.3, 1.5).verdict == Ratio(0.7, 0.6, 0.75).verdict == "disagrees"
    assert verdict([found, exact]) == "undecided"


@pytest.mark.long
def test_what_models_cost(tmp_path):
    """FLOPs by `report flops`'s own sums; a second call reads what the first has found."""
    found = evaluation.claims(tmp_path, only=["C15"], scale=Scale(windows=8))
    half, pair = 64, keras_encdec.presets["gemma2_tiny_mini"].spec
    counted = evaluation.forward_flops(pair, half, half)
    assert found.costs["large with small"]["flops"] == [counted.linear + counted.attention]
    assert {len(one["seconds"]) for one in found.costs.values()} == {8}
    assert "## What models cost" in (tmp_path / "claims.md").read_text()
    assert evaluation.claims(tmp_path, only=["C15"], scale=Scale(windows=8)).costs == found.costs
    found.show(Console())


def test_rows_for_a_pair_and_for_a_source():
    x, labels = ROWS.of_pair(2, 4, 3)
    assert x["encoder_token_ids"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert x["encoder_padding_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert x["decoder_token_ids"].tolist() == [[2, 9, 0], [2, 11, 0]]
    assert x["decoder_padding_mask"].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert labels.tolist() == [[9, 10, -100], [11, 12, -100]]
    x, labels, weight = ROWS.of_source(2, 6)
    assert x["token_ids"].tolist() == [[2, 5, 6, 7, 9, 0], [2, 8, 11, 0, 0, 0]]
    asked = [labels[i][weight[i] > 0].tolist() for i in range(2)]
    assert asked == [[9, 10], [11, 12]]


def log_softmax(x):
    x = x.astype("float64") - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_losses_by_hand():
    """Each is the mean over the same four tokens; rows apart, without padding."""
    lm = keras_encdec.from_preset("gemma2_tiny_mini")
    source = keras_hub.models.CausalLM.from_preset(
        catalog.embedded("gemma2_mini_docs"), dtype="float32"
    )
    of_pair, of_source = [], []
    for read, written in zip(ROWS.read, ROWS.written, strict=True):
        x, labels = Rows([read], [written]).of_pair(2, len(read), 2)
        logits = log_softmax(np.array(lm.predict(x, verbose=0)))[0]
        of_pair += [-logits[i, label] for i, label in enumerate(labels[0])]
        ids = np.array([[2, *read, *written[:-1]]])
        x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        logits = log_softmax(keras.ops.convert_to_numpy(source(x)))[0, -2:]
        of_source += [-logits[i, label] for i, label in enumerate(written)]
    for kind, model, expected in (
        (PairTrainee, lm, of_pair),
        (SourceTrainee, source, of_source),
    ):
        trainee = kind(model, Scale())
        trainee.begin(1, 1e-3)
        assert trainee.loss(ROWS, (5, 4)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_nothing_reported_is_trained_on():
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    data = claims_data.read(Scale(steps=2, windows=8, tune_steps=1), tokenizer, ["scipy"])
    splits = data.train, data.val, data.test
    windows = [set(map(tuple, split.windows.tolist())) for split in splits]
    assert [len(split.windows) for split in splits] == [32, 8, 8]
    assert not windows[0] & windows[1]
    assert not windows[1] & windows[2]
    assert all(ids[-1] == tokenizer.end_token_id for ids in data.test.summaries.written)
    halves = data.test.halves()
    assert np.array_equal(np.concatenate([halves.read, halves.written], 1), data.test.windows)


def test_scales_name_models_that_there_are():
    for scale in SCALES.values():
        for preset in (scale.small, scale.large):
            catalog.check_known(preset)


def test_runs_of_other_docstrings_do_not_mix(tmp_path, monkeypatch):
    """Where installed packages have changed between two calls; here other packages are read."""
    scale, read = Scale(steps=2, windows=8, tune_steps=1), claims_data.read
    for packages in (["scipy"], ["scipy"], ["numpy"]):
        monkeypatch.setattr(claims_data, "read", functools.partial(read, packages=packages))
        bench = Bench(scale, tmp_path, 0)
        if packages == ["scipy"]:
            assert len(bench.data.test.windows) == 8
        else:
            with pytest.raises(ValueError, match="Expected the docstrings that the runs"):
                _ = bench.data


BAD = [
    ({"only": ["C99"]}, "Expected a claim"),
    ({"scale": "huge"}, "Expected scale"),
    ({"seeds": []}, "Expected seeds"),
    ({"seeds": [-1]}, "Expected seeds"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation.claims(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
    assert set(SCALES) == {"embedded", "smollm2"}


def rows_of(report):
    """Cells of the table of arms."""
    lines = [line for line in report.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.long
def test_a_run_is_kept_and_done_again_bit_for_bit(tmp_path):
    """Of three arms, one an average: what was deleted is found again, the rest is left."""
    scale = Scale(
        steps=4,
        rates=(1e-3, 2e-3),
        tune_steps=2,
        tune_rates=(1e-3,),
        windows=16,
        task_size=12,
        task_epochs=1,
    )

    def run():
        return evaluation.claims(tmp_path, only=["C11", "C12"], seeds=[0, 1], scale=scale)

    found = run()
    text = (tmp_path / "claims.json").read_text()
    assert set(json.loads(text)["claims"]) == {"C11", "C12"}
    report = (tmp_path / "claims.md").read_text()
    assert "## C11: " in report
    assert {row[0]: row[-2:] for row in rows_of(report)}["average"] == ["", "0.001"]
    assert {row[0]: row[-2] for row in rows_of(report)}["ul2"] in ("0.001 <", "0.002 >")
    assert (tmp_path / "claims.png").stat().st_size > 10_000
    assert set(found.scores) == {"source_longer", "prefix_lm", "ul2", "average"}
    files = sorted((tmp_path / "runs").iterdir())
    lost = [path for path in files if "prefix_lm" in path.name and "-1-" in path.name]
    kept = {path: path.stat().st_mtime_ns for path in files if path not in lost}
    assert len(lost) == 2
    for path in lost:
        path.unlink()
    run()
    assert (tmp_path / "claims.json").read_text() == text
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found.show(Console())
