"""A run that is taken up ends as one that nobody interrupted, bit for bit."""

import resource
import signal

import keras
import numpy as np
import pytest

from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training import Checkpoint, CrossAttentionWarmup

ROWS = 10  # batches of 2: five steps an epoch


def data():
    x = make_inputs(source=range(1, ROWS + 1), target=range(ROWS, 0, -1))
    y = np.roll(x["decoder_token_ids"], -1, 1)
    return x, y, x["decoder_padding_mask"].astype("float32")


def model(optimizer=None, dropout=0.1, **changes):
    one = {"windows": (8,), "dropout": dropout}  # a layer a side: compiling is the cost
    pair = PairSpec(tiny_encoder(**one, **changes), tiny_decoder(**one))
    lm = tiny_lm(pair=pair)
    for layer in lm.backbone._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.seed_generator.state.assign([1, 2])
    lm.compile(optimizer or keras.optimizers.AdamW(1e-2, global_clipnorm=1.0))
    return lm


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        self.step -= 1
        if self.step < 0:
            raise Killed


def fit(lm, folder=None, kill=None, epochs=3, warmup=None, checkpoint=None, **kwargs):
    x, y, weight = kwargs.pop("data", data())
    folder = folder and Checkpoint(folder, **{"every": 2, **(checkpoint or {})})
    callbacks = [
        *([folder] if folder else []),
        *([CrossAttentionWarmup(warmup)] if warmup else []),
        *([Kill(kill)] if kill is not None else []),
    ]
    kwargs = {"verbose": 0, "batch_size": 2, "callbacks": callbacks, **kwargs}
    return lm.fit(x, y, sample_weight=weight, epochs=epochs, **kwargs).history


def state(lm):
    return [to_numpy(v) for v in [*lm.variables, *lm.optimizer.variables]]


def assert_identical(one, other):
    for a, b in zip(state(one), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    lm = model()
    return lm, fit(lm, tmp_path_factory.mktemp("whole") / "run", warmup=7)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kill", [pytest.param(1, marks=SLOW), 8, pytest.param(12, marks=SLOW)])
def test_taken_up_in_any_phase(whole, tmp_path, kill):
    """In warm-up, at an epoch's end, past the switch: with dropout, warm-up and metrics."""
    lm, history = whole
    with pytest.raises(Killed):
        fit(model(), tmp_path / "run", kill=kill, warmup=7)
    again = model()
    rest = fit(again, tmp_path / "run", warmup=7)
    assert_identical(lm, again)
    rest.pop("tokens_per_second")  # the clock's
    for name, values in rest.items():
        np.testing.assert_allclose(values, history[name][-len(values) :], rtol=1e-6)


@pytest.mark.slow
def test_a_finished_run_is_left_alone(whole, tmp_path):
    fit(model(), tmp_path / "run", epochs=1)
    again = model()
    assert not fit(again, tmp_path / "run", epochs=1)
    fit(again, tmp_path / "run", epochs=3)
    plain = model()
    fit(plain, tmp_path / "other", epochs=3)
    assert_identical(plain, again)


def test_keeps_the_latest_and_the_best(tmp_path):
    lm = model(keras.optimizers.SGD(3.0))
    options = {"best": "val_loss", "every": 100}
    history = fit(lm, tmp_path / "run", checkpoint=options, epochs=6, validation_data=data())[
        "val_loss"
    ]
    best = 5 * (int(np.argmin(history)) + 1)
    checkpoint = Checkpoint(tmp_path / "run", best="val_loss")
    assert checkpoint.saved_steps() == sorted({best, 25, 30})
    checkpoint.restore(lm, "best")
    value = lm.evaluate(*data()[:2], sample_weight=data()[2], batch_size=2, verbose=0)[0]
    np.testing.assert_allclose(value, min(history), rtol=1e-5)


def test_best_of_a_log_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="Received: 'val_loss'"):
        fit(model(), tmp_path / "run", checkpoint={"best": "val_loss"})


def test_restores_into_other_weights_and_not_only_some(tmp_path):
    """keras-team/keras issue 23251: weights that were saved under other paths stayed behind."""
    fit(saved := model(), tmp_path / "run", epochs=1)
    other = model()
    for variable in other.variables:
        variable.assign(np.ones(variable.shape))
    other.optimizer.build(other.trainable_variables)
    assert Checkpoint(tmp_path / "run").restore(other) == (1, 0)
    assert_identical(saved, other)


def test_of_another_pair(tmp_path):
    fit(model(), tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="pair differs: encoder, feedforward_dim, 80 there, 64"):
        fit(model(feedforward_dim=64), tmp_path / "run")


def test_of_another_optimizer(tmp_path):
    fit(model(), tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="'AdamW' there, 'SGD' here"):
        fit(model(keras.optimizers.SGD()), tmp_path / "run")


def test_damaged(tmp_path):
    fit(model(), tmp_path / "run", epochs=1)
    for file in (tmp_path / "run" / "5" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"run/5, which cannot be read .* to go on from \[4\]"):
        fit(model(), tmp_path / "run")


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    """A limit on the size of a file stands for it; what was saved before is whole."""
    fit(model(), tmp_path / "run", epochs=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"room for a checkpoint .* last good one \(step 5\)"):
            fit(model(), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    again, plain = model(), model()
    fit(again, tmp_path / "run")
    fit(plain, tmp_path / "other")
    assert_identical(plain, again)


def test_a_loss_that_is_no_number(tmp_path):
    x, y, weight = data()
    weight[:] = 1.0
    lm = model()
    fit(lm, tmp_path / "run", epochs=1, data=(x, y, weight))
    weight[3] = np.nan
    with pytest.raises(FloatingPointError, match=r"batch \d of epoch 1 .* checkpoint is .*run/\d"):
        fit(lm, tmp_path / "run", data=(x, y, weight))
    assert len(lm.trainable_variables) == len(lm.weights)
    good = model()
    good.optimizer.build(good.trainable_variables)
    Checkpoint(tmp_path / "run").restore(good)
    assert all(np.isfinite(value).all() for value in state(good))


def test_a_loss_that_is_no_number_without_a_checkpoint():
    x, y, weight = data()
    with pytest.raises(FloatingPointError, match=r"at batch 0 of epoch 0.*Nothing was saved"):
        fit(model(), data=(x, y, weight * np.nan))


def test_data_that_cannot_be_found_again(tmp_path):
    with pytest.raises(ValueError, match=r"can be found again.*Received: generator"):
        model().fit((b for b in [data()]), callbacks=[Checkpoint(tmp_path / "run")], verbose=0)


def test_nothing_was_saved(tmp_path):
    assert Checkpoint(tmp_path / "run").restore(model()) is None
    with pytest.raises(ValueError, match="'latest', 'best' or a step of"):
        Checkpoint(tmp_path / "run").restore(model(), 3)


@pytest.mark.parametrize("bad", [{"every": 0}, {"keep": 1}, {"mode": "least"}])
def test_options_out_of_range(tmp_path, bad):
    with pytest.raises(ValueError, match="Expected every"):
        Checkpoint(tmp_path, **bad)
