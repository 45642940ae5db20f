"""Metrics, baselines and intervals beside hand computation and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from keras_encdec.data.labelled import Labelled
from keras_encdec.evaluation.intervals import Part, difference, over_seeds, scaled
from keras_encdec.evaluation.superglue_baselines import NaiveBayes, bag_of_words, majority
from keras_encdec.evaluation.superglue_data import TASKS, Split
from keras_encdec.evaluation.superglue_metrics import all_metrics, check_metric, measure


def split(labels, questions=None, texts=None, choices=None):
    rows = [(text,) for text in texts or ["Some text."] * len(labels)]
    numbers = np.arange(len(labels)) if questions is None else np.array(questions)
    return Split(Labelled(rows, choices, np.array(labels, "int32")), numbers, "")


def test_accuracy_and_f1_of_cb():
    found = all_metrics(TASKS["CB"], split([0, 0, 1, 2]), np.array([0, 1, 1, 1]))
    # F1 by class: 2*1/(2+1), 2*1/(1+3), 0.
    f1 = (2 / 3 + 1 / 2 + 0) / 3
    assert found == pytest.approx({"accuracy": 0.5, "f1": f1, "score": (0.5 + f1) / 2})


def test_a_class_that_is_nowhere_is_not_counted():
    found = all_metrics(TASKS["CB"], split([0, 0, 1]), np.array([0, 0, 1]))
    assert found["f1"] == 1.0


def test_answers_and_questions_of_multirc():
    labels, questions = [1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2]
    found = all_metrics(TASKS["MultiRC"], split(labels, questions), np.array([1, 0, 0, 1, 0, 1]))
    # 2 of 3 right answers found, 3 said to be right; of three questions the first is all right.
    f1a = 2 * 2 / (3 + 3)
    expected = {"accuracy": 4 / 6, "f1a": f1a, "em": 1 / 3, "score": (f1a + 1 / 3) / 2}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "metric"), [("CB", "score"), ("MultiRC", "score"), ("RTE", "accuracy")]
)
def test_a_weight_counts_as_often_as_that(task, metric):
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(2, size=(2, 30))
    questions = np.repeat(np.arange(10), 3)
    times = rng.integers(0, 4, size=10)
    again = np.concatenate(
        [np.flatnonzero(questions == q) for q in range(10) for _ in range(times[q])]
    )
    numbers = np.repeat(np.arange(len(again) // 3), 3)
    expected = measure(metric, TASKS[task], split(labels[again], numbers), predicted[again])
    given = split(labels, questions), predicted, times[questions].astype(float)
    assert measure(metric, TASKS[task], *given) == pytest.approx(expected)


def test_metrics_that_a_task_does_not_have():
    check_metric("f1a", [TASKS["MultiRC"]])
    with pytest.raises(ValueError, match="'f1a', and CB, which has score, accuracy, f1"):
        check_metric("f1a", [TASKS["MultiRC"], TASKS["CB"]])
    with pytest.raises(ValueError, match="Did you mean 'accuracy'"):
        check_metric("acuracy", [TASKS["CB"]])


def test_the_most_frequent_class():
    assert majority(split([2, 1, 2, 0]), split([0, 0])).tolist() == [2, 2]


def test_naive_bayes_by_hand():
    model = NaiveBayes(["a a b", "c", "C a"], np.array([0, 1, 1]), 2)
    # Words a, b, c: class 0 has 2, 1, 0 of them, class 1 has 1, 0, 2; each and one more.
    first = math.log(2 / 5) + math.log(3 / 6) + math.log(1 / 6)
    second = math.log(3 / 5) + math.log(2 / 6) + math.log(3 / 6)
    np.testing.assert_allclose(model.log_odds(["a, unknown C"]), [[first, second]], rtol=1e-12)
    np.testing.assert_allclose(model.log_odds(["?"]), np.log([[2 / 5, 3 / 5]]), rtol=1e-12)


def test_a_bag_of_words_knows_words_and_choices():
    train = split([0, 1, 0, 1], texts=["bad day", "good day", "bad", "good"])
    assert bag_of_words(train, split([0, 0], texts=["good night", "bad"])).tolist() == [1, 0]
    choices = [("good", "bad"), ("bad", "good")] * 2
    train = split([0, 1, 0, 1], choices=choices)
    val = split([0, 0], choices=[("bad", "good"), ("good", "bad")])
    assert bag_of_words(train, val).tolist() == [1, 0]


# Intervals.


def between(one, other, *parts):
    mean = float(np.mean(other) - np.mean(one))
    return difference(mean, [over_seeds(one), over_seeds(other), *parts])


def test_the_interval_is_welchs():
    one, other = [0.70, 0.72, 0.69], [0.75, 0.80, 0.71]
    found = between(one, other)
    expected = stats.ttest_ind(other, one, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.verdict == "undecided"
    wider = between(one, other, Part(0.01, 50))
    assert wider.low < found.low


def test_verdicts():
    low, high = [0.50, 0.51, 0.505], [0.60, 0.61, 0.605]
    assert between(low, high).verdict == "agrees"
    assert between(high, low).verdict == "disagrees"
    assert between(low, low).verdict == "undecided"
    assert between([0.5], [0.9]).verdict == "undecided"
    assert scaled([Part(0.04, 3), None], 0.5) == [Part(0.01, 3), None]


def test_no_effect_is_seldom_read_as_one():
    rng, read = np.random.default_rng(0), {"agrees": 0, "disagrees": 0, "undecided": 0}
    for one, other in rng.normal(0.7, 0.02, (2000, 2, 3)):
        read[between(one, other).verdict] += 1
    assert read["agrees"] < 70  # 2.5% are 50
    assert read["disagrees"] < 70
    assert read["undecided"] > 1860


def test_a_large_effect_is_mostly_read():
    rng = np.random.default_rng(0)
    runs = rng.normal(0, 0.01, (500, 2, 3)) + np.array([0.7, 0.8])[None, :, None]
    assert sum(between(*pair).verdict == "agrees" for pair in runs) > 450
