"""Generation, scoring and training of T5Gemma 2 on images, beside transformers' logits."""

import keras
import numpy as np
import pytest
import scipy.special
from reference_folder import with_images, write_folder

import keras_encdec
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.testing.models import to_numpy

IMAGE = 91


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("release") / "t5gemma2", "t5gemma2")
    lm = keras_encdec.from_preset(folder)
    lm.compile(optimizer=keras.optimizers.SGD(0.01), sampler="greedy")
    return lm


@pytest.fixture(scope="module")
def reference():
    inputs, _, logits = with_images()
    return inputs, logits


def test_the_next_token_is_that_of_transformers(lm, reference):
    """Behind a prompt of 5 tokens, one of which ends an image, and behind one of 3."""
    inputs, logits = reference
    counts = np.array([5, 3])
    mask = (np.arange(16) < counts[:, None]).astype("int32")
    prompts = {**inputs, "decoder_padding_mask": mask}
    found = lm.generate(prompts, max_length=7, stop_token_ids=None)["decoder_token_ids"]
    expected = [logits[row, count - 1].argmax() for row, count in enumerate(counts)]
    assert [found[row, count] for row, count in enumerate(counts)] == expected
    sources = [
        lm.encode({**prompts, "images": x}).source for x in (inputs["images"], -inputs["images"])
    ]
    keys, others = (to_numpy(source.context.keys_values[0][0]) for source in sources)
    assert np.abs(keys - others)[:, :, :13].max() > 0.1


@pytest.mark.slow
def test_loss_is_that_of_the_logits_and_what_reads_images_stays(lm, reference):
    inputs, logits = reference
    labels = np.roll(inputs["decoder_token_ids"], -1, axis=1)
    weight = inputs["decoder_padding_mask"].astype("float32")
    logits = logits.astype("float64")
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_labels = np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
    expected = -(of_labels * weight).sum() / weight.sum()
    found = lm.evaluate(inputs, labels, sample_weight=weight, return_dict=True, verbose=0)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    before = {v.path: to_numpy(v.value) for v in lm.backbone.weights}
    losses = lm.fit(inputs, labels, sample_weight=weight, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)
    assert losses[1] < losses[0]
    after = {v.path: to_numpy(v.value) for v in lm.backbone.weights}
    same = {path for path in before if np.array_equal(before[path], after[path])}
    assert same == {path for path in before if path.startswith("vision/")}


def test_scores_are_those_of_the_logits_whatever_else_is_scored(lm, reference):
    """Rows of the same tokens that see other images are read apart, however they are batched."""
    inputs, logits = reference
    ids, mask = inputs["decoder_token_ids"][:, 1:], inputs["decoder_padding_mask"][:, 1:] > 0
    log_probs = scipy.special.log_softmax(logits.astype("float64"), axis=-1)[:, :-1]
    of_labels = np.take_along_axis(log_probs, ids[..., None], -1)[..., 0]
    found = lm.score(inputs)
    for row in range(2):
        np.testing.assert_allclose(found.per_token[row], of_labels[row][mask[row]], atol=1e-4)
    order = [1, 0, 0, 1]
    mixed = {name: array[order] for name, array in inputs.items()}
    mixed["images"] = (
        mixed["images"] * np.array([1, 1, -1, 1], "float32")[:, None, None, None, None]
    )
    for batch_size in (1, 3, 32):
        again = lm.score(mixed, batch_size)
        np.testing.assert_allclose(again.total[[0, 1, 3]], found.total[[1, 0, 1]], rtol=1e-5)
        assert abs(again.total[2] - found.total[0]) > 0.01


def test_ready_inputs_without_their_images_are_refused(lm, reference):
    inputs, _ = reference
    texts = {name: array for name, array in inputs.items() if name != "images"}
    with pytest.raises(ValueError, match=r"4 tokens 91 in encoder_token_ids.*8 in row 0, with 0"):
        lm.generate(texts, stop_token_ids=None)
    with pytest.raises(ValueError, match=r"4 tokens 91 in encoder_token_ids.*8 in row 0, with 1"):
        lm.predict({**inputs, "images": inputs["images"][:, :1]}, verbose=0)
    with pytest.raises(ValueError, match=r"images as finite floats of shape \(2, 'N', 8, 8, 3\)"):
        lm.encode({**inputs, "images": inputs["images"][:, 0]})
    with pytest.raises(ValueError, match=r"4 tokens 91 in encoder_token_ids.*8 in row 0, with 0"):
        lm.score(texts)
    spec = lm.backbone.spec
    fields = spec.encoder, spec.decoder, spec.encoder_attention, spec.cross_attention, True
    blind = EncDecSeq2SeqLM(EncDecBackbone(*fields))
    with pytest.raises(ValueError, match="without images, as the model reads none"):
        blind.predict(inputs, verbose=0)
