"""What people type at `fit`, `evaluate`, `generate` and `score`, beside values made apart."""

import dataclasses
import json
import threading

import grain
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from keras_encdec import data, training
from keras_encdec.data import pipeline
from keras_encdec.data.batching import Batching, batch_source
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import UL2, Example, PrefixLM, Stages
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_pair

TEXTS = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 4) for i in range(13)]
TARGETS = [f"Mean of {i}." + " Of an array, by its axis." * (i % 3) for i in range(13)]
PAIRS = {"encoder_text": TEXTS, "decoder_text": TARGETS}
ON_JAX = pytest.mark.skipif(keras.backend.backend() != "jax", reason="on JAX only")


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


def make_lm(tokenizer, rate=0.0, dtype=None, lengths=(32, 16), **options):
    keras.utils.set_random_seed(0)
    pair = tiny_pair()
    sides = [dataclasses.replace(s, vocabulary_size=4096) for s in (pair.encoder, pair.decoder)]
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, *lengths, **options)
    lm = EncDecSeq2SeqLM(EncDecBackbone(*sides, dtype=dtype), preprocessor)
    lm.compile(keras.optimizers.SGD(rate), sampler="greedy")
    return lm


@pytest.fixture(scope="module")
def still(tokenizer):
    """A model that does not move when it is trained."""
    return make_lm(tokenizer)


def weights(lm):
    return [to_numpy(w) for w in lm.weights]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def by_hand(lm, x, y, weight):
    """Mean negative log-likelihood of labels by weight, from logits, in float64."""
    logits = np.asarray(to_numpy(lm(x)), "float64")
    peak = logits.max(axis=-1, keepdims=True)
    log_probs = logits - peak - np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))
    each = -np.take_along_axis(log_probs, y[..., None], axis=-1)[..., 0]
    return float((each * weight).sum() / weight.sum())


# Numbers that do not depend on how they were asked for.


@pytest.mark.slow
def test_losses_are_means_over_tokens(still):
    """Batches of any size, `fit`, its validation, `evaluate`, `score` and by hand."""
    expected = by_hand(still, *still.preprocessor(PAIRS))
    for size in (1, 2, 3, 5, 32):
        found = still.evaluate(PAIRS, batch_size=size, verbose=0, return_dict=True)
        assert found["loss"] == pytest.approx(expected, rel=1e-6)
        assert np.log(found["perplexity"]) == pytest.approx(expected, rel=1e-6)
    sizes = {"batch_size": 4, "validation_batch_size": 3}
    history = still.fit(PAIRS, verbose=0, validation_data=PAIRS, **sizes).history
    assert history["loss"] == pytest.approx([expected], rel=1e-6)
    assert history["val_loss"] == pytest.approx([expected], rel=1e-6)
    scores = still.score(PAIRS, batch_size=4)
    cut = [row[:16] for row in scores.per_token]  # fit cuts targets to their room
    count = sum(len(row) for row in cut)
    assert -sum(row.sum() for row in cut) / count == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_the_batch_size_of_a_validation(still):
    class Counts(keras.callbacks.Callback):
        batches = 0

        def on_test_batch_end(self, batch, logs=None):
            self.batches += 1

    counts = Counts()
    options = {"validation_data": PAIRS, "validation_batch_size": 5, "callbacks": [counts]}
    still.fit(PAIRS, batch_size=13, verbose=0, **options)
    assert counts.batches == 3


@pytest.mark.slow
@pytest.mark.parametrize("form", ["rows", "targets"])
def test_weights_of_pairs(still, form):
    """A weight for a pair, or one for each of its targets, as by hand."""
    x, y, there = still.preprocessor(PAIRS)
    weight = np.random.default_rng(0).uniform(0, 2, (13, 16)).astype("float32")
    weight = weight[:, 0] if form == "rows" else weight
    counts = there * (weight[:, None] if form == "rows" else weight)
    expected = by_hand(still, x, y, counts)
    for given in (weight, weight.tolist()):
        found = still.evaluate(PAIRS, sample_weight=given, batch_size=4, verbose=0)[0]
        assert found == pytest.approx(expected, rel=1e-6)
    found = still.fit(TEXTS, TARGETS, sample_weight=weight, batch_size=4, verbose=0).history
    assert found["loss"] == pytest.approx([expected], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_weights_of_texts(tokenizer, packing):
    lm = make_lm(tokenizer, packing=packing)
    losses = [lm.evaluate([text], verbose=0)[0] for text in TEXTS]
    tokens = [lm.preprocessor([text])[2].sum() for text in TEXTS]
    weight = np.linspace(0, 3, 13)
    expected = np.average(losses, weights=weight * tokens)
    found = lm.evaluate(TEXTS, sample_weight=weight, batch_size=4, verbose=0)[0]
    assert found == pytest.approx(expected, rel=1e-5)
    lm.preprocessor.cross_documents = True
    with pytest.raises(ValueError, match="Expected cross_documents = False"):
        lm.evaluate(TEXTS, sample_weight=weight, verbose=0)


@pytest.mark.slow
def test_weights_of_arrays(still):
    """(B,) counts for the tokens of a row; without one, padding counts nothing."""
    x, y, there = still.preprocessor(PAIRS)
    row = np.linspace(0.1, 2, 13)
    found = still.evaluate(x, y, sample_weight=row, batch_size=4, verbose=0)[0]
    assert found == pytest.approx(by_hand(still, x, y, there * row[:, None]), rel=1e-6)
    found = still.evaluate(x, y, batch_size=4, verbose=0)[0]
    assert found == pytest.approx(by_hand(still, x, y, there), rel=1e-6)


@pytest.mark.slow
def test_class_weights(still):
    x, y, there = still.preprocessor(PAIRS)
    token = int(y[0, 0])
    found = still.fit(PAIRS, class_weight={token: 5.0}, batch_size=4, verbose=0).history["loss"]
    assert found == pytest.approx([by_hand(still, x, y, there * (1 + 4 * (y == token)))], rel=1e-6)


# Labels.


def arrays(lm):
    x, y, weight = lm.preprocessor(PAIRS)
    return x, y.copy(), weight.copy()


@pytest.mark.slow
def test_labels_that_count_nothing(still):
    """-100, as collators have it, and any label whose weight is 0."""
    x, y, weight = arrays(still)
    weight[2, 1] = weight[3, 0] = 0
    expected = by_hand(still, x, y, weight)
    ignored = np.where(weight > 0, y, -100)
    assert still.evaluate(x, ignored, verbose=0)[0] == pytest.approx(expected, rel=1e-6)
    assert still.test_on_batch(x, ignored)[0] == pytest.approx(expected, rel=1e-6)
    wild = np.where(weight > 0, y, 10**6)
    found = still.evaluate(x, wild, sample_weight=weight, batch_size=5, verbose=0)[0]
    assert found == pytest.approx(expected, rel=1e-6)
    loss = training.FusedCrossEntropy()
    states = still.backbone(x)["decoder_sequence_output"]
    sums = loss(states, still.backbone.decoder.embedding, ignored, training=False)
    assert float(sums.loss / sums.weight) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label", [-1, -101, 4096])
def test_labels_of_no_token(still, label):
    x, y, weight = arrays(still)
    y[4, 1] = label
    for call in (still.fit, still.evaluate, still.train_on_batch, still.test_on_batch):
        with pytest.raises(ValueError, match=rf"Received: {label} in row 4, place 1"):
            call(x, y, sample_weight=weight)


# Order.


class Seen(keras.callbacks.Callback):
    """The first labels of each batch, in the order of training."""


def order(lm, x, epoch=0, **options):
    """The rows of an epoch, by their labels."""
    batching = Batching(**{"batch_size": 4, **options})
    batches = batch_source(data.as_source(x), lm.preprocessor.converter, batching).read(epoch)
    return [
        row.tobytes()
        for _, y, weight in batches
        for row, w in zip(y, weight, strict=True)
        if w.any()
    ]


def test_pairs_are_shuffled_by_seed_and_epoch(still, tokenizer):
    first = order(still, PAIRS)
    assert first == order(still, PAIRS)
    assert sorted(first) == sorted(order(still, PAIRS, epoch=1))
    assert first != order(still, PAIRS, epoch=1)
    assert first != order(make_lm(tokenizer, seed=1), PAIRS)
    in_order = [row.tobytes() for row in still.preprocessor(PAIRS)[1]]
    assert order(still, PAIRS, shuffle=False) == in_order != first


@pytest.mark.parametrize("kind", ["pairs", "arrays"])
def test_hosts_share_pairs_and_arrays(still, monkeypatch, kind):
    x = PAIRS if kind == "pairs" else None
    whole, shares = None, []
    for host in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setattr("keras_encdec.data.batching.this_host", lambda host=host: host)
        source = data.as_source(x) if x else data.as_source(*arrays(still))
        batching = Batching(4, labels=None)
        batches = batch_source(source, still.preprocessor.converter, batching)
        rows = [row for _, y, _ in batches.read(0) for row in y]
        if host == (0, 1):
            whole = rows
        else:
            shares.append(rows)
    joined = [row for both in zip(*shares, strict=True) for row in both]
    np.testing.assert_array_equal(joined, whole)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TEXTS,
        lambda: tf.data.Dataset.from_tensor_slices(TEXTS),
        lambda: grain.MapDataset.source(TEXTS),
        lambda: pytest.importorskip("datasets").Dataset.from_dict({"text": TEXTS})["text"],
    ],
    ids=["list", "tf.data", "Grain", "column"],
)
@pytest.mark.parametrize("packing", [False, True])
def test_each_epoch_draws_anew(tokenizer, make, packing):
    lm = make_lm(tokenizer, objective="ul2", packing=packing)
    assert sorted(order(lm, make())) != sorted(order(lm, make(), epoch=1))


@pytest.mark.slow
def test_an_epoch_has_all_its_batches(tokenizer):
    """Under UL2 each epoch makes another number of windows."""
    lm = make_lm(tokenizer, objective="ul2")
    counts = [len(order(lm, TEXTS, epoch, batch_size=2)) for epoch in range(6)]
    assert len(set(counts)) > 1
    steps = Steps()
    lm.fit(TEXTS, batch_size=2, epochs=6, verbose=0, callbacks=[steps])
    assert steps.counts == [-(-count // 2) for count in counts]


class Steps(keras.callbacks.Callback):
    """Steps of each epoch."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def on_epoch_begin(self, epoch, logs=None):
        self.before = self._iterations()

    def on_epoch_end(self, epoch, logs=None):
        self.counts.append(self._iterations() - self.before)

    def _iterations(self):
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))


@pytest.mark.slow
def test_stages_share_the_epochs_of_a_run(tokenizer):
    lm = make_lm(tokenizer, objective=Stages([UL2(), PrefixLM()], [0.5, 0.5]))
    alone = make_lm(tokenizer, objective="ul2")
    steps, plain = Steps(), Steps()
    lm.fit(TEXTS, batch_size=2, epochs=2, verbose=0, callbacks=[steps], validation_data=TEXTS)
    alone.fit(TEXTS, batch_size=2, epochs=2, verbose=0, callbacks=[plain])
    assert steps.counts == plain.counts


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras refuses it on PyTorch")
def test_steps_per_execution_that_do_not_divide_an_epoch(tokenizer, tmp_path):
    """Seven batches by threes: as one by one, after a kill too."""
    runs = []
    for together in (1, 3):
        lm = make_lm(tokenizer, rate=0.1)
        lm.compile(keras.optimizers.SGD(0.1), steps_per_execution=together)
        steps = Steps()
        history = lm.fit(PAIRS, batch_size=2, epochs=2, verbose=0, callbacks=[steps])
        assert steps.counts == [7, 7]
        runs.append((weights(lm), history.history["loss"]))
    for one, other in zip(*(run[0] for run in runs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-5)


# Packing.


def test_packing_looks_ahead_a_little(tokenizer, monkeypatch):
    made = []
    monkeypatch.setattr(pipeline, "GROUP", 8)
    monkeypatch.setattr("keras_encdec.objectives.packing.GROUP", 8)
    plain = PrefixLM.__call__

    def counted(self, *args, **kwargs):
        made.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(PrefixLM, "__call__", counted)
    lm = make_lm(tokenizer, packing=True)
    tokens = data.tokenize(TEXTS * 20, tokenizer)
    source = batch_source(tokens, lm.preprocessor.converter, Batching(4))
    made.clear()
    batches = source.read(0)
    next(batches)
    assert len(made) <= 8 * 8  # of hundreds: what one batch needs, and what is read ahead
    rest = list(batches)
    numbered = list(data.batches(tokens, lm.preprocessor, 4))
    assert len(rest) + 1 == len(numbered)
    for one, other in zip(rest, numbered[1:], strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, one, other)


# Rows left over.


@pytest.mark.slow
@ON_JAX
@pytest.mark.parametrize("x", ["pairs", "arrays", "tf.data", "text"])
def test_rows_left_over_in_accumulation(tokenizer, x):
    """5 rows in batches of 4 and parts of 2: the step of 4 and then of 1, as without parts."""
    some = {key: column[:5] for key, column in PAIRS.items()}
    found = []
    for parts in (1, 2):
        lm = make_lm(tokenizer, rate=0.1)
        lm.compile(keras.optimizers.SGD(0.1), gradient_accumulation_steps=parts)
        x_of = {
            "pairs": lambda: (some,),
            "arrays": lambda lm=lm: lm.preprocessor(some),
            "tf.data": lambda lm=lm: (
                tf.data.Dataset.from_tensor_slices(lm.preprocessor(some)).batch(4),
            ),
            "text": lambda: (TEXTS[0],),
        }
        given = x_of[x]()
        keys = ("x", "y", "sample_weight")
        size = {} if x in ("tf.data", "text") else {"batch_size": 4}
        lm.fit(**dict(zip(keys, given, strict=False)), verbose=0, shuffle=False, **size)
        found.append(weights(lm))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


# float16.


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["mixed_float16", "LossScaleOptimizer"])
def test_float16_trains(tokenizer, optimizer):
    """As float32 does, within its own rounding; a step that overflows is left out."""
    dtype = "mixed_float16" if optimizer == "mixed_float16" else "float32"
    plain, lm = make_lm(tokenizer, rate=0.1), make_lm(tokenizer, dtype=dtype)
    inner = keras.optimizers.SGD(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**10)
    lm.compile(scaled if optimizer != "mixed_float16" else inner)
    if optimizer == "mixed_float16":
        assert isinstance(lm.optimizer, keras.optimizers.LossScaleOptimizer)
    expected = plain.fit(PAIRS, epochs=6, verbose=0).history["loss"]
    history = lm.fit(PAIRS, epochs=6, verbose=0).history
    skipped = sum(n == 0 for n in np.diff(history["loss"]))
    np.testing.assert_allclose(history["loss"][skipped:], expected[: 6 - skipped], rtol=5e-3)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.long
def test_a_loss_scale_that_overflows_is_halved(tokenizer):
    lm = make_lm(tokenizer, dtype="mixed_float16")
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**60)
    lm.compile(scaled)
    before = weights(lm)
    lm.fit(PAIRS, verbose=0)
    assert_same(weights(lm), before)
    assert float(keras.ops.convert_to_numpy(scaled.dynamic_scale)) == 2.0**59
    small = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0, dynamic_growth_steps=2
    )
    lm.compile(small)
    lm.fit(PAIRS, epochs=3, verbose=0)
    assert float(keras.ops.convert_to_numpy(small.dynamic_scale)) == 4.0


@pytest.mark.slow
@ON_JAX
def test_float16_in_warm_up(tokenizer):
    lm = make_lm(tokenizer, dtype="mixed_float16")
    lm.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0))
    before = {w.path: to_numpy(w) for w in lm.weights}
    lm.fit(PAIRS, batch_size=4, verbose=0, callbacks=[training.CrossAttentionWarmup(100)])
    changed = {w.path for w in lm.weights if (to_numpy(w) != before[w.path]).any()}
    assert changed == {path for path in before if "cross_attention" in path}


# Errors.


class Breaks(training.FusedCrossEntropy):
    """A loss that has an error in it from some time on."""

    broken = False

    def __call__(self, *args, **kwargs):
        if self.broken:
            raise RuntimeError("no memory")
        return super().__call__(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    ["fit", "evaluate", "validation", "train_on_batch"],
)
def test_an_error_in_the_first_step_leaves_the_weights(tokenizer, call):
    lm = make_lm(tokenizer)
    loss = Breaks()
    lm.compile(keras.optimizers.AdamW(0.1), loss=loss)
    lm.fit(PAIRS, batch_size=4, verbose=0)
    state = [to_numpy(v) for v in [*lm.variables, *lm.optimizer.variables]]
    loss.broken = True
    lm.train_function = lm.test_function = None
    calls = {
        "fit": lambda: lm.fit(PAIRS, batch_size=5, verbose=0),
        "evaluate": lambda: lm.evaluate(PAIRS, verbose=0),
        "validation": lambda: lm.fit(PAIRS, batch_size=5, verbose=0, validation_data=PAIRS),
        "train_on_batch": lambda: lm.train_on_batch(PAIRS),
    }
    with pytest.raises(RuntimeError, match="no memory"):
        calls[call]()
    after = [to_numpy(v) for v in [*lm.variables, *lm.optimizer.variables]]
    assert_same(after, state)
    loss.broken = False
    lm.train_function = lm.test_function = None
    assert np.isfinite(lm.fit(PAIRS, verbose=0).history["loss"][0])


@pytest.mark.slow
def test_an_error_in_the_data_leaves_the_weights(tokenizer):
    lm = make_lm(tokenizer, rate=0.1)
    x, y, weight = arrays(lm)
    y[12, 0] = 5000
    batch = [
        tuple(
            keras.tree.map_structure(lambda a, i=i: a[i : i + 4], part) for part in (x, y, weight)
        )
        for i in range(0, 13, 4)
    ]
    with pytest.raises(ValueError, match="Received: 5000 in row 0, place 0"):
        lm.fit(iter(batch), verbose=0)
    assert all(np.isfinite(w).all() for w in weights(lm))
    lm.fit(PAIRS, verbose=0)


def test_not_compiled(tokenizer):
    pair = tiny_pair()
    lm = EncDecSeq2SeqLM(EncDecBackbone(pair.encoder, pair.decoder), compile=False)
    for call in (lm.fit, lm.evaluate):
        with pytest.raises(ValueError, match=r"You must call `compile\(\)`"):
            call(*arrays_of_tiny())


def arrays_of_tiny():
    x = make_inputs()
    return x, x["decoder_token_ids"]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (TEXTS, TARGETS[:5], "Received: 13 and 5"),
        (TEXTS, list(range(13)), r"decoder_text of row 0. Received: 0 of type int"),
        (TEXTS, [*TARGETS[:-1], "  "], "decoder_text of row 12"),
        ({**PAIRS, "encoder_text": [*TEXTS[:3], "", *TEXTS[4:]]}, None, "encoder_text of row 3"),
        ([{"text": "a b"}, {"txt": "c"}], None, r"row 1 without \['text'\]"),
        ([{"txt": "a b"}], None, r"\['txt'\].*Did you mean 'text'"),
        ({"encoder_txt": TEXTS, "decoder_text": TARGETS}, None, r"without \['encoder_text'\]"),
        (PAIRS, TARGETS, "in decoder_text or in y. Received: both"),
        (np.zeros((3, 4)), None, "Expected text, pairs of texts, or a dict"),
        ([1, 2], None, "Expected text, pairs of texts, or a dict"),
        ({"train": TEXTS, "test": TEXTS}, None, "Expected columns encoder_text"),
        (None, None, "Received: None"),
        ([], None, "at least one example"),
    ],
)
def test_what_cannot_be_trained_on(still, x, y, message):
    with pytest.raises(ValueError, match=message) as caught:
        still.fit(x, y, verbose=0)
    assert len(str(caught.value)) < 500


def test_a_dict_of_datasets(still):
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict(train=datasets.Dataset.from_dict(PAIRS))
    with pytest.raises(ValueError, match=r"Choose one, such as data\['train'\]"):
        still.fit(both)


def test_a_tuple_of_strings_as_validation_data(still):
    with pytest.raises(ValueError, match="tuple of 2 strings, which could be either"):
        still.fit(PAIRS, validation_data=("a text", "another"))


@pytest.mark.slow
def test_generators_are_spent(still):
    with pytest.raises(ValueError, match="spent after one"):
        still.fit((batch for batch in [arrays(still)]), epochs=2)
    with pytest.warns(UserWarning, match="data ended before epoch 1"):
        still.fit(
            (text for text in TEXTS[:2]), steps_per_epoch=1, epochs=9, batch_size=9, verbose=0
        )
    with pytest.raises(ValueError, match=r"steps_per_epoch with a .* that has no end"):
        still.fit(tf.data.Dataset.from_tensor_slices(TEXTS).repeat())
    endless = tf.data.Dataset.from_tensor_slices(TEXTS).repeat()
    steps = Steps()
    still.fit(endless, steps_per_epoch=2, epochs=2, batch_size=4, verbose=0, callbacks=[steps])
    assert steps.counts == [2, 2]


# Texts that are left out, and files as they are.


@pytest.mark.parametrize(
    "make",
    [
        lambda texts: texts,
        lambda texts: tf.data.Dataset.from_tensor_slices(texts),
        lambda texts: grain.MapDataset.source(texts),
    ],
    ids=["list", "tf.data", "Grain"],
)
def test_empty_texts_and_sentinels_are_left_out(still, make, capsys):
    kept = order(still, TEXTS[:3], shuffle=False)
    texts = [TEXTS[0], "", TEXTS[1], "Holds <unused4>.", TEXTS[2]]
    assert order(still, make(texts), shuffle=False) == kept
    assert "Left out 1 of 5 documents: they are empty" in " ".join(capsys.readouterr().out.split())


def test_marks_and_blank_lines_in_files(tmp_path):
    bom = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(bom + "Über.".encode())
    lines = [json.dumps({"text": text}).encode() for text in ("One.", "Two.")]
    (tmp_path / "b.jsonl").write_bytes(bom + lines[0] + b"\n\n  \n" + lines[1] + b"\n")
    found = list(data.read([tmp_path / "a.txt", tmp_path / "b.jsonl"]))
    assert [document.text for document in found] == ["Über.", "One.", "Two."]
    assert found[-1].where.endswith("b.jsonl:4")


# Settings, files and threads.


def test_compile_leaves_the_settings_of_the_backbone():
    lm = tiny_lm()
    lm.backbone.remat, lm.backbone.attention = True, "plain"
    lm.compile(keras.optimizers.SGD(0.1))
    assert (lm.backbone.remat, lm.backbone.attention) == (True, "plain")
    lm.compile(remat=False, attention="auto")
    assert (lm.backbone.remat, lm.backbone.attention) == (False, "auto")


@pytest.mark.long
def test_after_a_loss_on_logits_the_default_one_is_whole_again():
    lm = tiny_lm()
    x, y = arrays_of_tiny()
    expected = lm.evaluate(x, y, verbose=0, return_dict=True)
    lm.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert "sparse_categorical_accuracy" in lm.evaluate(x, y, verbose=0, return_dict=True)
    lm.compile()
    assert lm.evaluate(x, y, verbose=0, return_dict=True) == expected


@pytest.mark.slow
def test_a_keras_file_keeps_what_compile_was_given(tmp_path):
    lm = tiny_lm()
    lm.compile(
        keras.optimizers.Lion(3e-3),
        loss=training.FusedCrossEntropy(z_loss=1e-3, label_smoothing=0.1),
        distillation=None,
        sampler=keras_hub.samplers.TopPSampler(0.7, seed=3),
        logs=("tokens",),
        attention="plain",
        remat=True,
        scan=keras.backend.backend() == "jax",
    )
    x, y = arrays_of_tiny()
    lm.fit(x, y, verbose=0)
    lm.save(tmp_path / "lm.keras")
    again = keras.saving.load_model(tmp_path / "lm.keras")
    backbone = again.backbone  # these three are of a machine
    assert (backbone.attention, backbone.remat, backbone.scan) == ("auto", False, False)
    assert type(again.optimizer) is keras.optimizers.Lion
    assert again.sampler.get_config() == lm.sampler.get_config()
    for name in ("attention", "remat", "scan"):
        setattr(backbone, name, getattr(lm.backbone, name))
    both = [m.fit(x, y, verbose=0, epochs=2).history for m in (lm, again)]
    assert both[0] == both[1]
    assert_same(weights(lm), weights(again))


@pytest.mark.slow
def test_threads_draw_apart(tokenizer):
    lm = make_lm(tokenizer, lengths=(16, 24))
    lm.compile(sampler=keras_hub.samplers.RandomSampler(seed=7))
    prompts = TARGETS[:2]
    alone = [tuple(lm.generate(prompts)) for _ in range(4)]
    assert len(set(alone)) == 4
    lm.compile(sampler=keras_hub.samplers.RandomSampler(seed=7))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(tuple(lm.generate(prompts)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(alone)


@pytest.mark.long
def test_tokens_with_stop_strings_batches_and_a_path(tokenizer, tmp_path):
    """Model inputs as the same texts: the mask ends with the token that completes a stop."""
    lm = make_lm(tokenizer, lengths=(16, 24))
    prompts = TARGETS[:5]
    whole = lm.generate(prompts, strip_prompt=True)
    stop = whole[0][3:6]
    texts = lm.generate(prompts, strip_prompt=True, stop_strings=[stop])
    x = lm.preprocessor.generate_preprocess(prompts)
    found = lm.generate(x, strip_prompt=True, stop_strings=[stop])
    for ids, mask, text in zip(*found.values(), texts, strict=True):
        written = tokenizer.detokenize(ids[mask].tolist())
        assert written.startswith(text)
        assert written == text or stop in written
        kept = np.flatnonzero(mask)
        assert stop not in tokenizer.detokenize(ids[kept[:-1]].tolist())
    batched = lm.generate(x, strip_prompt=True, stop_strings=[stop], batch_size=2)
    path = tmp_path / "out.jsonl"
    kept = lm.generate(x, strip_prompt=True, stop_strings=[stop], batch_size=2, path=path)
    for other in (batched, kept):
        keras.tree.map_structure(np.testing.assert_array_equal, other, found)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1]["output"]["decoder_token_ids"] == [found["decoder_token_ids"][1].tolist()]


@pytest.mark.slow
def test_a_frame_to_generate_for(still):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"encoder_text": TARGETS[:3], "id": [1, 2, 3]})
    assert still.generate(frame, 12) == still.generate(TARGETS[:3], 12)


def test_an_example_has_its_weight():
    assert Example(np.array([1]), np.array([2])).weight == 1.0
