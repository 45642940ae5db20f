"""Callbacks of Keras on a run of `fit`: as on any model."""

import csv

import keras
import numpy as np
import pytest

from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy

SLOW = pytest.mark.slow

X = make_inputs(source=(20, 13, 1, 7, 9), target=(16, 9, 2, 5, 3))
Y = np.roll(X["decoder_token_ids"], -1, axis=1)
WEIGHT = X["decoder_padding_mask"].astype("float32")


@pytest.fixture
def lm():
    lm = tiny_lm()
    lm.compile(keras.optimizers.SGD(0.05), sampler="greedy")
    return lm


def fit(lm, *callbacks, epochs=3, **kwargs):
    options = {"sample_weight": WEIGHT, "batch_size": 2, "verbose": 0, "epochs": epochs}
    return lm.fit(X, Y, callbacks=list(callbacks), **{**options, **kwargs}).history


def weights(lm):
    return [to_numpy(w) for w in lm.weights]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


class Snapshots(keras.callbacks.Callback):
    """The weights at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def on_epoch_end(self, epoch, logs=None):
        self.taken.append(weights(self.model))


@SLOW
def test_early_stopping_restores_the_best_weights(lm):
    lm.compile(keras.optimizers.SGD(30.0))  # each epoch is worse than the one before
    snapshots = Snapshots()
    stop = keras.callbacks.EarlyStopping("loss", patience=1, restore_best_weights=True)
    history = fit(lm, snapshots, stop, epochs=9)
    assert len(history["loss"]) < 9
    assert_same(weights(lm), snapshots.taken[int(np.argmin(history["loss"]))])


@SLOW
@pytest.mark.parametrize("weights_only", [True, False])
def test_model_checkpoint(lm, tmp_path, weights_only):
    path = tmp_path / ("{epoch}.weights.h5" if weights_only else "{epoch}.keras")
    snapshots = Snapshots()
    saver = keras.callbacks.ModelCheckpoint(path, save_weights_only=weights_only)
    fit(lm, snapshots, saver, epochs=2)
    for number, expected in enumerate(snapshots.taken, start=1):
        if weights_only:
            again = tiny_lm()
            again.load_weights(tmp_path / f"{number}.weights.h5")
        else:
            again = keras.saving.load_model(tmp_path / f"{number}.keras")
        assert_same(weights(again), expected)


@SLOW
def test_learning_rates(lm):
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: [0.4, 0.2, 0.1][epoch])
    assert fit(lm, rates)["learning_rate"] == pytest.approx([0.4, 0.2, 0.1])
    lm.compile(keras.optimizers.SGD(30.0))
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1)
    assert fit(lm, plateau, epochs=4)["learning_rate"][-1] < 30.0


@SLOW
def test_files_of_logs(lm, tmp_path):
    callbacks = (
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TensorBoard(tmp_path),
    )
    history = fit(lm, *callbacks, validation_data=(X, Y, WEIGHT))
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "val_loss", "tokens"):
        assert [float(row[name]) for row in rows] == pytest.approx(history[name])
    assert list(tmp_path.rglob("events.out.*"))


class Fails(keras.callbacks.Callback):
    """An error at the end of the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise RuntimeError("power cut")


@pytest.mark.slow
def test_backup_and_restore_goes_on_with_the_next_epoch(lm, tmp_path):
    whole = tiny_lm()
    whole.compile(keras.optimizers.SGD(0.05))
    fit(whole)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(lm, backup, Fails())
    again = tiny_lm()
    again.compile(keras.optimizers.SGD(0.05))
    history = fit(again, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert len(history["loss"]) == 1
    assert_same(weights(again), weights(whole))


@SLOW
@pytest.mark.long
def test_averaged_weights():
    """As by hand: a mean that forgets half at each step, put in place at the end of the run."""
    lm = tiny_lm()
    lm.compile(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    steps = Steps()
    fit(lm, steps, epochs=2)
    expected = steps.taken[1]  # Keras begins with the weights after the first step
    for values in steps.taken[2:]:
        expected = [0.5 * e + 0.5 * v for e, v in zip(expected, values, strict=True)]
    for variable, value in zip(lm.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(to_numpy(variable), value, atol=1e-6)
    swapped = tiny_lm()
    swapped.compile(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    swap = keras.callbacks.SwapEMAWeights()
    history = fit(swapped, swap, epochs=2, validation_data=(X, Y, WEIGHT))
    swapped.compile()
    np.testing.assert_allclose(
        swapped.evaluate(X, Y, sample_weight=WEIGHT, verbose=0)[0], history["val_loss"][-1], 1e-5
    )


class Steps(keras.callbacks.Callback):
    """What trains, before the first step and after each."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def take(self):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.taken.append([to_numpy(v) for v in self.model.trainable_variables])

    def on_train_begin(self, logs=None):
        self.take()

    def on_train_batch_end(self, batch, logs=None):
        self.take()


class Writes(keras.callbacks.Callback):
    """What the model writes, at each epoch's end and in the middle of one."""

    def __init__(self):
        super().__init__()
        self.ends, self.middle = [], None

    def write(self):
        prompt = dict(X, decoder_padding_mask=(np.arange(16) < 2) * np.ones((5, 1), "int32"))
        return self.model.generate(prompt, stop_token_ids=None)["decoder_token_ids"]

    def on_train_batch_end(self, batch, logs=None):
        if self.middle is None:
            self.middle = self.write()

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append((self.write(), weights(self.model)))


@SLOW
def test_a_callback_that_generates_sees_the_weights_of_then(lm):
    lm.compile(keras.optimizers.SGD(3.0), sampler="greedy")
    writes = Writes()
    fit(lm, writes)
    again = tiny_lm()
    again.compile(sampler="greedy")
    for written, values in writes.ends:
        for variable, value in zip(again.weights, values, strict=True):
            variable.assign(value)
        writes.set_model(again)
        np.testing.assert_array_equal(written, writes.write())
    assert any((writes.ends[0][0] != written).any() for written, _ in writes.ends[1:])
    assert (writes.middle != writes.ends[-1][0]).any()


@pytest.mark.slow
def test_one_callback_in_place_of_a_list(lm):
    history = lm.fit(X, Y, verbose=0, callbacks=keras.callbacks.TerminateOnNaN())
    assert len(history.history["loss"]) == 1


@pytest.mark.long
def test_what_logs_carry(lm):
    """Tokens and gradient norm by hand; the learning rate; each can be left out."""
    history = fit(lm, epochs=2)
    count = sum(int((X[f"{side}_padding_mask"] > 0).sum()) for side in ("encoder", "decoder"))
    assert history["tokens"] == [count, 2 * count]
    assert history["learning_rate"] == pytest.approx([0.05, 0.05])
    assert min(history["tokens_per_second"]) > 0
    lm.compile(keras.optimizers.SGD(1.0))
    before = [to_numpy(v) for v in lm.trainable_variables]
    norm = fit(lm, epochs=1, batch_size=5)["gradient_norm"][0]
    moved = [a - to_numpy(v) for a, v in zip(before, lm.trainable_variables, strict=True)]
    expected = np.sqrt(sum(np.sum(np.square(m, dtype="float64")) for m in moved))
    assert norm == pytest.approx(expected, rel=1e-4)
    for name in ("tokens", "tokens_per_second", "learning_rate", "gradient_norm"):
        kept = {"tokens", "tokens_per_second", "learning_rate", "gradient_norm"} - {name}
        lm.compile(keras.optimizers.SGD(1.0), logs=tuple(kept))
        assert name not in fit(lm, epochs=1)
    with pytest.raises(ValueError, match=r"Expected logs .*Received: .speed."):
        lm.compile(logs=("speed",))
