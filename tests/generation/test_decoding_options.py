"""What a call may ask: numbers of any library, and one error that names what cannot be meant."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec import check
from keras_encdec.generation import BeamSearch
from keras_encdec.generation.options import DecodingOptions

TEXT, LENGTH = "Sort an array along an axis, in place or not, by its keys.", 12
INF, NAN = float("inf"), float("nan")
# Each argument: what it means, and what it may be given as.
SAME = {
    "max_length": (7, [np.int64(7), np.uint8(7), np.array(7)]),
    "num_samples": (2, [np.int32(2), np.array(2)]),
    "seed": (3, [np.int64(3), np.array(3, "uint32")]),
    "temperature": (0.5, [np.float32(0.5), np.float64(0.5), np.array(0.5)]),
    "stop_token_ids": ((5, 9), [[5, 9], np.array([5, 9]), range(5, 10, 4), (np.int64(5), 9)]),
    "stop_strings": (("the", "a"), [["the", "a"], iter(["the", "a"]), np.array(["the", "a"])]),
}
# Each argument: what it cannot be.
WRONG = {
    "max_length": [0, -1, 7.0, True, "7", [7], NAN, 2**31, 10**30],
    "num_samples": [0, -1, 2.0, False, "2", [2]],
    "seed": [-1, 2**31, 1.0, True, "1", [1, 2]],
    "temperature": [0, -0.5, NAN, INF, -INF, True, "0.5", [0.5], np.array([0.5])],
    "stop_token_ids": ["eos", [1.0], [-1], ["a"], [[1]], True],
    "stop_strings": ["ab", [""], [3], [None]],
}
CALLS = ("generate", "generate_stream", "chat", "decode")


@pytest.fixture(scope="module")
def lm():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler=keras_hub.samplers.RandomSampler(temperature=1.5, seed=1))
    return lm


@pytest.mark.parametrize("name", SAME)
def test_the_same_number_of_another_library(name):
    meant, given = SAME[name]
    for value in [*given, meant]:
        assert getattr(DecodingOptions(**{name: value}), name) == meant
    if np.ndim(meant) == 0:
        value = keras.ops.convert_to_tensor(meant)
        assert getattr(DecodingOptions(**{name: value}), name) == meant
        assert type(getattr(DecodingOptions(**{name: value}), name)) is type(meant)


def test_one_or_no_stop():
    assert DecodingOptions(stop_token_ids=5).stop_token_ids == (5,)
    for none in (None, (), []):
        assert DecodingOptions(stop_token_ids=none).stop_token_ids == ()
    assert DecodingOptions().stop_token_ids == "auto"
    assert DecodingOptions(stop_strings=None).stop_strings == ()


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"(?s)Expected .*{name}.*Received: "):
            DecodingOptions(**{name: value})


@pytest.mark.long
def test_every_call_gives_the_same_of_the_same_number(lm):
    def outputs(**options):
        encoding = lm.encode(TEXT)
        asked = {"seed": 5, "max_length": LENGTH, **options}
        found = [lm.decode(encoding, **asked), lm.generate(TEXT, **asked), lm.chat(TEXT, **asked)]
        if "num_samples" not in asked:
            found.append("".join(lm.generate_stream(TEXT, **asked)))
        return found

    for name, (meant, given) in SAME.items():
        expected = outputs(**{name: meant})
        assert expected[0] == expected[1]
        assert outputs(**{name: given[0]}) == expected


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_every_call_refuses_at_once(lm, call):
    first = lm.encode(TEXT) if call == "decode" else TEXT
    names = set(WRONG) - ({"num_samples"} if call == "generate_stream" else set())
    for name in names:
        with pytest.raises(ValueError, match=name):
            getattr(lm, call)(first, **{name: WRONG[name][0]})
    with pytest.raises(TypeError, match="temprature"):
        getattr(lm, call)(first, temprature=1.0)
    if call != "chat":
        longer = {"encoder_text": TEXT, "decoder_text": "the array of an axis"}
        longer = lm.encode(longer) if call == "decode" else longer
        with pytest.raises(ValueError, match=r"at least the \d+ tokens"):
            getattr(lm, call)(longer, max_length=3)


@pytest.mark.slow
def test_batch_sizes(lm):
    pairs = {"encoder_text": [TEXT] * 3, "decoder_text": ["a", "the", "of"]}
    prompts = pairs["encoder_text"]
    expected = lm.generate(prompts, LENGTH, batch_size=2, seed=1), lm.score(pairs, 2).total
    found = (
        lm.generate(prompts, LENGTH, batch_size=np.int64(2), seed=1),
        lm.score(pairs, np.int8(2)),
    )
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1].total, expected[1])
    for wrong in (0, -1, 2.0, True, None, "2", [2]):
        for call in (lm.generate, lm.score):
            with pytest.raises(ValueError, match="batch_size of at least 1"):
                call(pairs, batch_size=wrong)


def test_no_file_is_begun_for_what_cannot_be(tmp_path):
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    path = tmp_path / "outputs.jsonl"
    cases = [
        ("greedy", {"return_scores": True}, ValueError),
        ("greedy", {"temprature": 1.0}, TypeError),
        ("greedy", {"max_length": 1.5}, ValueError),
        (BeamSearch(2), {"num_samples": 3}, ValueError),
        (BeamSearch(2), {"temperature": 0.5}, ValueError),
        (BeamSearch(10**6), {}, ValueError),
        ("beam", {"num_samples": 2}, ValueError),
    ]
    for sampler, options, error in cases:
        lm.compile(sampler=sampler)
        with pytest.raises(error):
            lm.generate([TEXT], path=path, **options)
        assert not list(tmp_path.iterdir())


def test_decode_is_of_an_encoding(lm):
    with pytest.raises(ValueError, match=r"Expected an Encoding.*Received: str"):
        lm.decode(TEXT)


def test_numbers():
    assert check.whole("n", np.int16(4)) == 4
    assert check.whole("n", 0, least=0) == 0
    assert check.real("x", np.float16(0.25)) == 0.25
    with pytest.raises(ValueError, match="Expected n of at least 1"):
        check.whole("n", 0)
    with pytest.raises(ValueError, match=r"Expected x as a finite number\. Received: nan"):
        check.real("x", NAN)


def test_numbers_of_beams():
    sampler = BeamSearch(np.int64(3), np.float32(0.5))
    assert sampler.get_config() == {"num_beams": 3, "length_penalty": 0.5}
    for wrong in (0, 2.0, True, "2"):
        with pytest.raises(ValueError, match="num_beams"):
            BeamSearch(wrong)
    for wrong in (NAN, INF, "0.6", None):
        with pytest.raises(ValueError, match="length_penalty"):
            BeamSearch(2, wrong)
