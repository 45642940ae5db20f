"""Two ways to the same numbers: cached or full, more or less padding, other rows, generation."""

import keras_hub
import numpy as np
import pytest

from keras_encdec.testing.models import (
    VOCABULARY,
    assert_close,
    decoded,
    make_inputs,
    pad,
    run,
    tiny_backbone,
    tiny_lm,
    to_numpy,
)
from keras_encdec.testing.specs import tiny_pair

PADDED = {
    "right": {"right": 4},
    "right, of other tokens": {"right": 4, "token": 7},
    "left": {"left": 4},
    "left, of other tokens": {"left": 4, "token": 7},
}
PROMPT_LENGTHS = (5, 3, 1)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def generator(sampler):
    """A task whose embeddings are small, so that it does not repeat the last token for ever."""
    model = tiny_lm()
    embeddings = model.backbone.decoder.embedding.embeddings
    embeddings.assign(embeddings * 0.1)
    model.compile(sampler=sampler)
    return model


@pytest.fixture(scope="module")
def lm():
    return generator("greedy")


@pytest.fixture(scope="module")
def inputs():
    return make_inputs()


@pytest.fixture(scope="module")
def outputs(backbone, inputs):
    return run(backbone, inputs)


def real(outputs, inputs, side):
    """A side's states at its tokens, row after row, wherever the padding is."""
    return outputs[f"{side}_sequence_output"][inputs[f"{side}_padding_mask"] == 1]


def decode_in_steps(backbone, inputs, first, each=1):
    """The decoder's states: of the first tokens together, then of some at a time."""
    decoder, tokens = backbone.decoder, inputs["decoder_token_ids"]
    mask = inputs["encoder_padding_mask"]
    context = decoder.context(backbone.encoder(inputs["encoder_token_ids"], mask), mask)
    cache, states = decoder.empty_cache(*tokens.shape), []
    if first:
        junk = np.full((len(tokens), 3), 7)  # stands behind the prompt, and is not kept
        prompt = np.concatenate([tokens[:, :first], junk], axis=1)
        output, cache = decoder.prefill(prompt, first, context, tokens.shape[1])
        states.append(to_numpy(output)[:, :first])
    for index in range(first, tokens.shape[1], each):
        output, cache = decoded(decoder, tokens[:, index : index + each], index, cache, context)
        states.append(to_numpy(output))
    return np.concatenate(states, axis=1)


WAYS = [(0, 1), (2, 1), (13, 1), (0, 3)]


@pytest.mark.parametrize(
    ("first", "each"),
    [(13, 2), *(pytest.param(*ways, marks=pytest.mark.slow) for ways in WAYS)],
)
def test_cached_steps_equal_the_full_forward(backbone, inputs, outputs, first, each):
    window = backbone.spec.decoder.windows[0]
    assert each < window < 13
    assert inputs["decoder_token_ids"].shape[1] > 2 * window
    states = decode_in_steps(backbone, inputs, first, each)
    valid = inputs["decoder_padding_mask"] == 1
    assert_close(states[valid], real(outputs, inputs, "decoder"))


@pytest.mark.slow
@pytest.mark.parametrize("padding", PADDED)
def test_padding_does_not_matter(backbone, inputs, outputs, padding):
    padded = pad(inputs, "encoder", **PADDED[padding])
    padded = pad(padded, "decoder", right=4, token=PADDED[padding].get("token", 0))
    found = run(backbone, padded)
    for side in ("encoder", "decoder"):
        assert_close(real(found, padded, side), real(outputs, inputs, side))


def test_batch_mates_do_not_matter(backbone, inputs, outputs):
    other = make_inputs(source=(20, 5, 20), target=(16, 16, 8), seed=1)
    for key in inputs:
        other[key][0] = inputs[key][0]
    found = run(backbone, other)
    for key, states in found.items():
        assert_close(states[0], outputs[key][0])
        assert np.abs(states[1] - outputs[key][1]).max() > 0.1


def test_decoder_does_not_see_the_future(backbone, inputs, outputs):
    changed = dict(inputs, decoder_token_ids=inputs["decoder_token_ids"].copy())
    changed["decoder_token_ids"][0, 10:] = 3 + (changed["decoder_token_ids"][0, 10:] + 1) % 90
    states, before = run(backbone, changed), outputs["decoder_sequence_output"][0]
    after = states["decoder_sequence_output"][0]
    assert_close(after[:10], before[:10])
    assert np.abs(after[10:] - before[10:]).max(axis=-1).min() > 0.1


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_only_a_bidirectional_encoder_sees_the_future(backbone, inputs, attention):
    model = backbone
    if attention == "causal":
        model = tiny_backbone(tiny_pair(encoder_attention="causal"))
    tokens, mask = inputs["encoder_token_ids"], inputs["encoder_padding_mask"]
    changed = tokens.copy()
    changed[0, 19] = 3 + changed[0, 19] % 90
    difference = to_numpy(model.encoder(changed, mask)) - to_numpy(model.encoder(tokens, mask))
    moved = np.abs(difference[0]).max(axis=-1)
    assert moved[19] > 0.1
    assert np.all((moved[:19] > 1e-3) == (attention == "bidirectional"))
    assert np.abs(difference[1:]).max() < 1e-5


@pytest.mark.slow
def test_encoder_row_of_padding_alone(backbone):
    inputs = make_inputs(source=(20, 13, 0))
    padded = pad(pad(inputs, "encoder", right=4, token=7), "decoder", right=4)
    few, many = run(backbone, inputs), run(backbone, padded)
    assert all(np.isfinite(states).all() for states in (*few.values(), *many.values()))
    assert_close(real(many, padded, "decoder"), real(few, inputs, "decoder"))


def prompts(lengths=PROMPT_LENGTHS):
    """Inputs whose decoder rows are prompts in a room of 16 tokens."""
    inputs = make_inputs(source=(20, 13, 7), target=(16, 16, 16), seed=2)
    mask = (np.arange(16) < np.array(lengths)[:, None]).astype("int32")
    tokens = inputs["decoder_token_ids"] * mask
    return {**inputs, "decoder_padding_mask": mask, "decoder_token_ids": tokens}


def greedy_by_full_forwards(lm, inputs):
    tokens, given = inputs["decoder_token_ids"].copy(), inputs["decoder_padding_mask"] == 1
    for i in range(1, tokens.shape[1]):
        seen = np.tile((np.arange(tokens.shape[1]) < i).astype("int32"), (len(tokens), 1))
        step = dict(inputs, decoder_token_ids=tokens, decoder_padding_mask=seen)
        best = run(lm, step)[:, i - 1].argmax(-1)
        tokens[:, i] = np.where(given[:, i], tokens[:, i], best)
    return tokens


@pytest.fixture(scope="module")
def greedy(lm):
    return lm.generate(prompts(), stop_token_ids=None)


@pytest.mark.slow
def test_generate_equals_argmax_over_full_forwards(lm, greedy):
    expected = greedy_by_full_forwards(lm, prompts())
    np.testing.assert_array_equal(greedy["decoder_token_ids"], expected)
    assert greedy["decoder_padding_mask"].all()
    assert len(np.unique(expected)) > 10


@pytest.mark.slow
def test_rows_generate_alone_as_together(lm, greedy):
    inputs = prompts()
    for i in range(3):
        alone = lm.generate({k: v[i : i + 1] for k, v in inputs.items()}, stop_token_ids=None)
        expected = greedy["decoder_token_ids"][i]
        np.testing.assert_array_equal(alone["decoder_token_ids"][0], expected)


def test_stop_token_ends_its_row_and_only_after_the_prompt(lm, greedy):
    ids = greedy["decoder_token_ids"]
    stop, in_prompt = int(ids[0, 9]), int(ids[0, 2])
    found = lm.generate(prompts(), stop_token_ids=(stop, in_prompt))
    for i, start in enumerate(PROMPT_LENGTHS):
        hits = np.flatnonzero(np.isin(ids[i, start:], (stop, in_prompt)))
        end = start + hits[0] + 1 if len(hits) else 16
        np.testing.assert_array_equal(found["decoder_padding_mask"][i], np.arange(16) < end)
        np.testing.assert_array_equal(found["decoder_token_ids"][i, :end], ids[i, :end])


@pytest.mark.slow
def test_uncompiled_is_the_same(greedy):
    lm = generator("greedy")
    lm.compile(sampler="greedy", run_eagerly=True)
    found = lm.generate(prompts(), stop_token_ids=None)
    np.testing.assert_array_equal(found["decoder_token_ids"], greedy["decoder_token_ids"])
    assert to_numpy(found["decoder_token_ids"]).max() < VOCABULARY


@pytest.mark.slow
def test_one_beam_is_greedy(greedy):
    lm = generator(keras_hub.samplers.BeamSampler(num_beams=1))
    found = lm.generate(prompts(), stop_token_ids=None)
    np.testing.assert_array_equal(found["decoder_token_ids"], greedy["decoder_token_ids"])
