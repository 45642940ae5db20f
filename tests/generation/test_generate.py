"""Text from text: what changes an output, what must not, and what is compiled for it."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.models import EncDecSeq2SeqLM

TEXTS = ["Returns the mean.", "Sort an array along an axis, in place or not, by its keys.", "An"]
PROMPTED = {"encoder_text": TEXTS, "decoder_text": ["", "the array", "of"]}


@pytest.fixture(scope="module")
def lm():
    return with_sampler("greedy")


def with_sampler(sampler):
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler=sampler)
    return lm


@pytest.fixture(scope="module")
def outputs(lm):
    return lm.generate(TEXTS, 24)


def test_outputs_differ_by_input(outputs):
    assert len(outputs) == len(TEXTS) == len(set(outputs))
    assert all(outputs)


@pytest.mark.slow
def test_one_text_is_one_output(lm, outputs):
    assert [lm.generate(text, 24) for text in TEXTS] == outputs


@pytest.mark.slow
def test_lengths_and_batches_compile_once_for_each_size(lm, outputs):
    before = lm.compile_counts
    few = [TEXTS[0][:n] for n in range(8, 17)]
    assert len({lm.generate([few[i], few[-i]], 18 + i)[0] for i in range(len(few))}) > 1
    after = lm.compile_counts
    assert keras.backend.backend() == "torch" or after["advance"] >= 2
    assert all(after[kind] - before[kind] <= 1 for kind in after)  # two rows, for the first time
    lm.generate([few[1], few[3]], 22)
    assert lm.compile_counts == after


@pytest.mark.long
def test_padding_changes_nothing(lm, outputs):
    tight = with_sampler("greedy")
    size = max(len(ids) for ids in tight.preprocessor.tokenizer(TEXTS))
    tight.preprocessor.encoder_sequence_length = size
    assert tight.generate(TEXTS, 24) == outputs


def test_a_shorter_output_is_the_beginning(lm, outputs):
    for short, long in zip(lm.generate(TEXTS, 9), outputs, strict=True):
        assert long.startswith(short)
        assert len(short) < len(long)


@pytest.mark.long
def test_prompts(lm):
    whole = lm.generate(PROMPTED, 24)
    written = lm.generate(PROMPTED, 24, strip_prompt=True)
    assert [p + w for p, w in zip(PROMPTED["decoder_text"], written, strict=True)] == whole
    assert all(written)
    alone = [{key: texts[i] for key, texts in PROMPTED.items()} for i in range(3)]
    assert [lm.generate(prompt, 24) for prompt in alone] == whole
    assert PROMPTED["encoder_text"] is TEXTS  # left as it was


@pytest.mark.slow
def test_encode_once_decode_many(lm, outputs):
    encoding = lm.encode(TEXTS)
    assert lm.decode(encoding, 24) == outputs
    assert lm.decode(encoding, 24, num_samples=3) == [[text] * 3 for text in outputs]
    assert lm.decode(lm.encode(TEXTS[0]), 24, num_samples=2) == [outputs[0]] * 2


@pytest.mark.slow
def test_samples_and_seeds():
    lm = with_sampler(keras_hub.samplers.RandomSampler(seed=5))
    encoding = lm.encode(TEXTS)
    first = lm.decode(encoding, 24, num_samples=2, seed=1)
    assert lm.decode(encoding, 24, num_samples=2, seed=1) == first
    assert lm.decode(encoding, 24, num_samples=2, seed=2) != first
    assert all(a != b for a, b in first)
    own = lm.decode(encoding, 24)
    assert lm.decode(encoding, 24) != own  # its own state goes on
    again = with_sampler(keras_hub.samplers.RandomSampler(seed=5))
    assert again.generate(TEXTS, 24) == own  # and calls with a seed left it alone


@pytest.mark.slow
def test_temperature_of_a_call(outputs):
    lm = with_sampler(keras_hub.samplers.RandomSampler(temperature=1.5, seed=0))
    hot = lm.generate(TEXTS, 24, seed=0, draft=None)
    assert hot == lm.generate(TEXTS, 24, seed=0, temperature=1.5, draft=None)
    before = lm.compile_counts
    assert lm.generate(TEXTS, 24, temperature=1e-4, draft=None) == outputs != hot
    assert lm.compile_counts == before


@pytest.mark.slow
def test_stop_strings(lm, outputs):
    written = lm.generate(PROMPTED, 24, strip_prompt=True)
    stop = written[1][4:7]
    found = lm.generate(PROMPTED, 24, strip_prompt=True, stop_strings=[stop, "never so"])
    assert found == [text.split(stop)[0] for text in written] != written
    assert lm.generate(TEXTS, 24, stop_strings=["never so"]) == outputs


@pytest.mark.slow
def test_stream(lm, outputs):
    pieces = list(lm.generate_stream(TEXTS[1], 24))
    assert "".join(pieces) == outputs[1]
    assert all(pieces)
    assert len(pieces) > 5
    columns = zip(*lm.generate_stream(PROMPTED, 24), strict=True)
    whole = lm.generate(PROMPTED, 24, strip_prompt=True)
    assert ["".join(column) for column in columns] == whole
    stop = outputs[1][5:8]
    stopped = lm.generate_stream(TEXTS[1], 24, stop_strings=[stop])
    assert "".join(stopped) == outputs[1].split(stop)[0]


@pytest.mark.slow
def test_a_reader_may_leave(lm, outputs):
    for _ in lm.generate_stream(TEXTS[1], 24):
        break
    stream = lm.generate_stream(TEXTS[1], 24)
    next(stream)
    stream.close()
    assert lm.generate(TEXTS, 24) == outputs


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["top_k", "top_p", "beam", "contrastive"])
def test_samplers_of_keras_hub(sampler):
    lm = with_sampler(sampler)
    found = lm.generate(TEXTS[:2], 12)
    assert all(found)
    assert len(set(found)) == 2


@pytest.mark.long
def test_contrastive_search_without_contrast_is_greedy(lm):
    found = with_sampler(keras_hub.samplers.ContrastiveSampler(k=2, alpha=0.0))
    assert found.generate(TEXTS[:2], 12) == lm.generate(TEXTS[:2], 12)


def test_datasets(lm, outputs):
    import tensorflow as tf

    assert lm.generate(tf.data.Dataset.from_tensor_slices(TEXTS).batch(2), 24) == outputs


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("", {}, "encoder_text"),
        ([], {}, "at least one string"),
        ({"decoder_text": "a"}, {}, "encoder_text"),
        ("a", {"max_length": 0}, "max_length of at least 1"),
        ("a", {"stop_strings": "ab"}, "a list of texts"),
        ("a", {"stop_strings": [""]}, "not empty"),
        ("a", {"num_samples": 0}, "num_samples"),
        ("a", {"temperature": 0.0}, "temperature .*above 0"),
    ],
)
def test_bad_input(lm, outputs, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        lm.generate(inputs, **{"max_length": 24, **options})
    assert lm.generate(TEXTS[0], 24) == outputs[0]


@pytest.mark.slow
def test_without_a_preprocessor(lm):
    bare = EncDecSeq2SeqLM(lm.backbone)
    bare.compile(sampler="greedy")
    inputs = lm.preprocessor.generate_preprocess(TEXTS, sequence_length=24)
    with pytest.raises(ValueError, match="preprocessor"):
        bare.generate("a")
    with pytest.raises(ValueError, match="preprocessor"):
        bare.generate(inputs)
    with pytest.raises(ValueError, match="preprocessor"):
        bare.generate(inputs, stop_token_ids=None, stop_strings=["a"])
    found = bare.generate(inputs, stop_token_ids=lm.preprocessor.stop_token_ids)
    assert lm.preprocessor.generate_postprocess(found) == lm.generate(TEXTS, 24)
    new = bare.generate(inputs, stop_token_ids=None, strip_prompt=True)
    np.testing.assert_array_equal(new["decoder_padding_mask"].sum(axis=1), 23)


def test_a_draft_model_is_needed():
    with pytest.raises(ValueError, match="draft"):
        with_sampler("speculative").generate("a", 12)


@pytest.mark.slow
def test_weights_that_come_later_are_seen(outputs):
    lm = with_sampler("greedy")
    assert lm.generate(TEXTS, 24) == outputs
    lm.backbone.enable_lora(2)
    assert lm.generate(TEXTS, 24) == outputs
    for variable in lm.backbone.trainable_variables:
        variable.assign(variable + 0.3)
    assert lm.generate(TEXTS, 24) != outputs
