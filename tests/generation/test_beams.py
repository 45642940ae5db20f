"""Beams: the best of what there is, for a whole batch, with the scores that `score` gives."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.generation import BeamSearch
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_pair

TEXTS = ["Returns the mean.", "Sort an array along an axis, in place or not, by its keys.", "An"]


@pytest.fixture(scope="module")
def lm():
    return keras_encdec.from_preset("gemma2_tiny_tiny")


@pytest.fixture(scope="module")
def found(lm):
    lm.compile(sampler=BeamSearch(4))
    return lm.decode(lm.encode(TEXTS), 16, num_samples=4, return_scores=True)


@pytest.mark.long
def test_one_beam_is_greedy(lm):
    prompts = {"encoder_text": TEXTS, "decoder_text": ["", "the array", "of"]}
    lm.compile(sampler="greedy")
    expected = lm.generate(TEXTS, 16), lm.generate(prompts, 16)
    for penalty in (0.0, 1.0):
        lm.compile(sampler=BeamSearch(1, penalty))
        assert (lm.generate(TEXTS, 16), lm.generate(prompts, 16)) == expected


@pytest.mark.slow
def test_several_and_different_and_ordered(found):
    for texts, scores in zip(*found, strict=True):
        assert len(set(texts)) == 4
        assert all(score < 0 for score in scores)


@pytest.mark.slow
def test_batch_mates_change_nothing(lm, found):
    lm.compile(sampler=BeamSearch(4))
    for text, texts, scores in zip(TEXTS, *found, strict=True):
        alone, own = lm.decode(lm.encode(text), 16, num_samples=4, return_scores=True)
        assert alone == texts
        np.testing.assert_allclose(own, scores, rtol=1e-4)
    assert lm.generate(TEXTS, 16) == [texts[0] for texts in found[0]]


STOPS = tuple(range(3, 96, 6))  # so many that texts end


def tiny(words=96, **kwargs):
    """A model of random weights and inputs for it."""
    pair = tiny_pair(decoder=tiny_decoder(vocabulary_size=words))
    lm = tiny_lm(pair=pair)
    bare = EncDecSeq2SeqLM(lm.backbone)
    bare.compile(sampler=BeamSearch(**kwargs))
    inputs = make_inputs(source=(5, 9), target=(1, 3))
    return bare, inputs


@pytest.mark.slow
def test_scores_are_those_of_score():
    lm, inputs = tiny(num_beams=3)
    found, scores = lm.decode(
        lm.encode(inputs), 12, stop_token_ids=STOPS, num_samples=3, return_scores=True
    )
    repeated = {key: np.repeat(x, 3, axis=0) for key, x in inputs.items()}
    given = repeated["decoder_padding_mask"].sum(axis=1)
    per_token = lm.score({**repeated, **found}).per_token
    for score, row, prompt in zip(scores, per_token, given, strict=True):
        np.testing.assert_allclose(score, row[prompt - 1 :].sum(), rtol=1e-5)
    lengths = found["decoder_padding_mask"].sum(axis=1)
    assert len(set(lengths.tolist())) > 1  # some ended


def every_text(lm, inputs):
    """All texts of at most 2 tokens after `<bos>` for the first input, and their scores."""
    words = range(lm.backbone.spec.decoder.vocabulary_size)
    texts = [(w,) for w in STOPS if w in words] + [
        (first, second) for first in words if first not in STOPS for second in words
    ]
    ids, mask = np.zeros((2, len(texts), 3), "int32")
    ids[:, 0] = inputs["decoder_token_ids"][0, 0]
    for i, text in enumerate(texts):
        ids[i, 1 : 1 + len(text)], mask[i, : 1 + len(text)] = text, 1
    one = {k: np.repeat(x[:1], len(texts), axis=0) for k, x in inputs.items()}
    x = {**one, "decoder_token_ids": ids, "decoder_padding_mask": mask}
    return texts, lm.score(x, batch_size=512).total


@pytest.mark.slow
def test_enough_beams_find_the_best():
    lm, inputs = tiny(words=28, num_beams=24)
    inputs = {k: x[:, :3] % 28 if "decoder" in k else x for k, x in inputs.items()}
    inputs["decoder_padding_mask"] = np.array([[1, 0, 0]] * 2)
    texts, total = every_text(lm, inputs)
    lengths = np.array([len(text) for text in texts])
    best = set()
    for penalty in (0.0, 12.0):
        lm.compile(sampler=BeamSearch(24, penalty))
        found, scores = lm.decode(lm.encode(inputs), stop_token_ids=STOPS, return_scores=True)
        i = int(np.argmax(total / ((5 + lengths) / 6) ** penalty))
        ids = found["decoder_token_ids"][0][found["decoder_padding_mask"][0] == 1][1:]
        assert tuple(ids) == texts[i]
        np.testing.assert_allclose(scores[0], total[i], rtol=1e-5)
        best.add(texts[i])
    assert len(best) == 2


@pytest.mark.slow
def test_a_long_text_is_preferred_by_penalty():
    lengths = []
    for penalty in (0.0, 5.0):
        lm, inputs = tiny(num_beams=4, length_penalty=penalty)
        found = lm.generate(inputs, 12, stop_token_ids=STOPS)
        lengths.append(found["decoder_padding_mask"].sum())
    assert lengths[0] < lengths[1]


@pytest.mark.slow
def test_the_prompt_is_kept():
    lm, inputs = tiny(num_beams=3)
    ids = to_numpy(lm.generate(inputs, stop_token_ids=STOPS)["decoder_token_ids"])
    given = inputs["decoder_padding_mask"] == 1
    np.testing.assert_array_equal(ids[given], inputs["decoder_token_ids"][given])


@pytest.mark.slow
def test_lengths_compile_once(lm):
    lm.compile(sampler=BeamSearch(2))
    for length in (10, 12, 16):
        lm.generate(TEXTS[:2], length)
    assert lm.compile_counts["beams"] == (0 if keras.backend.backend() == "torch" else 1)


@pytest.mark.slow
def test_stop_strings_cut(lm, found):
    lm.compile(sampler=BeamSearch(4))
    stop = found[0][1][0][3:6]
    assert lm.generate(TEXTS[1], 16, stop_strings=[stop]) == found[0][1][0][:3]


def test_configuration():
    sampler = BeamSearch(3, 0.8)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(sampler))
    assert (again.num_beams, again.length_penalty) == (3, 0.8)


def test_bad_input(lm):
    with pytest.raises(ValueError, match="num_beams of at least 1"):
        BeamSearch(0)
    encoding = lm.encode(TEXTS)
    for sampler in (BeamSearch(10**6), keras_hub.samplers.BeamSampler(10**6)):
        lm.compile(sampler=sampler)
        with pytest.raises(ValueError, match="at most the vocabulary"):
            lm.generate(TEXTS)
    lm.compile(sampler=BeamSearch(2))
    with pytest.raises(ValueError, match="num_samples of at most"):
        lm.decode(encoding, num_samples=3)
    with pytest.raises(ValueError, match="temperature=None"):
        lm.decode(encoding, temperature=0.5)
    lm.compile(sampler="beam")
    with pytest.raises(ValueError, match="num_samples=None"):
        lm.decode(encoding, num_samples=2)
    with pytest.raises(ValueError, match="return_scores"):
        lm.decode(encoding, return_scores=True)
