"""Generation and scores with int8, int4 and bfloat16: a little worse, and no other rules."""

import keras
import numpy as np
import pytest

import keras_encdec
from keras_encdec.generation import BeamSearch

TEXTS = ["Returns the mean.", "Sort an array along an axis, in place or not, by its keys.", "An"]
# How much worse the first half of a docstring may predict the second.
WORSE = {"int8": 0.01, "int4": 0.05, "bfloat16": 0.01}


def halves():
    names = ("mean", "sort", "linspace", "where")
    texts = [" ".join(getattr(np, name).__doc__.split()[:24]) for name in names]
    middle = [len(text) // 2 for text in texts]
    return {
        "encoder_text": [text[:at] for text, at in zip(texts, middle, strict=True)],
        "decoder_text": [text[at:] for text, at in zip(texts, middle, strict=True)],
    }


def small(mode):
    dtype = mode if mode == "bfloat16" else "float32"
    lm = keras_encdec.from_preset("gemma2_tiny_tiny", dtype=dtype)
    if mode not in ("float32", "bfloat16"):
        lm.quantize(mode)
    lm.compile(sampler=BeamSearch(2))
    return lm


@pytest.fixture(scope="module")
def expected():
    return small("float32").score(halves())


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=pytest.mark.slow) for m in ("int8", "int4", "bfloat16")]
)
def test_as_good_and_consistent(mode, expected):
    lm = small(mode)
    loss, reference = (-np.concatenate(x.per_token).mean() for x in (lm.score(halves()), expected))
    assert loss != reference
    assert abs(loss / reference - 1) < WORSE[mode]
    texts, scores = lm.generate(TEXTS, 8, num_samples=2, return_scores=True)
    again, found = lm.generate(TEXTS[1], 8, num_samples=2, return_scores=True)
    assert again == texts[1]
    np.testing.assert_allclose(found, scores[1], rtol=1e-2 if mode == "bfloat16" else 1e-4)


@pytest.mark.slow
def test_the_output_projection_is_quantised_too():
    lm = small("int8")
    embedding = lm.backbone.decoder.embedding
    assert embedding.quantization_mode == "int8"
    assert keras.backend.standardize_dtype(embedding._embeddings.dtype) == "int8"


@pytest.mark.long
def test_quantised_after_it_has_written():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler="greedy")
    pair = {"encoder_text": "An", "decoder_text": "array"}
    before = lm.score(pair).total
    lm.quantize("int8")
    assert lm.score(pair).total != before
