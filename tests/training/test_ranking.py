"""Losses that rank, and their gradients, beside loops in float64 and beside numbers by hand."""

import json

import keras
import numpy as np
import pytest

from keras_encdec.testing.gradients import differences, value_and_gradients
from keras_encdec.testing.models import assert_close, to_numpy
from keras_encdec.training import ListNet, ListwiseSoftmax, PointwiseCrossEntropy, RankNet
from keras_encdec.training.ranking import ByData, Judged, ranks_right

# Row 1 has two negatives, row 3 is there to fill; positives answer in part.
THERE = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
RELEVANCE = np.array([[1.0, 0, 0, 0], [0.5, 0, 0, 0], [0.25, 0, 0, 0], [0, 0, 0, 0]])
SCORES = np.random.default_rng(0).normal(0, 2, THERE.shape)
ONES = (RELEVANCE > 0) * 1.0


def ranknet(scores, relevance):
    losses = []
    for score, wanted in zip(scores[1:], relevance[1:], strict=True):
        probability = 1 / (1 + np.exp(-(scores[0] - score)))
        target = (1 + relevance[0] - wanted) / 2
        losses.append(-target * np.log(probability) - (1 - target) * np.log(1 - probability))
    return np.mean(losses)


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def listwise(scores, relevance):
    return -np.log(softmax(scores)[0])


def listnet(scores, relevance, temperature=1.0):
    return -(softmax(relevance / temperature) * np.log(softmax(scores))).sum()


def pointwise(scores, relevance):
    p = 1 / (1 + np.exp(-scores))
    return np.mean(-relevance * np.log(p) - (1 - relevance) * np.log(1 - p))


CASES = {
    "ranknet": (RankNet(), ranknet, ONES),
    "ranknet in part": (RankNet(), ranknet, RELEVANCE),
    "softmax": (ListwiseSoftmax(), listwise, ONES),
    "listnet": (ListNet(), listnet, RELEVANCE),
    "listnet, sharp": (
        ListNet(0.2),
        lambda scores, relevance: listnet(scores, relevance, 0.2),
        RELEVANCE,
    ),
    "pointwise": (PointwiseCrossEntropy(), pointwise, ONES),
    "pointwise in part": (PointwiseCrossEntropy(), pointwise, RELEVANCE),
    "by data": (ByData(), listwise, ONES),
}


def judged(*arrays):
    """As tensors, which a model's scores are."""
    return Judged(*map(keras.ops.convert_to_tensor, arrays))


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(case):
    loss, function, relevance = CASES[case]
    variable = keras.Variable(SCORES.astype("float32"))
    weight = np.array([1.0, 0.5, 2.0, 0.0])

    def by_hand(scores):
        rows = zip(scores, relevance, THERE, weight, strict=True)
        return sum(w * function(s[m], r[m]) for s, r, m, w in rows if m.any())

    def ours():
        each = loss(judged(variable.value, relevance.astype("float32"), THERE))
        return keras.ops.sum(each * keras.ops.convert_to_tensor(weight, "float32"))

    value, (gradient,) = value_and_gradients(ours, [variable])
    (slope,) = differences(by_hand, [SCORES.copy()])
    assert_close(np.array(value), by_hand(SCORES))
    assert np.abs(slope).max() > 0.1
    assert_close(gradient, slope)
    assert not gradient[~THERE].any()


def test_by_hand():
    """Scores log 3 and 0: the positive has 3/4 of the softmax, and wins with 3/4."""
    scores, ones = np.log([[3.0, 1.0]]).astype("float32"), np.ones((1, 2), bool)
    batch = judged(scores, np.array([[1.0, 0.0]], "float32"), ones)
    assert_close(to_numpy(RankNet()(batch)), np.log([4 / 3]))
    assert_close(to_numpy(ListwiseSoftmax()(batch)), np.log([4 / 3]))
    assert_close(to_numpy(PointwiseCrossEntropy()(batch)), np.log([4 / 3 * 2]) / 2)
    share = np.e / (1 + np.e)
    expected = share * np.log(4 / 3) + (1 - share) * np.log(4)
    assert_close(to_numpy(ListNet()(batch)), np.array([expected]))
    alone = judged(*(x[:, :1] for x in batch))
    assert_close(to_numpy(ByData()(alone)), np.log([4 / 3]))


def test_large_scores_stay_finite():
    scores = np.array([[300.0, -300.0], [-300.0, 300.0]], "float32")
    batch = judged(scores, np.array([[1, 0], [1, 0]], "float32"), np.ones((2, 2), bool))
    for loss in (RankNet(), ListwiseSoftmax(), ListNet(), PointwiseCrossEntropy()):
        assert np.isfinite(to_numpy(loss(batch))).all()
    assert_close(to_numpy(RankNet()(batch)), np.array([0.0, 600.0]))


def test_what_ranks_right():
    expected = [
        row[0] > row[1:][there[1:]].max() for row, there in zip(SCORES[:3], THERE, strict=False)
    ]
    found = to_numpy(ranks_right(judged(SCORES.astype("float32"), RELEVANCE, THERE)))
    np.testing.assert_array_equal(found[:3], np.array(expected, "float32"))
    same = judged(np.ones((1, 2), "float32"), np.array([[1.0, 0]]), np.ones((1, 2), bool))
    assert not to_numpy(ranks_right(same)).any()
    labels = np.array([[1.0], [1.0], [0.0], [0.0]], "float32")
    one = judged(np.array([[2.0], [-2.0], [-2.0], [2.0]], "float32"), labels, labels > -1)
    np.testing.assert_array_equal(to_numpy(ranks_right(one)), [1, 0, 1, 0])


@pytest.mark.parametrize("loss", [RankNet(), ListNet(0.5), ListwiseSoftmax(), ByData()])
def test_a_loss_comes_back_from_json(loss):
    saved = json.dumps(keras.saving.serialize_keras_object(loss))
    assert keras.saving.deserialize_keras_object(json.loads(saved)) == loss


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "1"])
def test_a_temperature_that_cannot_be(temperature):
    with pytest.raises(ValueError, match="temperature"):
        ListNet(temperature)
