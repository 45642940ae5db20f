"""Means of weights are those of the formula, whatever else a run does."""

import keras
import numpy as np
import pytest

from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.testing.stops import StopAfter, Stopped
from keras_encdec.training import (
    Checkpoint,
    CrossAttentionWarmup,
    WeightAverage,
    mean_of_checkpoints,
)

# Threads of Orbax outlive the loop that they report to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DECAY = 0.75
X = make_inputs(source=range(1, 7), target=range(6, 0, -1))  # batches of 2: three steps an epoch
Y = np.roll(X["decoder_token_ids"], -1, 1)
WEIGHT = X["decoder_padding_mask"].astype("float32")


def model(optimizer=None, **kwargs):
    one = {"windows": (8,)}  # a layer a side: compiling is the cost
    lm = tiny_lm(pair=PairSpec(tiny_encoder(**one), tiny_decoder(**one)), **kwargs)
    lm.compile(optimizer or keras.optimizers.SGD(0.5, momentum=0.5))
    return lm


def fit(lm, *callbacks, epochs=2, **kwargs):
    options = {"sample_weight": WEIGHT, "batch_size": 2, "verbose": 0, "epochs": epochs}
    return lm.fit(X, Y, callbacks=list(callbacks), **{**options, **kwargs}).history


def loss(lm):
    return lm.evaluate(X, Y, sample_weight=WEIGHT, batch_size=2, verbose=0)[0]


def weights(lm):
    return [to_numpy(v) for v in lm.trainable_variables]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(to_numpy(a), b, rtol=1e-6, atol=1e-6)


class Steps(keras.callbacks.Callback):
    """What trains, before the first step and after each."""

    def take(self):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.taken.append([np.array(to_numpy(v)) for v in self.variables])

    def on_train_begin(self, logs=None):
        self.taken, self.variables = [], list(self.model.trainable_variables)
        self.take()

    def on_train_batch_end(self, batch, logs=None):
        self.take()


def mean(taken, start=0):
    """In float64."""
    found = [np.float64(value) for value in taken[0]]
    for step, values in enumerate(taken[1:], 1):
        decay = DECAY if step > start else 0
        found = [
            decay * a + (1 - decay) * np.float64(w) for a, w in zip(found, values, strict=True)
        ]
    return found


@pytest.fixture(scope="module")
def plain():
    """A run without a mean: its weights after each step."""
    lm, steps = model(), Steps()
    fit(lm, steps)
    return steps.taken


@pytest.mark.parametrize("start", [0, 4])
def test_it_is_the_mean_over_steps(plain, start):
    lm, average, steps = model(), WeightAverage(DECAY, start=start), Steps()
    fit(lm, average, steps)
    for ours, theirs in zip(steps.taken, plain, strict=True):  # training is as without it
        assert_same(ours, theirs)
    assert_close(average.values, mean(plain, start))
    assert_close(lm.trainable_variables, mean(plain, start))
    assert not np.allclose(plain[-1][0], mean(plain, start)[0], atol=1e-4)
    fit(lm, epochs=1)  # gives away the memory of the weights, not of the mean
    assert_close(average.values, mean(plain, start))


@pytest.mark.slow
def test_out_of_place_it_is_beside_the_weights(plain):
    lm, average = model(), WeightAverage(DECAY, in_place=False)
    fit(lm, average, validation_data=(X, Y, WEIGHT))
    assert_same(lm.trainable_variables, plain[-1])
    before = loss(lm)
    with average.swapped():
        of_mean = loss(lm)
        assert_close(lm.trainable_variables, mean(plain))
    assert_same(lm.trainable_variables, plain[-1])
    assert loss(lm) == before != of_mean
    average.put()
    assert loss(lm) == of_mean


@pytest.mark.slow
def test_validation_is_of_what_training_gives(plain):
    lm, average = model(), WeightAverage(DECAY)
    history = fit(lm, average, validation_data=(X, Y, WEIGHT))
    assert_close(lm.trainable_variables, mean(plain))  # training went on with its own weights
    assert history["val_loss"][-1] == pytest.approx(loss(lm), rel=1e-6)
    other = model()
    for variable, value in zip(other.trainable_variables, mean(plain[:4]), strict=True):
        variable.assign(value)
    assert history["val_loss"][0] == pytest.approx(loss(other), rel=1e-5)


@pytest.mark.slow
def test_every_run_starts_at_its_weights():
    lm, average, steps = model(), WeightAverage(DECAY), Steps()
    fit(lm, average, epochs=1)
    fit(lm, average, steps, epochs=1)
    assert_close(average.values, mean(steps.taken))


@pytest.mark.slow
def test_what_a_warm_up_freezes_is_averaged_too():
    lm, average, steps = model(), WeightAverage(DECAY), Steps()
    fit(lm, steps, average, CrossAttentionWarmup(2))
    assert len(average.values) == len(lm.trainable_variables)
    assert_close(average.values, mean(steps.taken))


@pytest.mark.slow
def test_under_lora_only_what_trains():
    lm, average, steps = model(), WeightAverage(DECAY), Steps()
    lm.backbone.enable_lora(2)
    frozen = [to_numpy(v) for v in lm.non_trainable_variables]
    fit(lm, average, steps)
    assert len(average.values) == len(lm.trainable_variables) < len(lm.weights)
    assert_close(lm.trainable_variables, mean(steps.taken))
    assert_same(lm.non_trainable_variables, frozen)


@pytest.mark.slow
def test_of_bfloat16_in_float32():
    """Steps of a thousandth would be lost in a mean of eight bits."""
    lm, average, steps = model(dtype="bfloat16"), WeightAverage(0.999), Steps()
    fit(lm, average, steps)
    found = [np.float64(value) for value in steps.taken[0]]
    for values in steps.taken[1:]:
        found = [0.999 * a + 0.001 * np.float64(w) for a, w in zip(found, values, strict=True)]
    assert_close(average.values, found)
    assert keras.backend.standardize_dtype(average.values[0].dtype) == "float32"


def test_the_record_says_so():
    lm = model()
    fit(lm, WeightAverage(DECAY), epochs=1)
    said = lm.provenance["history"][-1]["average"]
    assert said == {"decay": DECAY, "start": 0, "in_place": True}
    fit(lm, epochs=1)
    assert lm.provenance["history"][-1]["average"] is None


# Errors and kills.


class FailsInValidation(keras.callbacks.Callback):
    def on_test_batch_end(self, batch, logs=None):
        raise RuntimeError("power cut")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [StopAfter(4), FailsInValidation()])
def test_an_error_leaves_the_weights_of_the_last_step(plain, stop):
    lm = model()
    with pytest.raises((Stopped, RuntimeError)):
        fit(lm, WeightAverage(DECAY), stop, validation_data=(X, Y, WEIGHT))
    done = 4 if isinstance(stop, StopAfter) else 3
    assert_same(lm.trainable_variables, plain[done])


@pytest.mark.slow
@pytest.mark.parametrize("kill", [2, 4])
@pytest.mark.parametrize("first", [True, False])
def test_it_goes_on_exactly(tmp_path, kill, first):
    """Killed in an epoch, whichever of the two callbacks comes first."""

    def run(lm, folder, *more):
        average, checkpoint = WeightAverage(DECAY, start=1), Checkpoint(folder, every=1)
        both = [average, checkpoint] if first else [checkpoint, average]
        fit(lm, *both, *more)
        return average

    whole, lm, again = model(), model(), model()
    expected = run(whole, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(lm, tmp_path / "run", StopAfter(kill))
    found = run(again, tmp_path / "run")
    assert_same(found.values, expected.values)
    assert_same(again.weights, whole.weights)


@pytest.mark.slow
def test_checkpoints_of_a_run_without_one(tmp_path):
    fit(model(), Checkpoint(tmp_path / "run"), epochs=1)
    with pytest.raises(ValueError, match=r"where averaged weights differs"):
        fit(model(), Checkpoint(tmp_path / "run"), WeightAverage(DECAY))


@pytest.mark.slow
def test_restored_with_the_averages_of_then(tmp_path):
    lm, average = model(), WeightAverage(DECAY)
    fit(lm, average, Checkpoint(tmp_path / "run"))
    values = [to_numpy(value) for value in average.values]
    other, of_other = model(), WeightAverage(DECAY)
    assert Checkpoint(tmp_path / "run").restore(other) == (2, 0)  # as if there were none
    of_other.follow(other)
    Checkpoint(tmp_path / "run").restore(other)
    assert_same(of_other.values, values)
    of_other.put()
    assert_same(other.trainable_variables, lm.trainable_variables)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "Expected decay"),
        ({"decay": -0.1}, "Expected decay"),
        ({"start": -1}, "Expected start"),
        ({"in_place": "no"}, "Expected in_place"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        WeightAverage(**options)


def test_what_it_does_not_go_with():
    lm, average = model(), WeightAverage()
    stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    with pytest.raises(ValueError, match="restore_best_weights"):
        fit(lm, average, stop)
    with pytest.raises(ValueError, match=r"one WeightAverage. Received: 2"):
        fit(lm, average, WeightAverage())
    with pytest.raises(ValueError, match="none before fit"):
        average.put()
    lm.compile(keras.optimizers.SGD(0.1, use_ema=True))
    with pytest.raises(ValueError, match="use_ema"):
        fit(lm, average)
    lm.compile(keras.optimizers.SGD(0.1), steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        fit(lm, average)


# Checkpoints.


@pytest.mark.slow
def test_the_mean_of_checkpoints(tmp_path, plain):
    lm, checkpoint = model(), Checkpoint(tmp_path / "run", every=1, keep=4)
    fit(lm, checkpoint)
    expected = [np.mean(np.float64(values), axis=0) for values in zip(*plain[3:], strict=True)]
    other = model()
    fit(other, epochs=1)
    assert mean_of_checkpoints(other, checkpoint) == [3, 4, 5, 6]
    assert_close(other.trainable_variables, expected)
    assert other.provenance["history"][-1]["what"] == "averaged"
    assert mean_of_checkpoints(other, checkpoint, [6, 4]) == [4, 6]
    expected = [(np.float64(a) + b) / 2 for a, b in zip(plain[4], plain[6], strict=True)]
    assert_close(other.trainable_variables, expected)
    assert mean_of_checkpoints(other, checkpoint, [5]) == [5]
    assert_same(other.trainable_variables, plain[5])
    with pytest.raises(ValueError, match=r"steps 3, 4, 5 or 6. Received: 7"):
        mean_of_checkpoints(other, checkpoint, [7])
    with pytest.raises(ValueError, match=r"Expected checkpoints in .*none"):
        mean_of_checkpoints(other, Checkpoint(tmp_path / "new"))
