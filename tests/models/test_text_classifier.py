"""The classifier beside transformers and NumPy, on all that users hand over."""

from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
import pandas
import pytest
import tensorflow as tf
from datasets import Dataset

import keras_encdec
from keras_encdec.models import EncDecTextClassifier, EncoderBackbone
from keras_encdec.testing.models import assert_close, draw, make_inputs, tiny_backbone, to_numpy

PARITY = Path(__file__).parents[1] / "parity"
TEXTS = ["Return the sum.", "Raise an error.", "Open a file and read it.", "Add.", "Write it."]
NAMES = ["no", "yes"]
LABELS = [1, 0, 1, 1, 0]


@pytest.fixture(scope="module")
def classifier():
    return EncDecTextClassifier.from_preset(
        "gemma2_tiny_tiny", label_names=NAMES, sequence_length=32
    )


def tiny(**options):
    """A head on a tiny encoder, without text."""
    model = EncDecTextClassifier(EncoderBackbone.from_preset(tiny_backbone()), **options)
    for weight in model.head.weights:
        weight.assign(draw(weight.name, tuple(weight.shape)))
    return model


# Numbers.


@pytest.fixture
def reference():
    return np.load(PARITY / "hf_classifier.npz")


def as_transformers(reference, **options):
    backbone = EncoderBackbone.from_preset(str(PARITY / "hf_t5gemma"))
    model = EncDecTextClassifier(backbone, num_classes=3, **options)
    model.head.kernel.assign(reference["kernel"])
    model.head.bias.assign(reference["bias"])
    x = {name: reference[name].astype("int32") for name in ("token_ids", "padding_mask")}
    return model, x


def test_logits_are_those_of_transformers(reference):
    model, x = as_transformers(reference)
    assert_close(model.predict(x), reference["logits"], 1e-4)
    assert_close(model.evaluate(x, reference["labels"], verbose=0)[0], reference["loss"], 1e-4)


@pytest.mark.slow
def test_a_step_is_that_of_transformers(reference):
    model, x = as_transformers(reference)
    query = model.backbone.encoder.blocks[0].attention.query.kernel
    before = to_numpy(query), to_numpy(model.head.kernel)
    model.compile(keras.optimizers.SGD(0.1))
    loss = model.fit(x, reference["labels"], verbose=0).history["loss"][0]
    assert_close(np.array(loss), reference["loss"], 1e-4)
    gradients = [
        (b - to_numpy(w)) / 0.1 for b, w in zip(before, (query, model.head.kernel), strict=True)
    ]
    assert_close(gradients[0].reshape(48, -1), reference["query_gradient"].T, 1e-4)
    assert_close(gradients[1], reference["kernel_gradient"], 1e-4)
    assert_close(model.predict(x), reference["logits_after"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
def test_padding_and_batch_change_nothing(pooling):
    model, inputs = tiny(num_classes=3, pooling=pooling), make_inputs()
    x = {name: inputs[f"encoder_{name}"] for name in ("token_ids", "padding_mask")}
    expected = model.predict(x)
    wider = {name: np.pad(array, ((0, 0), (3, 5))) for name, array in x.items()}
    assert_close(model.predict(wider), expected)
    assert_close(model.predict(x, batch_size=1), expected)


def cross_entropy(logits, labels, weights=None):
    """In float64, by hand."""
    logits = np.asarray(logits, "float64")
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_losses_are_means_over_texts(classifier, batch_size):
    logits, weights = classifier.predict(TEXTS), np.array([1.0, 0.0, 3.0, 0.5, 1.0])
    found = classifier.evaluate(TEXTS, LABELS, batch_size=batch_size, verbose=0, return_dict=True)
    assert_close(np.array(found["loss"]), cross_entropy(logits, LABELS))
    assert_close(np.array(found["accuracy"]), np.mean(logits.argmax(-1) == LABELS))
    found = classifier.evaluate(
        TEXTS, LABELS, batch_size=batch_size, verbose=0, sample_weight=weights, return_dict=True
    )
    assert_close(np.array(found["loss"]), cross_entropy(logits, LABELS, weights))
    right = np.average(logits.argmax(-1) == LABELS, weights=weights)
    assert_close(np.array(found["accuracy"]), right)


@pytest.mark.long
def test_the_first_loss_of_fit_is_that_of_evaluate(classifier):
    logits = classifier.predict(TEXTS)
    weight = {0: 2.0}
    still = EncDecTextClassifier(
        classifier.backbone, label_names=NAMES, preprocessor=classifier.preprocessor
    )
    still.head.set_weights(classifier.head.get_weights())
    still.compile(keras.optimizers.SGD(0.0))
    for size in (2, 5):
        history = still.fit(TEXTS, LABELS, batch_size=size, class_weight=weight, verbose=0)
        weights = [2.0 if label == 0 else 1.0 for label in LABELS]
        expected = cross_entropy(logits, LABELS, weights)
        assert_close(np.array(history.history["loss"][0]), expected)


# Data.

NAMED = [NAMES[i] for i in LABELS]
FORMS = {
    "lists": (TEXTS, LABELS),
    "names": (TEXTS, NAMED),
    "arrays": (np.array(TEXTS), np.array(LABELS)),
    "objects": (np.array(TEXTS, object), np.array(NAMED, object)),
    "column of labels": (TEXTS, np.array(LABELS)[:, None]),
    "bools": (TEXTS, [bool(i) for i in LABELS]),
    "tensors": (tf.constant(TEXTS), tf.constant(LABELS)),
    "dict": ({"text": TEXTS, "label": LABELS},),
    "frame": (pandas.DataFrame({"text": TEXTS, "label": NAMED, "other": 0}),),
    "series": (pandas.Series(TEXTS), pandas.Series(LABELS)),
    "dataset": (Dataset.from_dict({"text": TEXTS, "label": LABELS}),),
    "rows": ([{"text": t, "label": i} for t, i in zip(TEXTS, LABELS, strict=True)],),
    "tuples": (list(zip(TEXTS, LABELS, strict=True)),),
    "tf.data": (tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)),),
    "batches of tf.data": (tf.data.Dataset.from_tensor_slices((TEXTS, NAMED)).batch(2),),
    "generator": ((pair for pair in [(TEXTS[:2], LABELS[:2]), (TEXTS[2:], LABELS[2:])]),),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_data(classifier, form):
    found = classifier.evaluate(*FORMS[form], verbose=0, return_dict=True)
    expected = cross_entropy(classifier.predict(TEXTS), LABELS)
    assert_close(np.array(found["loss"]), expected)


@pytest.mark.slow
def test_two_texts_are_read_one_behind_the_other(classifier):
    first, second = TEXTS[:2], TEXTS[2:4]
    together = [f"{a}\n{b}" for a, b in zip(first, second, strict=True)]
    expected = classifier.predict((first, second))
    for x in (
        {"text": first, "text_pair": second},
        list(zip(first, second, strict=True)),
        pandas.DataFrame({"text": first, "text_pair": second}),
    ):
        np.testing.assert_array_equal(classifier.predict(x), expected)
    ids = classifier.preprocessor({"text": first, "text_pair": second})["token_ids"]
    tokenizer = classifier.preprocessor.tokenizer
    assert tokenizer.detokenize(ids.tolist()) == together
    assert classifier.evaluate((first, second), [0, 1], verbose=0)[0] == pytest.approx(
        cross_entropy(expected, [0, 1]), abs=1e-5
    )


@pytest.mark.long
def test_choices_are_read_behind_their_text():
    model = EncDecTextClassifier.from_preset("gemma2_mini_docs", num_choices=2, sequence_length=32)
    choices = [["One.", "Two."], ["Three.", "Four."]]
    x = {"text": TEXTS[:2], "choices": choices}
    logits = model.predict(x)
    assert logits.shape == (2, 2)
    for row, text in enumerate(TEXTS[:2]):
        for column, choice in enumerate(choices[row]):
            other = {"text": text, "choices": [choice, "Nothing."]}
            assert_close(model.predict(other)[0, 0], logits[row, column])
    found = model.evaluate(x, [1, 0], verbose=0, return_dict=True)
    assert_close(np.array(found["loss"]), cross_entropy(logits, [1, 0]))
    model.fit({**x, "label": [1, 0]}, verbose=0, epochs=2)
    assert model.classify(x) in [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_classes_have_names(classifier):
    expected = [NAMES[i] for i in classifier.predict(TEXTS).argmax(-1)]
    assert classifier.classify(TEXTS) == expected
    assert classifier.classify("Add.") == [classifier.classify(TEXTS)[3]]
    assert classifier.classify(TEXTS, batch_size=2) == expected


# Training and files.


@pytest.mark.slow
def test_it_learns_and_comes_back(tmp_path):
    model = EncDecTextClassifier.from_preset(
        "gemma2_mini_docs", label_names=["returns", "raises"], sequence_length=16, dropout=0.1
    )
    things = ["value", "list", "file", "name", "sum", "key", "shape", "type", "row", "count"]
    texts = [f"{verb} the {thing}." for thing in things for verb in ("Return", "Raise for")]
    labels = ["returns", "raises"] * len(things)
    model.compile(keras.optimizers.Adam(1e-3))
    history = model.fit(texts[:16], labels[:16], epochs=6, batch_size=8, verbose=0)
    assert history.history["loss"][-1] < 0.3 * history.history["loss"][0]
    assert model.classify(texts[16:]) == labels[16:]
    model.save_to_preset(tmp_path / "it")
    with h5py.File(tmp_path / "it/task.weights.h5") as file:
        assert sum(d.size for d in datasets_of(file)) == model.head.count_params()
    expected = model.predict(texts)
    for load in (EncDecTextClassifier, keras_hub.models.TextClassifier):
        again = load.from_preset(str(tmp_path / "it"))
        assert isinstance(again, EncDecTextClassifier)
        np.testing.assert_array_equal(again.predict(texts), expected)
        assert again.classify(texts) == model.classify(texts)
    assert (again.pooling, again.dropout_rate) == ("last", 0.1)
    run = again.provenance["history"][-1]
    assert (run["what"], run["steps"], run["data"]["kind"]) == ("fit", 12, "labelled texts")
    assert "classifies" in (tmp_path / "it/README.md").read_text()
    encoder = EncoderBackbone.from_preset(tmp_path / "it")
    assert encoder.count_params() == model.backbone.count_params()


def test_a_head_is_whole_or_named(tmp_path):
    model = EncDecTextClassifier.from_preset("gemma2_tiny_tiny", num_classes=2)
    model.save_to_preset(tmp_path / "it")
    with h5py.File(tmp_path / "it/task.weights.h5", "r+") as file:
        bias = min(datasets_of(file), key=lambda one: one.size)
        bias[0] = 7.0
    with pytest.raises(ValueError, match=r"Expected the files.*another task.weights.h5"):
        EncDecTextClassifier.from_preset(tmp_path / "it")
    model.head.bias.assign([np.nan, 0.0])
    with pytest.raises(ValueError, match=r"Expected finite numbers.*NaN or Inf in head/bias, 1 of"):
        model.save_to_preset(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def datasets_of(group):
    for item in group.values():
        if isinstance(item, h5py.Dataset):
            yield item
        else:
            yield from datasets_of(item)


@pytest.mark.long
def test_a_keras_file(tmp_path):
    model = tiny(num_classes=3, activation="softmax")
    x = {"token_ids": np.full((2, 5), 7, "int32"), "padding_mask": np.ones((2, 5), "int32")}
    model.fit(x, [0, 2], verbose=0)
    model.save(tmp_path / "it.keras")
    again = keras.saving.load_model(tmp_path / "it.keras")
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    losses = [m.fit(x, [0, 2], epochs=2, verbose=0).history["loss"] for m in (model, again)]
    np.testing.assert_array_equal(*losses)
    assert_close(model.predict(x).sum(-1), np.ones(2))


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    x = {"token_ids": np.arange(3, 63).reshape(12, 5), "padding_mask": np.ones((12, 5), "int32")}
    y = np.arange(12) % 3

    class Stop(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1
            if self.batches == 5:  # in the middle of the second epoch, behind a checkpoint
                raise KeyboardInterrupt

    def fit(folder, *more):
        keras.utils.set_random_seed(1)
        model = tiny(num_classes=3, dropout=0.2)
        checkpoint = keras_encdec.training.Checkpoint(folder, every=2)
        model.fit(x, y, batch_size=4, epochs=3, callbacks=[checkpoint, *more], verbose=0)
        return [to_numpy(v) for v in model.variables]

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", Stop())
    for again, whole in zip(fit(tmp_path / "stopped"), fit(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(again, whole)


@pytest.mark.slow
def test_under_lora_the_head_trains_whole():
    model = tiny(num_classes=3)
    model.backbone.enable_lora(2)
    names = {v.path.rpartition("/")[2] for v in model.trainable_variables}
    assert names == {"lora_kernel_a", "lora_kernel_b", "kernel", "bias"}
    x = {"token_ids": np.full((2, 5), 7, "int32"), "padding_mask": np.ones((2, 5), "int32")}
    frozen = to_numpy(model.backbone.encoder.embedding.embeddings)
    model.fit(x, [0, 2], verbose=0)
    np.testing.assert_array_equal(to_numpy(model.backbone.encoder.embedding.embeddings), frozen)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_bfloat16"])
def test_in_low_precision(policy):
    model = EncDecTextClassifier.from_preset("gemma2_mini_docs", num_classes=2, dtype=policy)
    model.compile(keras.optimizers.SGD(1e-3))
    history = model.fit(TEXTS, LABELS, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert model.predict(TEXTS).shape == (5, 2)


@pytest.mark.slow
def test_a_loss_of_ones_own():
    model = tiny(num_classes=1)
    x = {"token_ids": np.full((3, 5), 7, "int32"), "padding_mask": np.ones((3, 5), "int32")}
    x["token_ids"][1], y = 9, np.array([[0.5], [2.0], [-1.0]], "float32")
    model.compile("sgd", "mean_squared_error", metrics=["mae"])
    found = model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    assert_close(np.array(found["loss"]), np.mean((model.predict(x) - y) ** 2))
    assert_close(np.array(found["mae"]), np.mean(np.abs(model.predict(x) - y)))


# What it refuses.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((TEXTS, [0, 1, 2, 0, 0]), r"labels from 0 to 1. Received: 2 in row 2"),
        ((TEXTS, ["no", "yes", "yse", "no", "no"]), "'yse' in row 2.*'yes'"),
        ((TEXTS, LABELS[:4]), "a label for each of 5 texts. Received: 4"),
        ((TEXTS,), "Expected labels"),
        ((["a", " "], [0, 1]), "text in row 1"),
        (([], []), "at least one text"),
        ((TEXTS, [0.5] * 5), "an integer or a name"),
        ((TEXTS, LABELS, [1.0]), "sample_weight"),
        (({"sentence": TEXTS, "label": LABELS},), r"columns \['sentence', 'label'\]"),
        (({"text": TEXTS, "label": LABELS}, LABELS), "Received: both"),
        (((TEXTS, TEXTS[:2]), LABELS), "as many texts"),
    ],
)
def test_bad_data_is_named_and_changes_nothing(classifier, data, message):
    before = to_numpy(classifier.head.kernel)
    x, y, weight = (*data, None, None)[:3]
    with pytest.raises(ValueError, match=message):
        classifier.fit(x, y, sample_weight=weight, verbose=0)
    np.testing.assert_array_equal(to_numpy(classifier.head.kernel), before)


def test_names_of_classes_that_were_not_given():
    model = EncDecTextClassifier.from_preset("gemma2_mini_docs", num_classes=2)
    with pytest.raises(ValueError, match="label_names"):
        model.fit(TEXTS, NAMED, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "one of num_classes"),
        ({"num_classes": 2, "label_names": NAMES}, "one of num_classes"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_choices": 1}, "num_choices"),
        ({"label_names": ["yes", "yes"]}, "different label_names"),
        ({"label_names": "yes"}, "different label_names"),
        ({"num_classes": 2, "dropout": 1.0}, "dropout"),
        ({"num_classes": 2, "pooling": "max"}, "pooling"),
    ],
)
def test_options_that_cannot_be(options, message):
    backbone = EncoderBackbone.from_preset(tiny_backbone())
    with pytest.raises(ValueError, match=message):
        EncDecTextClassifier(backbone, **options)


def test_a_text_that_does_not_fit_is_told(classifier):
    long = " ".join(TEXTS * 4)
    with pytest.warns(UserWarning, match="1 of 5 texts were cut to sequence_length = 32"):
        classifier.predict([*TEXTS[:4], long])


def test_ids_outside_of_the_vocabulary():
    x = {"token_ids": np.full((2, 3), 96, "int32"), "padding_mask": np.ones((2, 3), "int32")}
    with pytest.raises(ValueError, match="token_ids from 0 to 95"):
        tiny(num_classes=2).predict(x)


def test_presets_are_listed_under_their_names():
    assert keras_encdec.models.EncDecTextClassifier is EncDecTextClassifier
