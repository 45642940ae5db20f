"""The embedder beside NumPy, in training, in files, and on what it refuses."""

import json

import h5py
import keras
import keras_hub
import numpy as np
import pytest

from keras_encdec.models import EncDecTextEmbedder, EncoderBackbone
from keras_encdec.testing.models import assert_close, draw, make_inputs, tiny_backbone, to_numpy
from keras_encdec.training import BiXSE, Checkpoint, InBatchNCE

TEXTS = ["Return the sum.", "Raise an error.", "Open a file and read it.", "Add.", "Write it."]
DOCUMENTS = ["It adds two numbers.", "Fails.", "Reads files.", "It adds two numbers.", "Puts."]
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}


@pytest.fixture(scope="module")
def embedder():
    return EncDecTextEmbedder.from_preset(
        "gemma2_mini_docs", projection=(48, 24), sequence_length=32
    )


def tiny(**options):
    """On a tiny encoder, without text, all weights drawn."""
    model = EncDecTextEmbedder(EncoderBackbone.from_preset(tiny_backbone()), **options)
    for layer in model.dense:
        layer.kernel.assign(draw(layer.name, tuple(layer.kernel.shape)))
    return model


def rows():
    inputs = make_inputs()
    return {name: inputs[f"encoder_{name}"] for name in ("token_ids", "padding_mask")}


def unit(vectors):
    vectors = np.asarray(vectors, "float64")
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# Vectors.


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_by_hand(normalize):
    model, x = tiny(projection=(12, 5), normalize=normalize), rows()
    states = to_numpy(model.backbone(x)).astype("float64")
    there = x["padding_mask"] != 0
    means = np.stack([s[m].mean(0) for s, m in zip(states, there, strict=True)])
    kernels = [to_numpy(layer.kernel).astype("float64") for layer in model.dense]
    expected = means @ kernels[0] @ kernels[1]
    assert_close(model.predict(x), unit(expected) if normalize else expected)
    assert all(layer.bias is None for layer in model.dense)


def test_the_last_token_without_a_projection():
    model, x = tiny(pooling="last"), rows()
    states, lengths = to_numpy(model.backbone(x)), x["padding_mask"].sum(1)
    assert_close(model.predict(x), unit([s[n - 1] for s, n in zip(states, lengths, strict=True)]))


@pytest.mark.slow
def test_padding_batch_and_order_change_nothing(embedder):
    texts = [*TEXTS, " ".join(TEXTS[:3])]
    expected = embedder.encode_text(texts, "document")
    assert (expected.shape, expected.dtype) == ((6, 24), "float32")
    assert_close(np.linalg.norm(expected, axis=1), np.ones(6), 1e-5)
    for size in (1, 4):
        assert_close(embedder.encode_text(texts, "document", batch_size=size), expected)
    assert_close(embedder.encode_text(texts[::-1], "document")[::-1], expected)
    assert_close(embedder.encode_text(texts[2], "document"), expected[2:3])


def test_prompts_stand_in_front(embedder):
    plain = embedder.predict(TEXTS)
    assert_close(embedder.encode_text(TEXTS), plain)
    for name, prompt in PROMPTS.items():
        expected = embedder.predict([prompt + text for text in TEXTS])
        assert np.abs(expected - plain).max() > 0.01
        assert_close(embedder.encode_text(TEXTS, name), expected)
    assert embedder.preprocessor.prompts == PROMPTS


def test_fewer_dimensions(embedder):
    whole = embedder.encode_text(TEXTS)
    assert_close(embedder.encode_text(TEXTS, dimensions=8), unit(whole[:, :8]))
    np.testing.assert_array_equal(embedder.encode_text(TEXTS, dimensions=24), whole)


def test_similarities(embedder):
    one, other = np.random.default_rng(0).normal(0, 2, (2, 3, 4)).astype("float32")
    assert_close(embedder.similarity(one, other), unit(one) @ unit(other).T)
    assert_close(embedder.similarity(one, np.zeros((1, 4), "float32")), np.zeros((3, 1)))


# Training.


def by_hand(embedder, queries, documents, negatives=()):
    """In-batch NCE of each row, in float64, of vectors that `encode_text` gives."""
    q = unit(embedder.encode_text(queries, "query"))
    d = unit(embedder.encode_text([*documents, *negatives], "document"))
    every, losses = [*documents, *negatives], []
    for i, (text, own) in enumerate(zip(queries, documents, strict=True)):
        known = {doc for asked, doc in zip(queries, documents, strict=True) if asked == text}
        logits = q[i] @ d.T / 0.05
        others = [logits[j] for j, doc in enumerate(every) if doc not in known]
        losses.append(np.log(np.exp([logits[i], *others]).sum()) - logits[i])
        assert own in known
    return np.array(losses)


@pytest.mark.long
def test_losses_are_those_of_the_vectors(embedder):
    embedder.compile(keras.optimizers.SGD(0.0))
    first = by_hand(embedder, TEXTS[:3], DOCUMENTS[:3])
    rest = by_hand(embedder, TEXTS[3:], DOCUMENTS[3:])  # in a batch that is filled up
    weights = np.array([1.0, 0.0, 2.0, 1.0, 0.5])
    for weight in (None, weights):
        found = embedder.evaluate(
            TEXTS, DOCUMENTS, batch_size=3, verbose=0, sample_weight=weight, return_dict=True
        )
        expected = np.average([*first, *rest], weights=weight)
        assert found["loss"] == pytest.approx(expected, abs=1e-4)
    whole = by_hand(embedder, TEXTS, DOCUMENTS)  # rows 0 and 3 have one document
    history = embedder.fit(TEXTS, DOCUMENTS, batch_size=5, verbose=0).history
    assert history["loss"][0] == pytest.approx(whole.mean(), abs=1e-4)
    assert history["tokens"][0] > 0


@pytest.mark.slow
def test_negatives_of_different_numbers(embedder):
    embedder.compile(keras.optimizers.SGD(0.0))
    negatives = [["A list."], [], ["A name.", "A key."]]
    expected = by_hand(embedder, TEXTS[:3], DOCUMENTS[:3], ["A list.", "A name.", "A key."])
    x = {"query": TEXTS[:3], "positive": DOCUMENTS[:3], "negatives": negatives}
    found = embedder.evaluate(x, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected.mean(), abs=1e-4)


@pytest.mark.slow
def test_it_learns_and_comes_back(tmp_path):
    model = EncDecTextEmbedder.from_preset(
        "gemma2_mini_docs", projection=(64, 16), sequence_length=24, prompts={**PROMPTS, "x": "X: "}
    )
    things = ["value", "list", "file", "name", "sum", "key", "shape", "type"]
    queries = [f"Which one has a {thing}?" for thing in things]
    documents = [f"This is for the {thing}." for thing in things]
    model.compile(keras.optimizers.Adam(1e-3), InBatchNCE(dimensions={16: 1.0, 8: 0.5}))
    history = model.fit(queries, documents, epochs=15, verbose=0).history
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert history["accuracy"][-1] > history["accuracy"][0]
    model.save_to_preset(tmp_path / "it")
    with h5py.File(tmp_path / "it/task.weights.h5") as file:
        sizes = []
        file.visititems(lambda _, x: sizes.append(x.size) if isinstance(x, h5py.Dataset) else None)
    assert sum(sizes) == sum(layer.count_params() for layer in model.dense)
    expected = model.encode_text(queries, "x")
    for load in (EncDecTextEmbedder, keras_hub.models.TextEmbedder):
        again = load.from_preset(str(tmp_path / "it"))
        assert isinstance(again, EncDecTextEmbedder)
        np.testing.assert_array_equal(again.encode_text(queries, "x"), expected)
    assert (again.pooling, again.projection, again.normalize) == ("mean", (64, 16), True)
    run = again.provenance["history"][-1]
    assert (run["what"], run["data"]["kind"]) == ("fit", "queries and documents")
    assert json.dumps(run["data"]["prompts"]) == json.dumps({**PROMPTS, "x": "X: "})
    assert "makes vectors of texts" in (tmp_path / "it/README.md").read_text()


@pytest.mark.slow
def test_a_keras_file(tmp_path):
    model, x = tiny(projection=(8,)), rows()
    model.compile(keras.optimizers.Adam(1e-3), BiXSE(0.1, dimensions={8: 1.0}))
    model.save(tmp_path / "it.keras")
    again = keras.saving.load_model(tmp_path / "it.keras")
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert again.compares
    assert again._row_loss == BiXSE(0.1, dimensions={8: 1.0})


@pytest.mark.slow
def test_a_step_in_parts_is_the_same_step():
    """Of 5 queries and 5 documents, 2 at a time, in float32: losses and weights after it."""
    after = []
    for size in (None, 2):
        model = EncDecTextEmbedder.from_preset(
            "gemma2_mini_docs", projection=(8,), sequence_length=16
        )
        model.dense[0].kernel.assign(draw("kernel", tuple(model.dense[0].kernel.shape)))
        model.compile(keras.optimizers.SGD(0.1), texts_at_once=size)
        history = model.fit(TEXTS, DOCUMENTS, verbose=0).history
        query = model.backbone.encoder.blocks[0].attention.query.kernel
        after.append((np.array(history["loss"]), to_numpy(query), to_numpy(model.dense[0].kernel)))
    for whole, parts in zip(*after, strict=True):
        assert_close(parts, whole, 1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_on(tmp_path):
    """Bitwise, with the same call."""

    class Stop(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1
            if self.batches == 3:  # in the middle of the second epoch, behind a checkpoint
                raise KeyboardInterrupt

    def fit(folder, *more):
        keras.utils.set_random_seed(1)
        model = EncDecTextEmbedder.from_preset(
            "gemma2_mini_docs", projection=(8,), sequence_length=16
        )
        checkpoint = Checkpoint(folder, every=2)
        model.fit(
            TEXTS, DOCUMENTS, batch_size=3, epochs=3, callbacks=[checkpoint, *more], verbose=0
        )
        return [to_numpy(v) for v in model.variables]

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", Stop())
    for again, whole in zip(fit(tmp_path / "stopped"), fit(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(again, whole)


@pytest.mark.slow
def test_from_given_vectors():
    model, x = tiny(projection=(5,), normalize=False), rows()
    y = np.random.default_rng(0).normal(0, 1, (3, 5)).astype("float32")
    model.compile(keras.optimizers.SGD(0.0), "mean_squared_error")
    found = model.evaluate(x, y, verbose=0, batch_size=2, return_dict=True)
    assert_close(np.array(found["loss"]), np.mean((model.predict(x) - y) ** 2))


@pytest.mark.slow
def test_under_lora_the_projection_trains_whole():
    model = EncDecTextEmbedder.from_preset(
        "gemma2_mini_docs", projection=(8,), sequence_length=16, dtype="bfloat16"
    )
    model.backbone.enable_lora(2)
    names = {v.path.rpartition("/")[2] for v in model.trainable_variables}
    assert names == {"lora_kernel_a", "lora_kernel_b", "kernel"}
    frozen = to_numpy(model.backbone.token_embedding.embeddings)
    model.compile(keras.optimizers.Adafactor(1e-3), BiXSE())
    history = model.fit(
        {"query": TEXTS[:2], "positive": DOCUMENTS[:2], "score": [0.2, 1.0]}, verbose=0
    )
    assert np.isfinite(history.history["loss"]).all()
    np.testing.assert_array_equal(to_numpy(model.backbone.token_embedding.embeddings), frozen)
    assert model.encode_text("a").dtype == "float32"


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", ""],), "text in row 1"),
        (([],), "at least one text"),
        ((["a"], "qeury"), "'qeury'.*'query'"),
        ((["a"], None, 0), "batch_size"),
        ((["a"], None, 32, 25), "dimensions.*24"),
        (((["a"], ["b"]),), "Expected texts"),
    ],
)
def test_texts_that_cannot_be_encoded(embedder, arguments, message):
    with pytest.raises(ValueError, match=message):
        embedder.encode_text(*arguments)


def test_a_document_that_does_not_fit_is_told(embedder):
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to sequence_length = 32"):
        embedder.encode_text(["Add.", " ".join(TEXTS * 3)], "document")


def test_vectors_that_are_not_finite_are_named():
    model = EncDecTextEmbedder.from_preset("gemma2_mini_docs", projection=(4,))
    model.dense[0].kernel.assign(np.full(model.dense[0].kernel.shape, np.nan))
    with pytest.raises(FloatingPointError, match=r"2 of 2 texts.* text 0: 'Return the sum.'"):
        model.encode_text(TEXTS[:2])


@pytest.mark.parametrize(
    ("loss", "data", "message"),
    [
        (InBatchNCE(), (["a"], ["b"]), "two rows or more"),
        (InBatchNCE(), ({"query": ["a", "b"], "positive": ["c", "d"], "score": [1, 0]},), "BiXSE"),
        (InBatchNCE(), (["a", "b"],), "the documents that answer them"),
        ("mse", (["a", "b"],), "Expected labels"),
    ],
)
def test_bad_data_changes_nothing(embedder, loss, data, message):
    embedder.compile("sgd", loss)
    before = to_numpy(embedder.dense[0].kernel)
    with pytest.raises(ValueError, match=message):
        embedder.fit(*data, verbose=0)
    np.testing.assert_array_equal(to_numpy(embedder.dense[0].kernel), before)


def test_options_of_compile_that_cannot_be(embedder):
    with pytest.raises(ValueError, match=r"dimensions.*24"):
        embedder.compile(loss=InBatchNCE(dimensions={25: 1.0}))
    with pytest.raises(ValueError, match="no metrics with InBatch"):
        embedder.compile(metrics=["mse"])
    with pytest.raises(ValueError, match="texts_at_once"):
        embedder.compile(texts_at_once=0)
    with pytest.raises(ValueError, match="texts_at_once"):
        embedder.compile(loss="mse", texts_at_once=2)
    embedder.compile()
    with pytest.raises(ValueError, match="class_weight"):
        embedder.fit(TEXTS, DOCUMENTS, class_weight={0: 1.0}, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"projection": (8, 0)}, "projection"),
        ({"normalize": 1}, "normalize"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize("prompts", [{"query": "a"}, "query: ", {**PROMPTS, "x": 1}])
def test_prompts_that_cannot_be(prompts):
    with pytest.raises(ValueError, match="prompts"):
        EncDecTextEmbedder.from_preset("gemma2_mini_docs", prompts=prompts)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (TEXTS, TEXTS, r"vectors \(N, E\)"),
        (np.zeros(3, "float32"), np.zeros((1, 3), "float32"), r"shape \(3,\)"),
        (np.zeros((1, 3), "float32"), np.zeros((1, 2), "float32"), "one width"),
    ],
)
def test_what_has_no_similarity(embedder, one, other, message):
    with pytest.raises(ValueError, match=message):
        embedder.similarity(one, other)


def test_without_a_preprocessor():
    model = tiny()
    with pytest.raises(ValueError, match="preprocessor"):
        model.encode_text("a")
    model.compile()
    with pytest.raises(ValueError, match="preprocessor"):
        model.fit(TEXTS, DOCUMENTS, verbose=0)
