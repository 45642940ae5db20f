"""Slots that are filled again: what comes out, and how often the encoder was asked."""

import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.generation import call

pytestmark = pytest.mark.slow

WORDS = [
    "array",
    "mean",
    "axis",
    "sort",
    "values",
    "of",
    "the",
    "key",
    "index",
    "shape",
    "dtype",
    "copy",
]


def texts(count, longest=20):
    rng = np.random.default_rng(count)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def stops(lm):
    """Ids that end most outputs somewhere between their beginning and their end."""
    ids = lm.generate(lm.preprocessor.generate_preprocess(texts(23), sequence_length=24))
    found, counts = np.unique(ids["decoder_token_ids"][:, 4:], return_counts=True)
    return tuple(int(i) for i in found[np.argsort(-counts)][3::2])


def one_by_one(lm, inputs, *args, **kwargs):
    return [lm.generate(text, *args, **kwargs) for text in inputs]


def test_outputs_of_any_number_in_any_order(lm, stops, monkeypatch):
    inputs = texts(23)
    expected = one_by_one(lm, inputs, 24, stops)
    assert len({len(text) for text in expected}) > 5
    asked, encode = [], call.encode
    monkeypatch.setattr(
        call, "encode", lambda *a, **sizes: asked.append(len(a[1])) or encode(*a, **sizes)
    )
    assert lm.generate(inputs, 24, stops, batch_size=8) == expected
    assert asked[0] == 8
    assert sum(asked) == 23
    assert set(asked[1:]) <= {1, 2, 3, 4, 5, 6, 7, 8}
    assert 1 in asked  # a single row made room for the next
    assert lm.generate(inputs[::-1], 24, stops, batch_size=5) == expected[::-1]


@pytest.mark.long
def test_samples_stop_strings_and_prompts(lm, stops):
    inputs = texts(11)
    expected = one_by_one(lm, inputs, 24, stops)
    twice = lm.generate(inputs, 24, stops, batch_size=4, num_samples=2)
    assert twice == [[text] * 2 for text in expected]
    stop = expected[0][3:5]
    cut = one_by_one(lm, inputs, 24, stops, stop_strings=[stop])
    assert lm.generate(inputs, 24, stops, batch_size=4, stop_strings=[stop]) == cut != expected
    pairs = {"encoder_text": inputs, "decoder_text": ["the mean of " * (i % 4) for i in range(11)]}
    rows = [dict(zip(pairs, row, strict=True)) for row in zip(*pairs.values(), strict=True)]
    expected = one_by_one(lm, rows, 24, stops)
    assert lm.generate(pairs, 24, stops, batch_size=4) == expected


@pytest.mark.long
def test_inputs_of_several_sizes(lm, stops):
    """Long inputs are read with long ones, short ones with short ones."""
    inputs = [*texts(5), *(" ".join([text] * 12) for text in texts(6)), *texts(4)]
    expected = one_by_one(lm, inputs, 24, stops)
    assert lm.generate(inputs, 24, stops, batch_size=4) == expected
    x = lm.preprocessor.generate_preprocess(inputs, sequence_length=24)
    found = lm.generate(x, stop_token_ids=stops, batch_size=4)
    whole = lm.generate(x, stop_token_ids=stops)
    for name in whole:
        np.testing.assert_array_equal(found[name], whole[name])


def test_draws_do_not_depend_on_slots(stops):
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler=keras_hub.samplers.TopPSampler(p=0.9, temperature=0.9))
    inputs = texts(17)
    expected = lm.generate(inputs, 24, stops, seed=2)
    assert lm.generate(inputs, 24, stops, seed=2, batch_size=4) == expected
    assert lm.generate(inputs, 24, stops, seed=2, batch_size=3, draft=None) == expected
    assert lm.generate(inputs, 24, stops, seed=3, batch_size=4) != expected
