"""Cross-attention alone for K steps, then everything."""

import itertools

import keras
import numpy as np
import pytest

from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training import CrossAttentionWarmup, FusedCrossEntropy
from keras_encdec.training.warmup import is_new


def batches(count):
    x = make_inputs(source=(20, 13), target=(16, 9))
    y, weight = np.roll(x["decoder_token_ids"], -1, 1), x["decoder_padding_mask"]
    for _ in range(count):
        yield x, y, weight.astype("float32")


class Watch(keras.callbacks.Callback):
    """Keeps weights and optimizer state after each step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        state = {v.path: to_numpy(v) for v in self.model.weights}
        state["iterations"] = int(self.model.optimizer.iterations)
        for v in self.model.optimizer.variables:
            state["optimizer/" + v.path.partition("/")[2]] = to_numpy(v)
        self.steps.append(state)


def run(steps, warmup, lm=None, callbacks=()):
    lm = lm or compiled()
    watch = Watch()
    every = [watch, *([CrossAttentionWarmup(warmup)] if warmup else []), *callbacks]
    lm.fit(batches(steps), steps_per_epoch=steps, callbacks=every, verbose=0)
    return lm, watch.steps


def compiled():
    one = {"windows": (8,)}  # a layer a side: compiling is the cost
    lm = tiny_lm(pair=PairSpec(tiny_encoder(**one), tiny_decoder(**one)))
    lm.compile(keras.optimizers.AdamW(1e-2, global_clipnorm=1.0))
    return lm


def changed(before, after):
    return {path for path, value in after.items() if not np.array_equal(value, before[path])}


@pytest.fixture(scope="module")
def steps():
    return run(5, warmup=3)[1]


@pytest.mark.slow
def test_only_cross_attention_trains_for_k_steps(steps):
    lm = compiled()
    start = {w.path: to_numpy(w) for w in lm.weights}
    state = {path for path in steps[0] if path not in start and "iteration" not in path}
    for after in steps[:3]:
        weights = {path: after[path] for path in start}
        assert changed(start, weights) == {path for path in start if is_new(path)}
        for path in state:
            if not is_new(path) and "learning_rate" not in path:
                assert not after[path].any(), path


@pytest.mark.slow
def test_then_everything_trains(steps):
    weights = {w.path for w in compiled().weights}
    assert changed(steps[2], steps[3]) >= weights


def test_all_weights_can_train_after_fit():
    lm, _ = run(1, warmup=3)
    assert len(lm.trainable_variables) == len(lm.weights)


@pytest.mark.slow
def test_phases_follow_the_optimizers_steps(steps):
    """Two fits of the same run are one."""
    lm, first = run(2, warmup=3)
    _, second = run(3, warmup=3, lm=lm)
    for expected, actual in zip(steps, first + second, strict=True):
        assert not changed(expected, actual)


@pytest.mark.slow
def test_fits_again_without_it():
    lm, _ = run(1, warmup=3)
    _, after = run(1, warmup=None, lm=lm)
    assert len(after) == 1


@pytest.mark.parametrize("bad", [0, -1, 2.5])
def test_steps_out_of_range(bad):
    with pytest.raises(ValueError, match="Expected steps of at least 1"):
        CrossAttentionWarmup(bad)


def test_steps_in_packs():
    lm = tiny_lm()
    lm.compile(steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution \\(2\\) divides"):
        lm.fit(batches(2), callbacks=[CrossAttentionWarmup(3)], verbose=0)


NO_TORCH = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras refuses steps_per_execution on PyTorch"
)


def by_twos(warmup, epochs):
    """Five batches an epoch, in calls of 2, 2 and 1; the states after each call."""
    lm, watch = compiled(), Watch()
    lm.compile(keras.optimizers.AdamW(1e-2), steps_per_execution=2)
    (x, y, weight), *_ = batches(1)
    x = {name: np.tile(value, (5, 1)) for name, value in x.items()}
    y, weight = np.tile(y, (5, 1)), np.tile(weight, (5, 1))
    callbacks = [watch, CrossAttentionWarmup(warmup)]
    options = {"batch_size": 2, "epochs": epochs, "verbose": 0, "callbacks": callbacks}
    lm.fit(x, y, sample_weight=weight, **options)
    return lm, watch.steps


def assert_switches_at(steps, states):
    """Weights of the pretrained models move in the call behind `steps` steps, not before."""
    assert steps in [state["iterations"] for state in states]
    for before, after in itertools.pairwise(states):
        old = {path for path in changed(before, after) if "/" in path and not is_new(path)}
        old = {path for path in old if not path.startswith("optimizer/")}
        assert bool(old) == (before["iterations"] >= steps), before["iterations"]


@pytest.mark.slow
@NO_TORCH
def test_short_last_calls_are_not_counted_as_whole_ones():
    """They were: of 10 steps in calls of 2, 2 and 1, the ninth was the last."""
    _, states = by_twos(warmup=10, epochs=3)
    assert [state["iterations"] for state in states] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert_switches_at(10, states)


@NO_TORCH
def test_steps_that_end_inside_a_call():
    """The sixth step is in a call with the seventh."""
    with pytest.raises(ValueError, match="epochs of 5 batches, in which they end 1 into one"):
        by_twos(warmup=6, epochs=2)


@pytest.mark.slow
def test_steps_that_an_optimizer_skips_do_not_count():
    """The first gradients are too large for float32: the scale is halved until they are not."""
    lm = compiled()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-4), 2.0**127)
    lm.compile(optimizer, loss=FusedCrossEntropy(z_loss=10.0))
    _, states = run(9, warmup=3, lm=lm)
    assert [state["iterations"] for state in states].count(0) >= 2
    assert_switches_at(3, states)
