"""Times per query: who writes what, how often, and what is said of it."""

import types

import keras_hub
import numpy as np
import pytest

from keras_encdec.evaluation import latency, time_queries
from keras_encdec.evaluation.latency import Times, pair_writer, prompts_of, source_writer
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import draw, make_inputs, tiny_lm
from keras_encdec.testing.specs import tiny_decoder, tiny_pair

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


TOKENIZER = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


def test_prompts_are_beginnings_of_the_texts_that_are_long_enough():
    """However short the rows are that the preprocessor makes for training."""
    lm = types.SimpleNamespace(preprocessor=EncDecSeq2SeqLMPreprocessor(TOKENIZER, 16, 16))
    long, short = "Returns the sum of two arrays, element by element. " * 40, "Adds."
    prompts = prompts_of(lm, [short, long, short, long[8:], long], 300, 2)
    assert prompts.shape == (2, 300)
    np.testing.assert_array_equal(prompts[0], np.asarray(TOKENIZER(long))[:300])
    np.testing.assert_array_equal(prompts[1], np.asarray(TOKENIZER(long[8:]))[:300])
    with pytest.raises(ValueError, match=r"at least 300 tokens.* 1 shorter"):
        prompts_of(lm, [short], 300, 2)


@pytest.mark.slow
def test_a_pair_writes_what_is_likeliest():
    """By one forward pass over what it wrote."""
    prompt = make_inputs((11,), (1,))["encoder_token_ids"]
    # With a tied output of random weights each word is the likeliest after itself.
    lm = tiny_lm(pair=tiny_pair(decoder=tiny_decoder(tied_output=False)))
    written = pair_writer(lm, 5, 2, draft=None)(prompt)
    read = np.array([[2, *written[:-1]]])
    inputs = {"encoder_token_ids": prompt, "encoder_padding_mask": np.ones_like(prompt)}
    inputs |= {"decoder_token_ids": read, "decoder_padding_mask": np.ones_like(read)}
    np.testing.assert_array_equal(written, np.argmax(lm(inputs)[0], axis=-1))
    assert len(set(written.tolist())) > 1


@pytest.mark.slow
def test_a_source_goes_on_from_the_prompt():
    heads = {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    sizes = {"vocabulary_size": 96, "hidden_dim": 16, "intermediate_dim": 48, "num_layers": 2}
    source = keras_hub.models.GemmaCausalLM(
        keras_hub.models.GemmaBackbone(**sizes, **heads), preprocessor=None
    )
    for weight in source.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)))
    prompt = make_inputs((11,), (1,))["encoder_token_ids"]
    written = source_writer(source, 5)(prompt)
    read = np.array([[*prompt[0], *written[:-1]]])
    logits = source({"token_ids": read, "padding_mask": np.ones_like(read)})
    np.testing.assert_array_equal(written, np.argmax(logits[0, 10:], axis=-1))
    assert len(set(written.tolist())) > 1
