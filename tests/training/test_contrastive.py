"""Losses that compare, and their gradients, beside loops in float64 over the rows of a batch."""

import json

import keras
import numpy as np
import pytest

from keras_encdec.testing.gradients import differences, value_and_gradients
from keras_encdec.testing.models import assert_close, to_numpy
from keras_encdec.training import BiXSE, InBatchNCE
from keras_encdec.training.contrastive import Vectors, ranks_first

# Rows 0 and 2 ask the same; rows 1 and 3 have one answer; row 0's second negative answers row 4;
# row 3 has one negative; row 5 is there to fill.
QUERIES = ["a", "b", "a", "c", "d", ""]
DOCUMENTS = [
    ["A", "x", "D"],
    ["B", "y", "z"],
    ["A2", "x", "w"],
    ["B", "v", ""],
    ["D", "u", "A"],
    ["", "", ""],
]
SCORES = np.array([1.0, 0.25, 0.5, 0.0, 0.75, 0.0])
WIDTH = 6


def numbers(texts):
    flat = list(np.ravel(texts))
    found = list(dict.fromkeys(flat))
    return np.array([found.index(t) for t in flat], "int32").reshape(np.shape(texts))


def drawn():
    rng = np.random.default_rng(0)
    shapes = (len(QUERIES), WIDTH), (len(QUERIES), 3, WIDTH)
    return [rng.normal(0, 1, shape).astype("float32") for shape in shapes]


def batch(queries, documents, scores=None):
    there = np.array(DOCUMENTS) != ""
    arrays = queries, documents, numbers(QUERIES), numbers(DOCUMENTS), there
    tensors = map(keras.ops.convert_to_tensor, arrays)  # which a model's vectors are
    return Vectors(*tensors, None if scores is None else keras.ops.convert_to_tensor(scores))


# By hand.


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def answers(query):
    return {row[0] for q, row in zip(QUERIES, DOCUMENTS, strict=True) if q == query and row[0]}


def negatives(i, others_hard=True):
    """(row, place) of each document that query i is compared with, its own aside."""
    for j, row in enumerate(DOCUMENTS):
        for k, text in enumerate(row):
            if text and text not in answers(QUERIES[i]) and (others_hard or k == 0 or j == i):
                yield j, k


def nce(queries, documents, frozen, temperature=0.05, **options):
    """The mean over rows; `frozen` are the vectors that weights of hard negatives are made of."""
    q, d = unit(queries), unit(documents)
    fixed_q, fixed_d = (unit(x) for x in frozen)
    hardness, losses = options.get("hardness", 0), []
    rows = range(len(QUERIES) - 1)
    for i in rows:
        positive = np.exp(q[i] @ d[i, 0] / temperature)
        total = positive
        for j, k in negatives(i, options.get("others_hard", True)):
            weight = np.exp(hardness * (fixed_q[i] @ fixed_d[j, k])) if k else 1.0
            total += weight * np.exp(q[i] @ d[j, k] / temperature)
        loss = -np.log(positive / total)
        if options.get("symmetric"):
            total = positive
            for j in rows:
                if DOCUMENTS[i][0] not in answers(QUERIES[j]):
                    total += np.exp(q[j] @ d[i, 0] / temperature)
            loss = (loss - np.log(positive / total)) / 2
        for vectors, texts in ((q, QUERIES), (d[:, 0], [row[0] for row in DOCUMENTS])):
            others = [(vectors[i] @ vectors[j]) ** 2 for j in rows if texts[j] != texts[i]]
            loss += options.get("spread_out", 0) * np.mean(others)
        losses.append(loss)
    return np.mean(losses)


def bixse(queries, documents, frozen, temperature=0.05, bias=-10.0):
    q, d = unit(queries), unit(documents)

    def probability(i, j, k):
        return 1 / (1 + np.exp(-(q[i] @ d[j, k] / temperature + bias)))

    losses = []
    for i in range(len(QUERIES) - 1):
        p, score = probability(i, i, 0), SCORES[i]
        loss = -score * np.log(p) - (1 - score) * np.log(1 - p)
        losses.append(loss - sum(np.log(1 - probability(i, j, k)) for j, k in negatives(i)))
    return np.mean(losses)


def matryoshka(function, sizes):
    def summed(queries, documents, frozen, **options):
        return sum(
            weight
            * function(
                queries[..., :size],
                documents[..., :size],
                [f[..., :size] for f in frozen],
                **options,
            )
            for size, weight in sizes.items()
        )

    return summed


SIZES = {6: 1.0, 4: 0.5, 2: 0.25}
CASES = {
    "nce": (InBatchNCE, nce, {}),
    "warm": (InBatchNCE, nce, {"temperature": 0.7}),
    "symmetric": (InBatchNCE, nce, {"symmetric": True, "temperature": 0.3}),
    "own hard negatives": (InBatchNCE, nce, {"others_hard": False, "temperature": 0.3}),
    "hardness": (InBatchNCE, nce, {"hardness": 5.0, "temperature": 0.3}),
    "spread out": (InBatchNCE, nce, {"spread_out": 2.0}),
    "all": (
        InBatchNCE,
        nce,
        {"symmetric": True, "hardness": 5.0, "spread_out": 2.0, "temperature": 0.3},
    ),
    "bixse": (BiXSE, bixse, {"temperature": 0.2, "bias": -2.0}),
}


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["whole", "matryoshka"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(case, sizes):
    kind, function, options = CASES[case]
    loss, by_hand = kind(**options, dimensions=sizes), matryoshka(function, sizes or {WIDTH: 1.0})
    variables = [keras.Variable(array) for array in drawn()]
    weight = np.array([1.0] * 5 + [0.0], "float32")
    scores = SCORES.astype("float32") if kind is BiXSE else None

    def ours():
        queries, documents = (v.value for v in variables)
        losses = loss(batch(queries, documents, scores))
        return keras.ops.sum(losses * keras.ops.convert_to_tensor(weight)) / 5

    value, gradients = value_and_gradients(ours, variables)
    arrays = [array.astype("float64") for array in drawn()]
    frozen = [array.copy() for array in arrays]
    expected = by_hand(*arrays, frozen, **options)
    assert_close(np.array(value), expected, 1e-5)
    slopes = differences(lambda q, d: by_hand(q, d, frozen, **options), arrays)
    for found, slope in zip(gradients, slopes, strict=True):
        assert np.abs(slope).max() > 0.01
        assert_close(found, slope, 1e-4)


@pytest.mark.slow
def test_a_row_that_fills_the_batch_is_nothing():
    queries, documents = drawn()
    loss = InBatchNCE(symmetric=True, spread_out=1.0, dimensions=SIZES)
    whole = to_numpy(loss(batch(queries, documents)))[:5]
    part = batch(queries, documents)
    part = Vectors(*(x if x is None else x[:5] for x in part))
    assert_close(whole, to_numpy(loss(part)), 1e-6)
    queries[5], documents[5] = 0, 0
    zeros = [keras.Variable(x) for x in (queries, documents)]
    weight = np.array([1.0] * 5 + [0.0], "float32")

    def mean():
        losses = loss(batch(*(v.value for v in zeros)))
        return keras.ops.sum(losses * keras.ops.convert_to_tensor(weight))

    _, gradients = value_and_gradients(mean, zeros)
    assert all(np.isfinite(g).all() and not g[5].any() for g in gradients)


def test_accuracy_is_of_positives_that_are_nearest():
    queries, documents = drawn()
    q, d = unit(queries.astype("float64")), unit(documents.astype("float64"))
    expected = [q[i] @ d[i, 0] > max(q[i] @ d[j, k] for j, k in negatives(i)) for i in range(5)]
    assert 0 < np.sum(expected) < 5
    found = to_numpy(ranks_first(batch(queries, documents)))[:5]
    np.testing.assert_array_equal(found, np.array(expected, "float32"))


def test_vectors_that_are_all_the_same_are_not_accurate():
    same = [np.ones_like(x) for x in drawn()]
    assert not to_numpy(ranks_first(batch(*same)))[:5].any()


@pytest.mark.parametrize(
    "loss", [InBatchNCE(0.1, True, False, 5.0, 0.5, {8: 1, 4: 0.5}), BiXSE(0.1, -5.0, {4: 1.0})]
)
def test_a_loss_comes_back_from_json(loss):
    saved = json.dumps(keras.saving.serialize_keras_object(loss))
    assert keras.saving.deserialize_keras_object(json.loads(saved)) == loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature"),
        ({"hardness": -1}, "hardness"),
        ({"spread_out": float("nan")}, "spread_out"),
        ({"symmetric": 1}, "symmetric"),
        ({"dimensions": [8, 4]}, "dimensions as a dict"),
        ({"dimensions": {}}, "dimensions as a dict"),
        ({"dimensions": {0: 1.0}}, "dimensions"),
        ({"dimensions": {4: 0.0}}, "weights of dimensions"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        InBatchNCE(**options)
