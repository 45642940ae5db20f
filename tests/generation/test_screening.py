"""Greedy generation with and without the int8 screen: the same tokens, of the weights there are."""

import logging

import keras
import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.generation import screen, screening

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone")

TEXTS = ["Returns the mean.", "Sort an array along an axis, in place or not, by its keys.", "An"]
GREEDY = keras_hub.samplers.GreedySampler()


@pytest.fixture(scope="module")
def lm():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler=GREEDY)
    return lm


def generated(lm, setting, texts=TEXTS, length=24):
    lm.backbone.output_screen = setting
    try:
        return lm.generate(texts, length)
    finally:
        lm.backbone.output_screen = "auto"


def table(lm, setting, sampler=GREEDY, rows=2, length=128):
    lm.backbone.output_screen = setting
    try:
        return screening.Screening(lm.backbone.decoder).table(sampler, rows, length)
    finally:
        lm.backbone.output_screen = "auto"


@pytest.mark.slow
def test_the_same_texts(lm):
    assert generated(lm, True) == generated(lm, False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_the_same_texts_in(dtype, monkeypatch):
    lm = keras_encdec.from_preset("gemma2_tiny_tiny", dtype=dtype)
    lm.compile(sampler="greedy")
    assert generated(lm, True) == generated(lm, False)
    assert table(lm, True)
    monkeypatch.setattr(screening, "_LEAST", 0)
    assert table(lm, "auto") == ()  # too many ties


@pytest.mark.long
def test_the_same_texts_of_many(lm):
    found = [getattr(np, name).__doc__ for name in dir(np)]
    texts = [text.strip()[:200] for text in found if text and len(text) > 300][:200]
    assert len(texts) == 200
    assert generated(lm, True, texts, 32) == generated(lm, False, texts, 32)


@pytest.mark.long
def test_the_table_says_most_tokens_of_a_trained_model(lm):
    """By the states that the decoder has along a text, against float64."""
    x = lm.preprocessor({"encoder_text": TEXTS, "decoder_text": TEXTS})[0]
    states = np.asarray(lm.backbone(x)["decoder_sequence_output"])[x["decoder_padding_mask"] > 0]
    matrix = np.asarray(lm.backbone.decoder.embedding.embeddings)
    cap = lm.backbone.spec.decoder.final_logit_soft_cap
    ids, known = map(np.asarray, screen.certain(states, table(lm, True), matrix, cap))
    expected = np.argmax(states.astype("float64") @ matrix.astype("float64").T, axis=1)
    assert len(states) > 20
    assert known.mean() > 0.95
    np.testing.assert_array_equal(ids[known], expected[known])


@pytest.mark.slow
def test_a_table_is_that_of_the_weights_there_are(lm):
    embedding, before = lm.backbone.decoder.embedding.embeddings, generated(lm, True)
    own, engine = np.array(embedding), lm.make_generate_function()

    def made():
        lm.backbone.output_screen = True
        return engine._screening.table(GREEDY, 2, 64)

    first = made()
    assert made() is first
    embedding.assign(own[::-1])
    try:
        assert made() is not first
        assert generated(lm, True) == generated(lm, False) != before
    finally:
        embedding.assign(own)
    assert lm.make_generate_function() is engine
    assert generated(lm, True) == before


def test_what_is_not_screened(lm):
    assert table(lm, True)
    assert table(lm, "auto") == ()  # too small a matrix to gain from it
    assert table(lm, False) == ()
    assert table(lm, True, keras_hub.samplers.TopKSampler(k=5)) == ()
    assert table(lm, True, keras_hub.samplers.RandomSampler()) == ()


@pytest.mark.slow
def test_matrices_that_are_no_variable_are_not_screened():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.quantize("int8")
    assert table(lm, True) == ()
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.backbone.decoder.embedding.enable_lora(2)
    assert table(lm, True) == ()


@pytest.mark.parametrize("used", [True, False])
def test_auto_measures_once_and_says_so(lm, monkeypatch, caplog, used):
    monkeypatch.setattr(screening, "_LEAST", 0)
    monkeypatch.setattr(screening, "_SHARES", {})
    monkeypatch.setattr(screening, "_SHARE", np.inf if used else 0.0)
    with caplog.at_level(logging.INFO, "keras_encdec"):
        assert bool(table(lm, "auto")) is used
        assert bool(table(lm, "auto")) is used
    (record,) = caplog.records
    assert ("it is screened" in record.getMessage()) is used
    assert next(iter(screening._SHARES.values())) > 0
    assert table(lm, "auto", rows=screening._MOST_ROWS + 1) == ()
    assert table(lm, "auto", length=64) == ()


@pytest.mark.parametrize("value", ["on", None, 1])
def test_settings_that_are_none(lm, value):
    with pytest.raises(ValueError, match="output_screen as 'auto' or a bool"):
        lm.backbone.output_screen = value


def test_true_where_there_is_no_screen(lm, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(ValueError, match="only JAX"):
        lm.backbone.output_screen = True
    lm.backbone.output_screen = "auto"
