"""Times per query: who writes what, how often, and what is said of it."""

import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.evaluation import latency, time_queries
from keras_encdec.evaluation.latency import Times, pair_writer, prompts_of, source_writer
from keras_encdec.sharing import catalog

PROMPTS = np.arange(12, dtype="int32").reshape(3, 4)


class Clock:
    """Goes on by what each model takes."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def perf_counter(self):
        return self.now

    def writer(self, name, seconds):
        def write(prompt):
            self.now += seconds * (1 + prompt[0, 0])
            self.calls.append((name, int(prompt[0, 0])))
            return np.zeros(2, "int32")

        return write


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_each_model_has_each_prompt_once_and_turns_change(clock):
    writers = {"source": clock.writer("source", 1.0), "pair": clock.writer("pair", 0.5)}
    times = time_queries(writers, PROMPTS, 2)
    np.testing.assert_allclose(times.seconds["source"], [1, 5, 9])
    np.testing.assert_allclose(times.seconds["pair"], [0.5, 2.5, 4.5])
    warm, timed = clock.calls[:2], clock.calls[2:]
    assert warm == [("source", 0), ("pair", 0)]
    assert timed[:4] == [("source", 0), ("pair", 0), ("pair", 4), ("source", 4)]


def test_numbers_are_over_prompts():
    seconds = {"source": np.array([1.0, 2, 3, 4, 5]), "pair": np.array([2.0, 2, 9, 4, 10])}
    found = Times(seconds).summary()
    assert found["source"]["ratio"] == 1
    # Ratios 2, 1, 3, 1, 2; quartiles of five numbers are the second and the fourth.
    assert found["pair"]["ratio"] == 2
    assert (found["pair"]["ratio_low"], found["pair"]["ratio_high"]) == (1, 2)
    assert found["pair"]["median"] == 4
    assert found["source"]["low"] == pytest.approx(1.4)  # 0.1 of the way from 1 to 5


def test_a_model_that_writes_another_number_of_tokens_is_named(clock):
    with pytest.raises(ValueError, match=r"Expected 3 tokens .* 2 of pair"):
        time_queries({"pair": clock.writer("pair", 1.0)}, PROMPTS, 3)


@pytest.mark.parametrize("prompts", [np.zeros((0, 4), "int32"), np.zeros(3, "int32"), [["a"]]])
def test_prompts_that_are_none(prompts):
    with pytest.raises(ValueError, match="Expected prompts as token ids"):
        time_queries({}, prompts, 2)


@pytest.fixture(scope="module")
def lm():
    return keras_encdec.from_preset("gemma2_tiny_mini")


def test_prompts_are_beginnings_of_the_texts_that_are_long_enough(lm):
    long, short = "Returns the sum of two arrays, element by element. " * 40, "Adds."
    prompts = prompts_of(lm, [short, long, short, long[8:], long], 300, 2)
    assert prompts.shape == (2, 300)
    tokens = np.asarray(lm.preprocessor.tokenizer(long))
    np.testing.assert_array_equal(prompts[0], tokens[:300])
    with pytest.raises(ValueError, match=r"at least 300 tokens.* 1 shorter"):
        prompts_of(lm, [short], 300, 2)


TEXT = "Returns the sum of two arrays, element by element. " * 4


def test_a_pair_writes_what_is_likeliest(lm):
    """By one forward pass over what it wrote."""
    prompt = prompts_of(lm, [TEXT], 24, 1)
    start = lm.preprocessor.converter.start_token_id
    written = pair_writer(lm, 5, start, draft=None)(prompt)
    read = np.array([[start, *written[:-1]]])
    logits = lm(
        {
            "encoder_token_ids": prompt,
            "encoder_padding_mask": np.ones_like(prompt),
            "decoder_token_ids": read,
            "decoder_padding_mask": np.ones_like(read),
        }
    )
    np.testing.assert_array_equal(written, np.argmax(logits[0], axis=-1))


def test_a_source_goes_on_from_the_prompt(lm):
    source = keras_hub.models.CausalLM.from_preset(
        catalog.embedded("gemma2_mini_docs"), preprocessor=None, dtype="float32"
    )
    prompt = prompts_of(lm, [TEXT], 24, 1)
    written = source_writer(source, 5)(prompt)
    read = np.array([[*prompt[0], *written[:-1]]])
    logits = source({"token_ids": read, "padding_mask": np.ones_like(read)})
    np.testing.assert_array_equal(written, np.argmax(logits[0, 23:], axis=-1))
