"""Everything that `fit` takes: the same texts, however they come."""

import dataclasses
import json
import re

import grain
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from keras_encdec.data import as_source, batches, read, tokenize
from keras_encdec.data.batching import Batching, batch_source
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import UL2, PrefixLM, Stages
from keras_encdec.sharing import catalog
from keras_encdec.testing.specs import tiny_pair

TEXTS = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 3) for i in range(12)]
PAIRS = {"encoder_text": TEXTS, "decoder_text": [f"Mean of {i}." for i in range(12)]}
ROWS = [{key: PAIRS[key][i] for key in PAIRS} for i in range(12)]


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


def make_lm(tokenizer, **options):
    keras.utils.set_random_seed(0)
    pair = tiny_pair()
    sides = [dataclasses.replace(s, vocabulary_size=4096) for s in (pair.encoder, pair.decoder)]
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 16, **options)
    return EncDecSeq2SeqLM(EncDecBackbone(*sides), preprocessor)


@pytest.fixture(scope="module")
def one_lm(tokenizer):
    """Compiled once, for tests that look at the way there only."""
    return make_lm(tokenizer)


class Seen(keras.callbacks.Callback):
    """Counts steps and epochs."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_epoch_begin(self, epoch, logs=None):
        self.steps.append(0)

    def on_train_batch_end(self, batch, logs=None):
        self.steps[-1] += 1


def fit(lm, x, **kwargs):
    seen = Seen()
    history = lm.fit(x, verbose=0, callbacks=[seen], **{"batch_size": 8, **kwargs})
    assert np.all(np.isfinite(history.history["loss"]))
    return seen.steps


def given(lm, x, epoch=0, **options):
    """The batches of an epoch that `fit` hands to Keras."""
    batching = Batching(**{"batch_size": 8, **options})
    return list(batch_source(as_source(x), lm.preprocessor.converter, batching).read(epoch))


def same(one, other):
    assert len(one) == len(other) > 1
    for a, b in zip(one, other, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("options", [{}, {"objective": "ul2"}, {"packing": True}])
def test_texts_of_every_kind_make_the_same_batches(tokenizer, tmp_path, options):
    lm = make_lm(tokenizer, **options)
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    expected = given(lm, TEXTS)
    same(given(lm, np.array(TEXTS)), expected)
    same(given(lm, read(tmp_path / "a.jsonl")), expected)
    same(given(lm, datasets.Dataset.from_dict({"text": TEXTS})), expected)
    same(given(lm, tokenize(TEXTS, tokenizer)), expected)
    same(given(lm, grain.MapDataset.source(TEXTS)), expected)
    same(given(lm, tf.data.Dataset.from_tensor_slices(TEXTS)), expected)
    # A stream that is not read to its end comes in its own order.
    count = len(given(lm, TEXTS, shuffle=False))
    streamed = given(lm, (text for text in TEXTS), steps=count)
    same(streamed, given(lm, TEXTS, shuffle=False))


@pytest.mark.slow
def test_fit_on_a_list(tokenizer):
    lm = make_lm(tokenizer, objective="ul2")
    steps = fit(lm, TEXTS, epochs=3)
    assert len(steps) == 3
    assert len(set(steps)) == 1
    assert np.isfinite(lm.evaluate(TEXTS, batch_size=8, verbose=0)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: grain.MapDataset.source(TEXTS),
        lambda: grain.MapDataset.source(TEXTS).to_iter_dataset(),
        lambda: grain.MapDataset.source(ROWS),
        lambda: tf.data.Dataset.from_tensor_slices(TEXTS),
        lambda: tf.data.Dataset.from_tensor_slices(PAIRS).batch(8),
        lambda: PAIRS,
    ],
    ids=["grain", "grain stream", "grain pairs", "tf.data", "tf.data pairs", "pairs"],
)
@pytest.mark.parametrize("packing", [False, True])
def test_fit_on_datasets(one_lm, make, packing):
    data = make()
    batched = hasattr(data, "element_spec") and isinstance(data.element_spec, dict)
    one_lm.preprocessor.packing = packing
    assert fit(one_lm, data, batch_size=None if batched else 8)[0] > 0
    one_lm.preprocessor.packing = False


@pytest.mark.slow
def test_fit_on_hugging_face_pairs(one_lm):
    datasets = pytest.importorskip("datasets")
    assert fit(one_lm, datasets.Dataset.from_dict(PAIRS)) == [2]


@pytest.mark.slow
def test_fit_on_batches_by_number_and_at_a_later_step(tokenizer):
    """Three steps in one go, or one and then the other two: the same weights."""
    whole, parts = make_lm(tokenizer, objective="ul2"), make_lm(tokenizer, objective="ul2")
    data = batches(tokenize(TEXTS, tokenizer), whole.preprocessor, 8)
    assert fit(whole, data[:3]) == [3]
    assert fit(parts, data[:1]) == [1]
    assert fit(parts, data[1:3]) == [2]
    for one, other in zip(whole.weights, parts.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))
    assert fit(whole, data, epochs=2) == [len(data)] * 2


@pytest.mark.slow
def test_a_later_first_epoch_goes_on_with_the_data(tokenizer):
    lm = make_lm(tokenizer, objective="ul2")
    passes = [[batch[1].tobytes() for batch in given(lm, TEXTS, epoch)] for epoch in (0, 1, 0)]
    assert passes[0] == passes[2] != passes[1]
    assert len(fit(lm, TEXTS, epochs=3, initial_epoch=2)) == 1


@pytest.mark.slow
def test_two_stages_in_one_fit(tokenizer):
    lm = make_lm(tokenizer, objective=Stages([UL2(), PrefixLM()], [0.5, 0.5]))
    assert sum(fit(lm, TEXTS)) > 2


def test_a_small_set_makes_one_batch_of_its_size(tokenizer):
    lm = make_lm(tokenizer)
    (batch,) = given(lm, TEXTS[:2], batch_size=None)
    assert len(batch[1]) == len(lm.preprocessor(TEXTS[:2])[1])


def test_validation_on_texts(one_lm):
    history = one_lm.fit(TEXTS, batch_size=8, verbose=0, validation_data=TEXTS[:4])
    assert np.isfinite(history.history["val_loss"]).all()
    split = one_lm.fit(TEXTS, batch_size=8, verbose=0, validation_split=0.25)
    expected = one_lm.evaluate(TEXTS[9:], batch_size=8, verbose=0)[0]
    np.testing.assert_allclose(split.history["val_loss"], [expected], rtol=1e-5)


def test_saved_with_its_objective(tokenizer, tmp_path):
    import keras_encdec

    lm = make_lm(tokenizer, objective=UL2("ul2r", mode_tokens=True), packing=True)
    lm.save_to_preset(tmp_path / "model")
    again = keras_encdec.from_preset(str(tmp_path / "model"))
    same(given(again, TEXTS), given(lm, TEXTS))


def test_bad_input(tokenizer):
    lm = make_lm(tokenizer)
    for x, message in (
        (["a", 5], "Expected text (str) in text 1. Received: 5"),
        ([""], "Expected text for at least one example"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            lm.fit(x)
    lm.preprocessor = None
    with pytest.raises(ValueError, match="no preprocessor"):
        lm.fit(TEXTS)
