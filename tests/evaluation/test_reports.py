"""`keras-encdec report`: a JSON file and a picture, whole or not at all, and tables to read."""

import json
import sys

import matplotlib.image
import numpy as np
import pytest

import keras_encdec
import keras_encdec_cli
from keras_encdec.cli import report_latency
from keras_encdec.cli.main import run
from keras_encdec.evaluation import forward_flops
from keras_encdec.evaluation.latency import Times
from keras_encdec.sharing.load import spec_of
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import tiny_backbone, tiny_lm
from keras_encdec.testing.specs import other_pair, tiny_decoder, tiny_encoder

HISTORY = {"loss": [4.0, 3.0, 2.5], "val_loss": [4.5, 3.5, 3.25], "tokens": [100, 200, 300]}


def report(*options):
    """The exit status; as the command does it."""
    return run(keras_encdec_cli._parser().parse_args(["report", *map(str, options)]), sys.stdout)


def colours(path):
    """How many different colours a picture has: white paper has one."""
    image = matplotlib.image.imread(path)
    return len(np.unique(image.reshape(-1, image.shape[-1]), axis=0))


def kept(folder, kind):
    """What a report has written, which is two files."""
    assert sorted(p.name for p in folder.iterdir()) == [f"{kind}.json", f"{kind}.png"]
    assert colours(folder / f"{kind}.png") > 20
    data = json.loads((folder / f"{kind}.json").read_text())
    assert data["report"] == kind
    return data


@pytest.mark.slow
def test_flops(tmp_path, capsys):
    output = tmp_path / "out"
    assert report("flops", "gemma2_9b_2b", "--output", output) == 0
    rows = {row["model"]: row for row in kept(output, "flops")["models"]}
    assert list(rows) == ["gemma2_9b", "gemma2_2b", "gemma2_9b_2b"]
    ratios = rows["gemma2_9b_2b"]["ratios"]
    assert ratios == pytest.approx({"gemma2_9b": 0.586, "gemma2_2b": 2.255}, abs=5e-4)
    assert rows["gemma2_9b"]["forward"]["decoder-only"]["linear"] == pytest.approx(
        136.374e12, abs=5e8
    )
    text = capsys.readouterr().out
    assert "88.343" in text  # linear, in TFLOP
    assert "4.539" in text  # GFLOP of a generated token


@pytest.mark.slow
def test_flops_of_the_papers_models_and_of_a_saved_pair(tmp_path):
    spec = PairSpec(tiny_encoder(), tiny_decoder())
    tiny_backbone(spec).save_to_preset(tmp_path / "mine")
    sizes = "--source-length", 30, "--target-length", 20, "--counting", "masked", "--xla"
    assert report("flops", tmp_path / "mine", *sizes, "--output", tmp_path / "own") == 0
    (row,) = kept(tmp_path / "own", "flops")["models"]
    expected = forward_flops(spec, 30, 20, "masked")
    assert row["forward"]["decoder"]["logits"] == expected.logits
    assert row["dense"] == forward_flops(spec, 30, 20).total < row["xla"]
    assert report("flops", "--output", tmp_path / "all") == 0
    assert len(kept(tmp_path / "all", "flops")["models"]) == 15


@pytest.mark.slow
def test_correlation(tmp_path, capsys):
    assert report("correlation", "--output", tmp_path / "out") == 0
    data = kept(tmp_path / "out", "correlation")
    assert [each["names"][1] for each in data["correlations"]][:2] == ["IT", "SuperGLUE"]
    assert "PT and IT" in capsys.readouterr().out


def test_correlation_of_a_table_of_ones_own(tmp_path):
    models = [
        {"model": f"{size}{i}", "size": size, "scores": {"a": i, "b": i**2, "c": -i}}
        for size in ("x", "y")
        for i in range(4)
    ]
    (tmp_path / "table.json").write_text(json.dumps({"models": models}))
    output = tmp_path / "out"
    options = "--scores", "b", "c", "--output", output
    assert report("correlation", tmp_path / "table.json", *options) == 0
    data = kept(output, "correlation")
    (found,) = data["correlations"]
    assert (found["names"], found["overall"], found["within_mean"]) == (["b", "c"], -1, -1)
    assert data["claimed"] == []


def test_curves(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(HISTORY))
    runs = tmp_path / "one.json", tmp_path / "two.json"
    assert report("curves", *runs, "--level", "source=3.4", "--output", tmp_path / "out") == 0
    data = kept(tmp_path / "out", "curves")
    assert data["levels"] == {"source": 3.4}
    assert [curve["values"] for curve in data["curves"]] == [HISTORY["val_loss"]] * 2
    assert "3.2500" in capsys.readouterr().out


@pytest.mark.long
def test_latency(tmp_path, capsys):
    output = tmp_path / "out"
    sizes = "--queries", 3, "--source-length", 24, "--new", 4
    assert report("latency", "gemma2_tiny_mini", *sizes, "--output", output) == 0
    data = kept(output, "latency")
    assert list(data["seconds"]) == ["gemma2_tiny_docs, KerasHub", "gemma2_tiny_mini, ours"]
    assert all(len(s) == 3 and min(s) > 0 for s in data["seconds"].values())
    assert "3 queries, 24 tokens in, 4 out" in capsys.readouterr().out


@pytest.mark.slow
def test_an_earlier_report_is_replaced_and_nothing_else(tmp_path, capsys):
    output = tmp_path / "out"
    for score in ("IT", "SuperGLUE"):
        assert report("correlation", "--scores", "PT", score, "--output", output) == 0
        assert kept(output, "correlation")["correlations"][0]["names"] == ["PT", score]
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    assert report("flops", "gemma2_2b_2b", "--output", output) == 2  # of another kind
    assert "an earlier report to replace" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before
    (output / "thesis.tex").write_text("years of work")
    assert report("correlation", "--output", output) == 2
    assert "thesis.tex" in capsys.readouterr().out
    assert (output / "correlation.json").read_bytes() == before["correlation.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "correlation.json").write_text('{"mine": 1}')
    assert report("correlation", "--output", tmp_path / "mine") == 2
    assert (tmp_path / "mine" / "correlation.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["flops", "gemma2_2b_2bb"], "Did you mean 'gemma2_2b_2b'"),
        (["flops", "--counting", "sparse"], "counting 'dense' or 'masked'"),
        (["flops", "--source-length", "0"], "source_length of at least 1"),
        (["latency", "gemma2_tiny_tinny"], "Did you mean 'gemma2_tiny_tiny'"),
        (["latency", "t5gemma_s_s"], "made of one decoder-only model"),
        (["latency", "gemma2_2b_2b", "gemma2_9b_9b"], "made of one decoder-only model"),
        (["latency", "--queries", "0"], "queries of at least 1"),
        (["latency", "--texts", "gone.txt"], "gone.txt"),
        (["curves", "gone.json"], "gone.json"),
        (["curves", "x.json", "--level", "2.9"], "--level such as"),
        (["curves", "x.json", "--level", "source=low"], "the level 'source'"),
        (["correlation", "gone.json"], "gone.json"),
        (["correlation", "--scores", "PT"], "at least two scores"),
        (["correlation", "--scores", "PT", "ITT"], "Did you mean 'IT'"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_reported_leaves_nothing(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert report(*options) == 2
    assert message in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(report_latency, "make", None)
    assert report("latency", "--output", tmp_path / "out") == 2
    assert "pip install 'keras-encdec[demo]'" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_times_are_drawn_by_name(tmp_path):
    from keras_encdec.evaluation import picture

    times = Times({"source": np.linspace(1, 2, 9), "pair": np.linspace(2, 3, 9)})
    figure = picture.figure()
    report_latency._draw(figure, times, "a title")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pair", "source"]
    assert {2500.0, 1500.0} <= {float(line.get_xdata()[0]) for line in axes.lines}


def test_a_name_stands_for_a_spec(tmp_path):
    """A recipe, a saved pair, an export, and a decoder-only model."""
    pair = other_pair()
    tiny_backbone(pair).save_to_preset(tmp_path / "ours")
    assert spec_of(str(tmp_path / "ours")) == pair
    lm = tiny_lm()
    lm.export_to_transformers(tmp_path / "released")
    assert spec_of(str(tmp_path / "released")) == lm.backbone.spec
    recipe = keras_encdec.presets["gemma2_tiny_mini"].spec
    assert spec_of("gemma2_tiny_mini") == recipe
    assert spec_of("gemma2_mini_docs") == recipe.decoder
