"""Generation, scoring and training of T5Gemma 2 on images, beside transformers' logits."""

import keras
import numpy as np
import pytest
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


def test_ready_inputs_without_their_images_are_refused(lm, reference):
    inputs, _ = reference
    texts = {name: array for name, array in inputs.items() if name != "images"}
    with pytest.raises(ValueError, match=r"4 tokens 91 in encoder_token_ids.*8 in row 0, with 0"):
        lm.generate(texts, stop_token_ids=None)
    with pytest.raises(ValueError, match=r"4 tokens 91 in encoder_token_ids.*8 in row 0, with 1"):
        lm.predict({**inputs, "images": inputs["images"][:, :1]}, verbose=0)
    with pytest.raises(ValueError, match=r"images as finite floats of shape \(2, 'N', 8, 8, 3\)"):
        lm.encode({**inputs, "images": inputs["images"][:, 0]})
    with pytest.raises(ValueError, match="without images to score"):
        lm.score(inputs)
    spec = lm.backbone.spec
    fields = spec.encoder, spec.decoder, spec.encoder_attention, spec.cross_attention, True
    blind = EncDecSeq2SeqLM(EncDecBackbone(*fields))
    with pytest.raises(ValueError, match="without images, as the model reads none"):
        blind.predict(inputs, verbose=0)
