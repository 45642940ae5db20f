"""Queries and documents in all the forms that users hand them over in."""

import numpy as np
import pandas
import pytest
import tensorflow as tf
from datasets import Dataset

from keras_encdec.data.facts import digest
from keras_encdec.data.ranked import Distinct, Ranked, as_judged, as_ranked

QUERIES = ["What adds?", "What raises?", "What reads?"]
POSITIVES = ["The sum of two.", "An error.", "A file."]
NEGATIVES = [["A list.", "A name."], ["A key.", "A row."], ["A type.", "A shape."]]
SCORES = [1.0, 0.5, 0.0]
COLUMNS = {"query": QUERIES, "positive": POSITIVES}
ALL = {**COLUMNS, "negatives": NEGATIVES, "score": SCORES}
ROWS = [dict(zip(ALL, row, strict=True)) for row in zip(*ALL.values(), strict=True)]

PAIRS = {
    "two lists": (QUERIES, POSITIVES),
    "arrays": (np.array(QUERIES), np.array(POSITIVES)),
    "tensors": (tf.constant(QUERIES), tf.constant(POSITIVES)),
    "series": (pandas.Series(QUERIES), pandas.Series(POSITIVES)),
    "dict": (COLUMNS,),
    "queries of a dict": ({"query": QUERIES}, POSITIVES),
    "columns": ((QUERIES, POSITIVES),),
    "tuples": (list(zip(QUERIES, POSITIVES, strict=True)),),
    "lists of two": (list(map(list, zip(QUERIES, POSITIVES, strict=True))),),
    "tf.data of tuples": (tf.data.Dataset.from_tensor_slices((QUERIES, POSITIVES)),),
    "generator": ((pair for pair in zip(QUERIES, POSITIVES, strict=True)),),
}
WHOLE = {
    "dict": ALL,
    "frame": pandas.DataFrame(ALL),
    "frame with other columns": pandas.DataFrame({**ALL, "url": "there"}),
    "dataset": Dataset.from_dict(ALL),
    "rows": ROWS,
    "tf.data": tf.data.Dataset.from_tensor_slices(ALL),
    "batches of tf.data": tf.data.Dataset.from_tensor_slices(ALL).batch(2),
    "generator of rows": (row for row in ROWS),
}


@pytest.mark.parametrize("form", PAIRS)
def test_pairs(form):
    found = as_ranked(*PAIRS[form])
    assert (list(found.queries), list(found.positives)) == (QUERIES, POSITIVES)
    assert found.negatives is found.scores is found.weights is None


@pytest.mark.parametrize("form", WHOLE)
def test_negatives_and_scores(form):
    found = as_ranked(WHOLE[form])
    assert found.documents == [(p, *n) for p, n in zip(POSITIVES, NEGATIVES, strict=True)]
    assert found.queries == QUERIES
    np.testing.assert_array_equal(found.scores, np.array(SCORES, "float32"))


def test_one_negative_of_each():
    for x in (
        {**COLUMNS, "negative": [n[0] for n in NEGATIVES]},
        (QUERIES, POSITIVES, [n[0] for n in NEGATIVES]),
        [(q, p, n[0]) for q, p, n in zip(QUERIES, POSITIVES, NEGATIVES, strict=True)],
    ):
        assert as_ranked(x).negatives == [(n[0],) for n in NEGATIVES]


def test_rows_of_different_numbers_of_negatives():
    found = as_ranked({**COLUMNS, "negatives": [[], ["A key."], ["A type.", "A shape."]]})
    assert [len(row) for row in found.documents] == [1, 2, 3]
    again = [[], ["A key."], ["A type.", "A shape."]]
    assert as_ranked(row for row in [dict(COLUMNS, negatives=again)]).documents == found.documents


def test_parts_and_digests():
    whole = as_ranked(ALL, sample_weight=[1, 2, 3])
    part = whole[1:]
    assert (part.queries, part.weights.tolist()) == (QUERIES[1:], [2, 3])
    assert part.documents == whole.documents[1:]
    others = [
        as_ranked(ALL),
        as_ranked({**ALL, "score": [1.0, 0.5, 0.1]}, sample_weight=[1, 2, 3]),
        as_ranked({**ALL, "negatives": NEGATIVES[::-1]}, sample_weight=[1, 2, 3]),
        as_ranked({**ALL, "positive": POSITIVES[::-1]}, sample_weight=[1, 2, 3]),
    ]
    assert len({digest(source) for source in (whole, *others)}) == 5


def test_distinct_texts():
    assert Distinct.of(["b", "a", "b", "c"]) == Distinct(["b", "a", "c"], [0, 1, 0, 2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((QUERIES,), "the documents that answer them"),
        (({"question": QUERIES, "answer": POSITIVES},), r"columns \['question', 'answer'\]"),
        (({"query": QUERIES},), "a column positive"),
        ((COLUMNS, POSITIVES), "Received: both"),
        ((QUERIES, POSITIVES[:2]), "a positive for each of 3 queries. Received: 2"),
        (({**COLUMNS, "negatives": NEGATIVES[:2]},), "a negatives for each of 3 queries"),
        (({**COLUMNS, "negative": POSITIVES, "negatives": NEGATIVES},), "under one name"),
        (({**COLUMNS, "score": [1, 2, 0]},), "score from 0 to 1. Received: 2.0 in row 1"),
        (({**COLUMNS, "score": [1, float("nan"), 0]},), "Received: nan in row 1"),
        (({**COLUMNS, "score": ["1", "2", "3"]},), "a number as the score"),
        ((["a", " "], ["b", "c"]), "text as query of row 1"),
        ((["a", "b"], ["c", ""]), "text as positive of row 1"),
        (({**COLUMNS, "negatives": [["x"], [" "], []]},), "text as negative of row 1"),
        (({**COLUMNS, "negatives": [["x"], ["An error."], []]},), "'An error.' as both in row 1"),
        (([ROWS[0], {"query": "a"}],), "row 1 without"),
        (([("a", "b", "c", "d")],), "rows of 4"),
        (([], []), "at least one query"),
        ((tf.data.Dataset.from_tensor_slices(ALL).repeat(),), "data with an end"),
        ((QUERIES, POSITIVES, [1.0]), "sample_weight"),
        (([1, 2], [3, 4]), "query of row 0"),
    ],
)
def test_bad_data_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        as_ranked(*data)


def test_a_source_is_what_it_is():
    source = Ranked(QUERIES, POSITIVES)
    assert as_ranked(source) is source
    with pytest.raises(ValueError, match="y beside"):
        as_ranked(source, POSITIVES)


LABELS = [1, 0, 0.5]
JUDGED = {"query": QUERIES, "document": POSITIVES, "label": LABELS}
JUDGED_ROWS = [dict(zip(JUDGED, row, strict=True)) for row in zip(*JUDGED.values(), strict=True)]
LABELLED = {
    "dict": (JUDGED,),
    "labels as y": ({"query": QUERIES, "document": POSITIVES}, LABELS),
    "columns and labels": ((QUERIES, POSITIVES), np.array(LABELS)),
    "frame": (pandas.DataFrame({**JUDGED, "url": "there"}),),
    "dataset": (Dataset.from_dict(JUDGED),),
    "rows": (JUDGED_ROWS,),
    "tuples": (list(zip(*JUDGED.values(), strict=True)),),
    "tf.data": (tf.data.Dataset.from_tensor_slices(JUDGED),),
    "batches of tf.data": (tf.data.Dataset.from_tensor_slices(JUDGED).batch(2),),
    "generator of rows": ((row for row in JUDGED_ROWS),),
    "generator of pairs and labels": (
        (((q, d), label) for q, d, label in zip(*JUDGED.values(), strict=True)),
    ),
}


@pytest.mark.parametrize("form", LABELLED)
def test_documents_with_labels(form):
    found = as_judged(*LABELLED[form])
    assert (list(found.queries), list(found.positives)) == (QUERIES, POSITIVES)
    np.testing.assert_array_equal(found.scores, np.array(LABELS, "float32"))
    assert found.negatives is None


@pytest.mark.parametrize("form", [form for form in PAIRS if form != "generator"])
def test_what_is_ranked_is_judged_as_it_is(form):
    found, expected = as_judged(*PAIRS[form]), as_ranked(*PAIRS[form])
    assert (found.documents, found.scores) == (expected.documents, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((JUDGED, LABELS), "labels in label or in y. Received: both"),
        (({**JUDGED, "positive": POSITIVES},), "query, document and label, or"),
        (({"document": POSITIVES, "label": LABELS},), "columns query, document and label"),
        (({**JUDGED, "label": [0, 1, 2]},), "score from 0 to 1. Received: 2.0 in row 2"),
        (({**JUDGED, "label": ["a", "b", "c"]},), "a number as the score"),
        (({**JUDGED, "document": ["a", "", "b"]},), "row 1. Received: an empty one"),
    ],
)
def test_labels_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        as_judged(*arguments)
