"""A pair learns from a teacher on its own outputs: whose, by which weights, how far, and errors."""

import types

import keras
import keras_hub
import numpy as np
import pytest
from seen import Seen, log_softmax, pair_of_texts

from keras_encdec.models.own_outputs import OwnOutputs
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import make_inputs
from keras_encdec.testing.stops import StopAfter, Stopped
from keras_encdec.training import Checkpoint, Distillation

READ = ["Sum of all.", "Sort an array in place.", "The mean.", "Write it to a file.", "x"]
WRITTEN = ["Adds.", "Sorts the values.", "Averages numbers along an axis.", "Writes.", "y"]
WEIGHTS = np.array([1.0, 2.0, 0.0, 0.5, 1.0])
T = 6
BETA, TEMPERATURE = 0.3, 2.0


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


@pytest.fixture(scope="module")
def teacher():
    return keras_hub.models.CausalLM.from_preset(catalog.embedded("gemma2_mini_docs"))


def make(tokenizer, distillation=None, rate=10.0, **options):
    lm = pair_of_texts(16, T)
    lm.compile(keras.optimizers.SGD(rate), distillation=distillation, **options)
    return lm


def train(lm, **options):
    given = {"batch_size": 2, "epochs": 2, "verbose": 0, "sample_weight": WEIGHTS}
    return lm.fit(READ, WRITTEN, **{**given, **options}).history


def batches_of(lm, **options):
    rules = {"epochs": 2, "shuffle": True, **options}
    return lm._batches(lm._source(READ, WRITTEN, WEIGHTS), lm._batching(2, **rules))


def assert_same(one, other):
    keras.tree.map_structure(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def run(tokenizer, teacher):
    """Two epochs on its own outputs alone: the batches, and weights and logs of each step."""
    kind = {"divergence": "jensen_shannon", "beta": BETA, "temperature": TEMPERATURE}
    distillation = Distillation(teacher, on_policy=1, **kind)
    lm, seen, made = make(tokenizer, distillation), Seen(), []
    own = OwnOutputs._made

    def recorded(self, position, batch):
        made.append((position, own(self, position, batch)))
        return made[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnOutputs, "_made", recorded)
        logs = train(lm, callbacks=[seen], validation_data=(READ, WRITTEN))
    return types.SimpleNamespace(lm=lm, seen=seen, made=made, logs=logs, options=distillation)


def test_each_batch_is_written_by_the_weights_right_before_its_step(run, tokenizer):
    assert [position for position, _ in run.made] == [(e, b) for e in range(2) for b in range(3)]
    again = make(tokenizer, run.options)
    batches, moved = batches_of(again), []
    for (position, made), weights in zip(run.made, run.seen.weights, strict=False):
        again.set_weights(weights)
        assert_same(next(batches.read(*position)), made)
        again.set_weights(run.seen.weights[0])
        moved.append((next(batches.read(*position))[1] != made[1]).any())
    assert any(moved[1:])  # older weights would have written something else


def test_what_a_batch_on_its_own_outputs_holds(run, tokenizer):
    plain = batches_of(make(tokenizer))
    for position, (x, y, weight) in run.made:
        x_given, y_given, given = next(plain.read(*position))
        both = (x, y), (x_given, y_given)
        for name in ("encoder_token_ids", "encoder_padding_mask"):
            np.testing.assert_array_equal(x[name], x_given[name])
        for row in range(2):
            count = given[row].max()
            if not count:  # of no weight, or there to fill the batch
                assert_same(*([a[row] for a in (*i.values(), j)] for i, j in both))
                assert not weight[row].any()
                continue
            length = int(x["decoder_padding_mask"][row].sum())
            assert 1 <= length <= T
            assert x["decoder_padding_mask"][row].tolist() == [1] * length + [0] * (T - length)
            np.testing.assert_array_equal(weight[row], count * x["decoder_padding_mask"][row])
            written = y[row, :length].tolist()
            read = [tokenizer.start_token_id, *written[:-1]]
            assert x["decoder_token_ids"][row, :length].tolist() == read
            assert tokenizer.end_token_id not in written[:-1]
            assert length == T or written[-1] == tokenizer.end_token_id


def test_the_loss_by_numpy_from_the_logits_of_both(run, tokenizer, teacher):
    _, (x, y, weight) = run.made[0]
    lm = make(tokenizer)
    lm.set_weights(run.seen.weights[0])
    student = np.array(lm.predict(x, verbose=0))
    total = 0.0
    for row in np.flatnonzero(weight.any(axis=1)):
        source = x["encoder_token_ids"][row][x["encoder_padding_mask"][row] > 0]
        n = int(x["decoder_padding_mask"][row].sum())
        ids = np.array([[tokenizer.start_token_id, *source, *y[row, :n]]])
        logits = teacher({"token_ids": ids, "padding_mask": np.ones_like(ids)})
        theirs = keras.ops.convert_to_numpy(logits)[0, len(source) : len(source) + n]
        p, q = (log_softmax(a / TEMPERATURE) for a in (theirs, student[row, :n].astype("float64")))
        middle = np.log(BETA * np.exp(p) + (1 - BETA) * np.exp(q))
        each = BETA * np.exp(p) * (p - middle) + (1 - BETA) * np.exp(q) * (q - middle)
        total += (TEMPERATURE**2 * each.sum(axis=-1) * weight[row, :n]).sum()
    assert run.seen.logs[0]["loss"] == pytest.approx(total / weight.sum(), rel=1e-4)


def test_evaluation_is_on_the_labels(run, tokenizer):
    plain = make(tokenizer)
    plain.set_weights(run.seen.weights[-1])
    found = plain.evaluate(READ, WRITTEN, verbose=0, return_dict=True)
    assert run.logs["val_loss"][-1] == pytest.approx(found["loss"], rel=1e-5)
    own = run.lm.evaluate(READ, WRITTEN, verbose=0, return_dict=True)
    assert own["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_a_share_of_batches_by_their_place_alone(tokenizer, teacher):
    mixed = batches_of(make(tokenizer, Distillation(teacher, on_policy=0.3)))
    places = [(epoch, number) for epoch in range(40) for number in range(50)]
    own = [mixed._is_own(place) for place in places]
    assert abs(np.mean(own) - 0.3) < 0.04  # four standard deviations of 2000 draws
    assert not any(np.array(own).reshape(40, 50).mean(axis=0) > 0.7)  # epochs differ
    plain = batches_of(make(tokenizer))
    place = next(p for p, is_own in zip(places, own, strict=True) if not is_own and p[1] < 3)
    assert_same(next(mixed.read(*place)), next(plain.read(*place)))


def test_a_share_of_none_is_the_plain_batches(tokenizer, teacher):
    lm = make(tokenizer, Distillation(teacher, on_policy=0))
    assert not isinstance(batches_of(lm), OwnOutputs)
    assert lm.compiled_facts()["distillation"] == Distillation(teacher).facts()
    with_share = make(tokenizer, Distillation(teacher, on_policy=0.5)).compiled_facts()
    assert with_share["distillation"]["on_policy"] == 0.5


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(tokenizer, teacher, tmp_path):
    """Stopped in the middle of an epoch; some batches are on its own outputs, some are not."""
    distillation = Distillation(teacher, on_policy=0.5, divergence="jensen_shannon")
    batches = batches_of(make(tokenizer, distillation))
    own = [batches._is_own((epoch, number)) for epoch in range(2) for number in range(3)]
    assert any(own[2:])
    assert not all(own)
    ends = []
    for stop in (None, 4):
        folder = tmp_path / str(stop)
        if stop is not None:
            callbacks = [Checkpoint(folder, every=2), StopAfter(stop)]
            with pytest.raises(Stopped):
                train(make(tokenizer, distillation), callbacks=callbacks)
        lm = make(tokenizer, distillation)
        train(lm, callbacks=[Checkpoint(folder, every=2)])
        ends.append([keras.ops.convert_to_numpy(v.value) for v in lm.variables])
    assert_same(*ends)


@pytest.mark.long
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="parts of a step")
def test_parts_of_a_step_are_the_step(tokenizer, teacher):
    ends = []
    for parts in (1, 2):
        own = Distillation(teacher, on_policy=1, divergence="reverse")
        lm = make(tokenizer, own, rate=0.5, gradient_accumulation_steps=parts)
        logs = train(lm, batch_size=4, epochs=1, shuffle=False)
        ends.append((logs["loss"], [np.array(weight) for weight in lm.get_weights()]))
    keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *ends)


def test_model_inputs_and_ends(tokenizer, teacher, monkeypatch):
    """Arrays of another width than the preprocessor's, where every second token is an end."""
    ends = property(lambda self: tuple(range(0, 4096, 2)))
    monkeypatch.setattr(FeatureConverter, "stop_token_ids", ends)
    lm = make(tokenizer, Distillation(teacher, on_policy=1))
    x = make_inputs(source=(9, 3, 5), target=(8, 2, 4))
    y = np.roll(x["decoder_token_ids"], -1, axis=1)
    batches = lm._batches(lm._source(x, y), lm._batching(3))
    own, labels, weight = next(batches.read(0))
    lengths = own["decoder_padding_mask"].sum(axis=1)
    assert labels.shape == y.shape
    assert (lengths >= 1).all()
    assert (lengths < 8).any()
    for row, length in zip(labels, lengths, strict=True):
        assert (row[: length - 1] % 2 == 1).all()
        assert length == 8 or row[length - 1] % 2 == 0
    np.testing.assert_array_equal(weight, own["decoder_padding_mask"])
    np.testing.assert_array_equal(own["decoder_token_ids"][:, 0], x["decoder_token_ids"][:, 0])
    for dtypes, array in zip((x[name].dtype for name in own), own.values(), strict=True):
        assert array.dtype == dtypes
    x["decoder_padding_mask"][0, 4:] = 2
    with pytest.raises(ValueError, match="one example a row with on_policy"):
        next(lm._batches(lm._source(x, y), lm._batching(3)).read(0))


def test_what_does_not_go_together(tokenizer, teacher):
    for options, message in (
        ({"teacher": None}, "a teacher that is asked and weight=1"),
        ({"weight": 0.5}, "a teacher that is asked and weight=1"),
        ({"on_policy": 1.5}, "on_policy"),
    ):
        with pytest.raises(ValueError, match=message):
            Distillation(**{"teacher": teacher, "on_policy": 0.5, **options})
    lm = make(tokenizer, Distillation(teacher, on_policy=0.5))
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        lm.compile(distillation=Distillation(teacher, on_policy=0.5), steps_per_execution=2)
    with pytest.raises(ValueError, match="no class_weight with on_policy"):
        lm.fit(READ, WRITTEN, class_weight={5: 2.0}, verbose=0)
    with pytest.raises(ValueError, match="Expected fit with on_policy"):
        lm.train_on_batch(READ, WRITTEN)
    lm.preprocessor.packing = True
    with pytest.raises(ValueError, match="packing = False"):
        lm.fit(READ, WRITTEN, verbose=0)
