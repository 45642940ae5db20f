"""Spearman's coefficient beside arithmetic by hand, and beside what the paper says of its table."""

import itertools
import json

import numpy as np
import pytest

from keras_encdec.evaluation import correlate
from keras_encdec.evaluation.correlation import Scored, read_table, spearman
from keras_encdec.evaluation.paper import paper_table


def by_differences(x, y):
    """1 - 6 sum d^2 / (n (n^2 - 1)), which holds where no two values are equal."""
    d = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
    return 1 - 6 * int((d**2).sum()) / (len(x) * (len(x) ** 2 - 1))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # d^2 = 4: 1 - 24 / 120
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 2, 3], [2, 3, 1], -0.5),  # d^2 = 6: 1 - 36 / 24
        ([10, 20, 30], [1, 100, 10_000], 1),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, sums of squares 4.5 and 5.
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / np.sqrt(4.5 * 5)),
    ],
)
def test_by_hand(x, y, expected):
    assert spearman(x, y) == pytest.approx(expected)
    assert spearman(y, x) == pytest.approx(expected)


def test_any_order_of_seven():
    for order in itertools.islice(itertools.permutations(range(7)), 0, 5040, 97):
        assert spearman(range(7), order) == pytest.approx(by_differences(range(7), order))


@pytest.mark.parametrize("values", [[1, 1, 1], [5], []])
def test_what_has_no_order_has_no_coefficient(values):
    assert np.isnan(spearman(values, range(len(values))))


def test_many_at_once():
    many = np.random.default_rng(0).integers(0, 4, (2, 50, 5))
    each = [spearman(x, y) for x, y in zip(*many, strict=True)]
    np.testing.assert_allclose(spearman(*many), each)


def table(**groups):
    """Models of sizes, each a list of (first, second)."""
    return [
        Scored(f"{size} {i}", size, {"first": a, "second": b})
        for size, rows in groups.items()
        for i, (a, b) in enumerate(rows)
    ]


def test_size_alone_can_make_scores_agree():
    """Two sizes far apart, opposite orders within each."""
    models = table(small=[(1, 3), (2, 2), (3, 1)], large=[(11, 13), (12, 12), (13, 11)])
    found = correlate(models, "first", "second")
    assert found.overall == pytest.approx(by_differences([1, 2, 3, 4, 5, 6], [3, 2, 1, 6, 5, 4]))
    assert found.within == {"small": -1, "large": -1}
    assert found.within_mean == -1
    assert found.within_p == pytest.approx(2 / 36, abs=0.007)  # of 6 x 6 orders, two are so far


def test_sizes_of_too_few_models_or_of_one_score_are_left_out_and_named():
    models = table(
        two=[(1, 1), (2, 2)], equal=[(1, 1), (2, 1), (3, 1)], good=[(4, 4), (5, 6), (6, 5)]
    )
    found = correlate(models, "first", "second")
    assert found.left_out == ("two", "equal")
    assert found.within == {"good": pytest.approx(0.5)}
    assert found.within_interval is None
    assert found.models == 8


def test_models_without_one_of_the_scores_are_passed_over():
    models = [*table(a=[(1, 1), (2, 2), (3, 3)]), Scored("x", "a", {"first": 9.0})]
    assert correlate(models, "first", "second").models == 3


def test_intervals_hold_the_coefficient_and_a_seed_gives_them_again():
    rng = np.random.default_rng(3)
    x = rng.normal(size=40)
    models = table(all=list(zip(x, x + rng.normal(size=40), strict=True)))
    found = correlate(models, "first", "second")
    low, high = found.overall_interval
    assert low < found.overall < high
    # The standard error of Fisher's z for ranks, sqrt((1 + r^2 / 2) / (n - 3)) (Bonett and Wright).
    r = found.overall
    half = 1.96 * np.sqrt((1 + r**2 / 2) / 37)
    expected = np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)
    assert (low, high) == pytest.approx(expected, abs=0.06)
    assert correlate(models, "first", "second") == found
    assert correlate(models, "first", "second", seed=1).overall_interval != found.overall_interval


def test_chance_is_that_of_all_orders():
    """One size of six models: its 720 orders, one by one."""
    second = [2, 1, 3, 6, 4, 5]
    found = correlate(table(one=list(zip(range(6), second, strict=True))), "first", "second")
    r = by_differences(range(6), second)
    orders = list(itertools.permutations(range(6)))
    as_far = sum(abs(by_differences(range(6), order)) >= abs(r) - 1e-9 for order in orders)
    assert found.within == {"one": pytest.approx(r)}
    assert found.within_p == pytest.approx(as_far / 720, abs=0.01)  # 4 standard errors


def write(folder, data):
    path = folder / "table.json"
    path.write_text(json.dumps(data))
    return path


MODEL = {"model": "a", "size": "2B", "scores": {"PT": 1.0}}


def test_a_table_is_read(tmp_path):
    path = write(tmp_path, {"models": [MODEL, {**MODEL, "model": "b"}]})
    assert read_table(path)[1] == Scored("b", "2B", {"PT": 1.0})


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], 'list of "models"'),
        ([MODEL, MODEL], "each model once"),
        ([{"model": "a", "size": "b"}], r"model, size and scores in models\[0\]"),
        ([{**MODEL, "scores": {}}], r"scores by name in models\[0\]"),
        ([{**MODEL, "scores": {"PT": "high"}}], r"PT of models\[0\]"),
        ([{**MODEL, "scores": {"PT": float("nan")}}], r"PT of models\[0\]"),
        ([{**MODEL, "model": 3}], r"text \(str\)"),
    ],
)
def test_a_table_that_is_none(tmp_path, models, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, {"models": models}))


def test_a_score_that_no_model_has():
    with pytest.raises(ValueError, match=r"a score 'first' or 'second'.*'firts'.*'first'"):
        correlate(table(a=[(1, 2)]), "firts", "second")


def test_the_papers_table_is_whole():
    """25 models, and the mean of what the encoder gains at 2B (abstract: 75.5 to 88.1)."""
    models = {model.model: model for model in paper_table()}
    assert len(models) == 25
    assert models["2B"].scores["SuperGLUE"] == 75.5
    assert models["2B-2B UL2"].scores["SuperGLUE"] == 88.1
