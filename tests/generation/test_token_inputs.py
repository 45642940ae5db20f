"""Model inputs in place of text: the same outputs in tokens, in batches and in files."""

import json
from itertools import chain

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import keras_encdec
from keras_encdec.generation import BeamSearch, call

TEXTS = ["Returns the mean.", "Sort an array along an axis, in place or not, by its keys.", "An"]
PROMPTED = {"encoder_text": TEXTS, "decoder_text": ["", "the array", "of"]}
IDS, MASK = "decoder_token_ids", "decoder_padding_mask"
LENGTH = 16


@pytest.fixture(scope="module")
def inputs(lm):
    x = lm.preprocessor.generate_preprocess(PROMPTED, sequence_length=LENGTH)
    return {name: np.asarray(keras.ops.convert_to_numpy(array)) for name, array in x.items()}


@pytest.fixture(scope="module")
def outputs(lm, inputs):
    return lm.generate(inputs)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])


def said(lm, ids):
    """What tokens say, without those that begin or end a text."""
    hidden = (lm.preprocessor.start_token_id, *lm.preprocessor.stop_token_ids)
    return lm.preprocessor.tokenizer.detokenize([int(i) for i in ids if i not in hidden])


def tokens_until(lm, stop, ids, mask, prompt):
    """How many tokens of a row count: the fewest that hold `stop` behind the prompt, or all."""
    kept, begun = ids[mask], said(lm, ids[:prompt])
    for count in range(prompt, len(kept) + 1):
        if stop in said(lm, kept[:count])[len(begun) :]:
            return count
    return len(kept)


@pytest.mark.slow
def test_the_outputs_of_texts(lm, outputs):
    assert outputs[IDS].shape == outputs[MASK].shape == (3, LENGTH)
    assert (outputs[IDS].dtype, outputs[MASK].dtype) == (np.int32, bool)
    found = lm.preprocessor.generate_postprocess(outputs)
    assert found == lm.generate(PROMPTED, LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize("of", [0, 1, 2])
def test_the_mask_ends_with_the_token_that_completes_a_stop_string(lm, inputs, outputs, of):
    prompts = inputs[MASK].sum(axis=1)
    texts = lm.generate(PROMPTED, LENGTH, strip_prompt=True)
    ended = 0
    for stop in (texts[of][:2], texts[of][3:6], texts[of][-4:], "never so"):
        found = lm.generate(inputs, stop_strings=[stop])
        cut = lm.generate(PROMPTED, LENGTH, strip_prompt=True, stop_strings=[stop])
        for row, prompt in enumerate(prompts):
            whole = outputs[IDS][row], outputs[MASK][row]
            count = tokens_until(lm, stop, *whole, prompt)
            expected = np.arange(LENGTH) < count
            np.testing.assert_array_equal(found[MASK][row], expected)
            np.testing.assert_array_equal(found[IDS][row][expected], whole[0][expected])
            new = said(lm, whole[0][:count])[len(said(lm, whole[0][:prompt])) :]
            assert new.split(stop)[0] == cut[row]
            ended += stop in new
        without = lm.generate(inputs, stop_strings=[stop], strip_prompt=True)
        np.testing.assert_array_equal(without[MASK], found[MASK] & (inputs[MASK] == 0))
    assert ended >= 3


@pytest.mark.long
def test_batches_and_datasets_change_nothing(lm, inputs, outputs):
    for batch_size in (1, 2):
        same(lm.generate(inputs, batch_size=batch_size), outputs)
        stripped = lm.generate(inputs, batch_size=batch_size, strip_prompt=True)
        np.testing.assert_array_equal(stripped[MASK], outputs[MASK] & (inputs[MASK] == 0))
    dataset = tf.data.Dataset.from_tensor_slices(inputs)
    same(lm.generate(dataset.batch(2)), outputs)
    same(lm.generate(dataset.batch(1), batch_size=2), outputs)
    same(lm.generate(dataset.batch(3), max_length=LENGTH), outputs)


@pytest.mark.slow
def test_batch_size_is_that_of_the_encoder(lm, inputs, monkeypatch):
    encode, sizes = call.encode, []

    def counted(engine, prompts, **more):
        sizes.append(len(prompts))
        return encode(engine, prompts, **more)

    monkeypatch.setattr(call, "encode", counted)
    lm.generate(inputs, batch_size=2)
    assert sizes == [2, 1]


@pytest.mark.slow
def test_a_file_of_tokens(lm, inputs, tmp_path):
    path = tmp_path / "tokens.jsonl"
    stop = {"stop_strings": ["a"], "num_samples": 2}
    expected = lm.generate(inputs, **stop)
    same(lm.generate(inputs, path=path, batch_size=2, **stop), expected)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rows = {k: a.astype(int).reshape(3, 2, LENGTH).tolist() for k, a in expected.items()}
    assert lines == [
        {"index": i, "output": {IDS: rows[IDS][i], MASK: rows[MASK][i]}} for i in range(3)
    ]


@pytest.mark.slow
def test_a_file_of_tokens_resumed(lm, inputs, outputs, tmp_path, monkeypatch):
    path, encode, sizes = tmp_path / "tokens.jsonl", call.encode, []

    def killed(engine, prompts, **more):
        if sizes:
            raise KeyboardInterrupt
        sizes.append(len(prompts))
        return encode(engine, prompts, **more)

    monkeypatch.setattr(call, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        lm.generate(inputs, path=path, batch_size=2)
    monkeypatch.undo()
    other = {**inputs, "encoder_token_ids": inputs["encoder_token_ids"] + 1}
    with pytest.raises(ValueError, match="of this call"):
        lm.generate(other, path=path)
    same(lm.generate(inputs, path=path), outputs)


@pytest.mark.slow
def test_samples_stand_one_after_another(lm, inputs, outputs):
    found = lm.generate(inputs, num_samples=2)
    same(found, {name: np.repeat(array, 2, axis=0) for name, array in outputs.items()})
    same(lm.generate(inputs, num_samples=1), outputs)
    drawn = keras_encdec.from_preset("gemma2_tiny_tiny")
    drawn.compile(sampler=keras_hub.samplers.RandomSampler(seed=0))
    x = lm.preprocessor.generate_preprocess(TEXTS, sequence_length=LENGTH)
    tokens = drawn.generate(x, num_samples=2, seed=3)
    texts = drawn.generate(TEXTS, LENGTH, num_samples=2, seed=3)
    assert lm.preprocessor.generate_postprocess(tokens) == list(chain(*texts))


@pytest.mark.long
def test_shapes_of_scores():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler=BeamSearch(3))
    x = lm.preprocessor.generate_preprocess(TEXTS, sequence_length=LENGTH)
    texts, of_texts = lm.generate(TEXTS, LENGTH, num_samples=2, return_scores=True)
    for options in ({}, {"batch_size": 2}):
        found, scores = lm.generate(x, num_samples=2, return_scores=True, **options)
        assert found[IDS].shape == found[MASK].shape == (6, LENGTH)
        assert (scores.shape, scores.dtype) == ((6,), np.float32)
        np.testing.assert_allclose(scores.reshape(3, 2), of_texts, rtol=1e-4)
        assert lm.preprocessor.generate_postprocess(found) == list(chain(*texts))
    found, scores = lm.generate(x, return_scores=True)
    assert (found[IDS].shape, scores.shape) == ((3, LENGTH), (3,))
    np.testing.assert_allclose(scores, np.array(of_texts)[:, 0], rtol=1e-4)


@pytest.mark.slow
def test_beams_that_have_no_room(lm):
    """Nothing was generated, and nothing has likelihood 1."""
    beams = keras_encdec.from_preset("gemma2_tiny_tiny")
    beams.compile(sampler=BeamSearch(3))
    prompt = {"encoder_text": "An", "decoder_text": "the array"}
    ids = lm.preprocessor.tokenizer(prompt["decoder_text"])
    texts, scores = beams.generate(prompt, 1 + len(ids), num_samples=2, return_scores=True)
    assert texts == ["the array"] * 2
    assert scores[0] == 0
    assert beams.generate(prompt, 1 + len(ids)) == lm.generate(prompt, 1 + len(ids)) == "the array"


def test_ids_of_padding_are_of_no_account(lm, inputs, outputs):
    changed = dict(inputs)
    for side in ("encoder", "decoder"):
        name, mask = f"{side}_token_ids", inputs[f"{side}_padding_mask"]
        changed[name] = np.where(mask == 0, -100, inputs[name]).astype("int64")
        changed[f"{side}_padding_mask"] = mask * 0.5
    found = lm.generate(changed)
    np.testing.assert_array_equal(found[MASK], outputs[MASK])
    for row, mask in enumerate(outputs[MASK]):
        np.testing.assert_array_equal(found[IDS][row][mask], outputs[IDS][row][mask])


def shifted(x):
    return {**x, MASK: np.roll(x[MASK], 1, axis=1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shifted, "tokens first.*row 0"),
        (lambda x: {**x, MASK: x[MASK] * [[1], [0], [1]]}, "outputs begin with.*row 1"),
        (lambda x: {**x, "encoder_padding_mask": x["encoder_padding_mask"] * 0}, "to read.*row 0"),
        (lambda x: {**x, IDS: x[IDS] + 4096}, "0 to 4095.*4098 at place 0 of row 0"),
        (lambda x: {**x, "encoder_token_ids": -x["encoder_token_ids"] - 1}, "the vocabulary"),
        (lambda x: {**x, IDS: x[IDS] + 0.5}, "integers as decoder_token_ids.*float"),
    ],
)
def test_what_cannot_be_read(lm, inputs, outputs, tmp_path, change, message):
    for method in (lm.generate, lm.generate_stream, lm.encode):
        with pytest.raises(ValueError, match=f"(?s)Expected .*{message}"):
            method(change(inputs))
    with pytest.raises(ValueError, match="Expected"):
        lm.generate(change(inputs), path=tmp_path / "tokens.jsonl")
    assert not list(tmp_path.iterdir())
    same(lm.generate(inputs), outputs)


def test_what_cannot_be_scored(lm, inputs):
    for name in (IDS, "encoder_token_ids"):
        with pytest.raises(ValueError, match=f"{name} from 0 to 4095"):
            lm.score({**inputs, name: inputs[name] + 4096})
