"""Options of generation as lm-eval's tasks write them."""

import keras_hub
import pytest

from keras_encdec.evaluation.harness_requests import Request, Writing, key_of
from keras_encdec.generation import BeamSearch

GREEDY = {"until": ["\n"], "do_sample": False, "temperature": 0.0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Writing()),
        (GREEDY, Writing(("\n",))),
        ({"until": "\n\n", "max_gen_toks": 8}, Writing(("\n\n",), 8)),
        ({"until": None, "max_new_tokens": 9}, Writing((), 9)),
        ({"max_tokens": 3, "max_gen_toks": 8}, Writing((), 8)),
        ({"temperature": 0.7}, Writing(temperature=0.7)),
        ({"do_sample": True}, Writing(temperature=1.0)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.95}, Writing()),
        ({"do_sample": True, "temperature": 0.0}, Writing()),
        ({"do_sample": True, "top_k": 50, "top_p": 1.0}, Writing(temperature=1.0, top_k=50)),
        ({"do_sample": True, "top_k": 0, "top_p": 0.9}, Writing(temperature=1.0, top_p=0.9)),
        ({"num_beams": 4}, Writing(num_beams=4)),
    ],
    ids=str,
)
def test_what_is_meant(options, expected):
    assert Writing.asked(options, 256) == expected


@pytest.mark.parametrize(
    ("options", "error", "names"),
    [
        ({"repetition_penalty": 1.2}, TypeError, "repetition_penalty"),
        ({"do_smaple": True}, TypeError, "Did you mean 'do_sample'"),
        ({"until": 3}, ValueError, "until"),
        ({"until": ["a", 3]}, ValueError, "until"),
        ({"max_gen_toks": 0}, ValueError, "max_gen_toks"),
        ({"temperature": -1}, ValueError, "temperature"),
        ({"do_sample": "yes"}, ValueError, "do_sample"),
        ({"do_sample": True, "top_p": 1.5}, ValueError, "top_p"),
        ({"do_sample": True, "num_beams": 4}, ValueError, "num_beams"),
    ],
    ids=str,
)
def test_what_is_refused(options, error, names):
    with pytest.raises(error, match=names):
        Writing.asked(options, 256)


def test_samplers():
    samplers = keras_hub.samplers
    assert type(Writing().sampler()) is samplers.GreedySampler
    assert type(Writing(temperature=0.5).sampler()) is samplers.RandomSampler
    assert Writing(temperature=0.5).sampler().temperature == 0.5
    assert Writing(temperature=1.0, top_k=7).sampler().k == 7
    both = Writing(temperature=1.0, top_k=7, top_p=0.9).sampler()
    assert (type(both), both.p, both.k) == (samplers.TopPSampler, 0.9, 7)
    beams = Writing(num_beams=4).sampler()
    assert (type(beams), beams.num_beams) == (BeamSearch, 4)


def test_keys_tell_questions_apart():
    questions = [
        ("model", Request((1, 2), (3,), (4,))),
        ("model", Request((1,), (2, 3), (4,))),
        ("model", Request((1, 2), (3,))),
        ("other", Request((1, 2), (3,))),
        ("model", Request((1, 2), (3,)), Writing()),
        ("model", Request((1, 2), (3,)), Writing(most=3)),
        ("model", Request((1, 2), (3,)), Writing(temperature=1.0), 0, 0),
        ("model", Request((1, 2), (3,)), Writing(temperature=1.0), 0, 1),
    ]
    assert len({key_of(*question) for question in questions}) == len(questions)
