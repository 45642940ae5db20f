"""Log-likelihoods without writing: those of the logits, for texts of any length."""

import numpy as np
import pytest
from scipy.special import log_softmax

import keras_encdec
from keras_encdec.generation import likelihood
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.testing.models import make_inputs, run, tiny_lm

PAIRS = {
    "encoder_text": ["Returns the mean.", "Sort an array along an axis.", "An"],
    "decoder_text": ["Mean of all values of an array, or along an axis.", "Sorts.", "Object of"],
}


@pytest.fixture(scope="module")
def lm():
    return keras_encdec.from_preset("gemma2_tiny_tiny")


@pytest.mark.slow
def test_equals_the_logits(lm):
    x, y, weight = lm.preprocessor(PAIRS, encoder_sequence_length=64, decoder_sequence_length=64)
    log_probs = log_softmax(run(lm, x), axis=-1)
    expected = np.take_along_axis(log_probs, y[..., None], axis=-1)[..., 0]
    found = lm.score(PAIRS)
    for row, kept, per_token, total in zip(
        expected, weight, found.per_token, found.total, strict=True
    ):
        np.testing.assert_allclose(per_token, row[kept > 0], atol=1e-4)
        np.testing.assert_allclose(total, row[kept > 0].sum(), rtol=1e-5)
    assert found.perplexity == pytest.approx(np.exp(-expected[weight > 0].mean()), rel=1e-4)
    ids = lm.preprocessor.tokenizer(PAIRS["decoder_text"])
    assert [len(row) for row in found.per_token] == [len(row) + 1 for row in ids]  # and <eos>


@pytest.mark.long
def test_batches_change_nothing(lm):
    whole = lm.score(PAIRS)
    for batch_size in (1, 2):
        np.testing.assert_allclose(lm.score(PAIRS, batch_size).total, whole.total, rtol=1e-5)
    rows = [dict(zip(PAIRS, row, strict=True)) for row in zip(*PAIRS.values(), strict=True)]
    np.testing.assert_array_equal(lm.score(rows).total, whole.total)
    np.testing.assert_allclose(lm.score(rows[0]).total, whole.total[:1], rtol=1e-5)


@pytest.mark.slow
def test_targets_of_one_input_are_scored_as_alone(lm):
    """As many for an input as there are, in any order; an input's keys are shared by them."""
    words = ["mean", "sorts an array", "of", "the axis along which", "no", "is a view", "x"]
    asked = [(0, 7), (1, 1), (2, 3), (0, 2), (1, 4)]  # an input, and how many words of it
    pairs = [
        {"encoder_text": PAIRS["encoder_text"][i], "decoder_text": f"{word} {n}"}
        for i, n in asked
        for word in words[:n]
    ]
    np.random.default_rng(0).shuffle(pairs)
    alone = [lm.score(pair).total[0] for pair in pairs]
    for batch_size in (1, 3, 5, 32):
        np.testing.assert_allclose(lm.score(pairs, batch_size).total, alone, rtol=1e-5)


@pytest.mark.slow
def test_no_target_is_cut(lm):
    pair = {"encoder_text": "An", "decoder_text": " ".join(PAIRS["decoder_text"])}
    whole = lm.score(pair).per_token[0]
    kept, lm.preprocessor.decoder_sequence_length = lm.preprocessor.decoder_sequence_length, 4
    np.testing.assert_array_equal(lm.score(pair).per_token[0], whole)
    lm.preprocessor.decoder_sequence_length = kept
    assert len(whole) > 4


@pytest.mark.slow
def test_chunks(monkeypatch):
    lm = tiny_lm()
    bare = EncDecSeq2SeqLM(lm.backbone)
    inputs = make_inputs()
    whole = bare.score(inputs)
    bare.compile()  # programs are made anew
    monkeypatch.setattr(likelihood, "_LOGITS_AT_ONCE", 3 * 7)
    again = bare.score(inputs)
    np.testing.assert_allclose(again.total, whole.total, rtol=1e-5)
    assert [len(row) for row in whole.per_token] == [15, 8, 0]


@pytest.mark.slow
def test_what_was_generated(lm):
    lm.compile(sampler="greedy")
    text = lm.generate(PAIRS["encoder_text"][0], 8)
    likely, unlikely = (
        lm.score({"encoder_text": PAIRS["encoder_text"][0], "decoder_text": t}).per_token[0]
        for t in (text, text[::-1])
    )
    assert likely[:-1].mean() > unlikely[:-1].mean()


def test_bad_input(lm):
    with pytest.raises(ValueError, match="decoder_text"):
        lm.score(["a"])
    with pytest.raises(ValueError, match="decoder_text"):
        lm.score({"encoder_text": "a", "decoder_text": ""})
    with pytest.raises(ValueError, match="preprocessor"):
        EncDecSeq2SeqLM(lm.backbone).score(PAIRS)
