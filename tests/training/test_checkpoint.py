"""A resumed run ends as one that nobody interrupted, bit for bit."""

import errno
import json
import os
import resource
import shutil
import signal
import types
from pathlib import Path

import keras
import numpy as np
import orbax.checkpoint
import pytest

from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_lm, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.testing.stops import StopAfter, Stopped
from keras_encdec.training import Checkpoint, CrossAttentionWarmup
from keras_encdec.training.checkpoint_about import check_same, model_facts

# Threads of Orbax outlive the loop that they report to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

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
    keras.utils.set_random_seed(0)  # PyTorch's dropout draws from its own generator
    lm.compile(optimizer or keras.optimizers.AdamW(1e-2, global_clipnorm=1.0))
    return lm


def fit(lm, folder=None, kill=None, epochs=3, warmup=None, checkpoint=None, **kwargs):
    x, y, weight = kwargs.pop("data", data())
    folder = folder and Checkpoint(folder, **{"every": 2, **(checkpoint or {})})
    callbacks = [
        *([folder] if folder else []),
        *([CrossAttentionWarmup(warmup)] if warmup else []),
        *([StopAfter(kill + 1)] if kill is not None else []),
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


@pytest.mark.slow
@pytest.mark.parametrize("kill", [1, 8, 12])
def test_resumed_in_any_phase(whole, tmp_path, kill):
    """In warm-up, at an epoch's end, past the switch: with dropout, warm-up and metrics."""
    lm, history = whole
    with pytest.raises(Stopped):
        fit(model(), tmp_path / "run", kill=kill, warmup=7)
    again = model()
    rest = fit(again, tmp_path / "run", warmup=7)
    assert_identical(lm, again)
    rest.pop("tokens_per_second")  # the clock's
    for name, values in rest.items():
        np.testing.assert_allclose(values, history[name][-len(values) :], rtol=1e-6)


@pytest.mark.long
def test_a_finished_run_is_left_alone(whole, tmp_path):
    fit(model(), tmp_path / "run", epochs=1)
    again = model()
    assert not fit(again, tmp_path / "run", epochs=1)
    fit(again, tmp_path / "run", epochs=3)
    plain = model()
    fit(plain, tmp_path / "other", epochs=3)
    assert_identical(plain, again)


@pytest.mark.slow
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


@pytest.mark.slow
def test_best_of_a_log_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="Received: 'val_loss'"):
        fit(model(), tmp_path / "run", checkpoint={"best": "val_loss"})


@pytest.mark.slow
def test_restores_into_other_weights_and_not_only_some(tmp_path):
    """keras-team/keras issue 23251: weights that were saved under other paths stayed behind."""
    fit(saved := model(), tmp_path / "run", epochs=1)
    other = model()
    for variable in other.variables:
        variable.assign(np.ones(variable.shape))
    other.optimizer.build(other.trainable_variables)
    assert Checkpoint(tmp_path / "run").restore(other) == (1, 0)
    assert_identical(saved, other)


@pytest.mark.slow
def test_of_another_pair(tmp_path):
    fit(model(), tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="pair differs: encoder, feedforward_dim, 80 there, 64"):
        fit(model(feedforward_dim=64), tmp_path / "run")


@pytest.mark.slow
def test_of_another_optimizer(tmp_path):
    fit(model(), tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="'AdamW' there, 'SGD' here"):
        fit(model(keras.optimizers.SGD()), tmp_path / "run")


@pytest.mark.slow
def test_damaged(tmp_path):
    fit(model(), tmp_path / "run", epochs=1)
    for file in (tmp_path / "run" / "5" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"run/5, which cannot be read .* to go on from \[4\]"):
        fit(model(), tmp_path / "run")


@pytest.mark.long
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


@pytest.mark.slow
def test_a_loss_of_nan(tmp_path):
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


@pytest.mark.slow
def test_a_loss_of_nan_without_a_checkpoint():
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
    with pytest.raises(ValueError, match=f"Expected {next(iter(bad))}"):
        Checkpoint(tmp_path, **bad)


# Where it lies.


@pytest.mark.parametrize("folder", ["gs://bucket/run", "s3://bucket/run"])
def test_a_url_goes_to_orbax_and_not_to_the_disk(tmp_path, monkeypatch, folder):
    opened = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        orbax.checkpoint,
        "CheckpointManager",
        lambda path, **options: opened.append(path) or FakeManager(),
    )
    checkpoint = Checkpoint(folder)
    assert checkpoint.saved_steps() == [4, 5]
    assert [str(path) for path in opened] == [folder]
    assert str(checkpoint.folder / "5") == f"{folder}/5"
    assert not list(tmp_path.iterdir())


def test_a_local_folder_is_that_of_when_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint("run")
    monkeypatch.chdir("/")
    assert os.fspath(checkpoint.folder) == str(tmp_path / "run")


@pytest.mark.parametrize("folder", ["hdfs://host/run", "file:///run", Path("gs://bucket/run")])
def test_a_url_that_orbax_does_not_know(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a URL as text, such as 'gs://bucket/run'"):
        Checkpoint(folder)


@pytest.mark.parametrize("name", ["run[v1]", "run*", "what?"])
def test_a_name_that_orbax_takes_for_a_pattern(tmp_path, name):
    """It wrote `run[v1]`, and could not read it."""
    with pytest.raises(ValueError, match=r"without '\*', '\?' and '\[' in its path"):
        Checkpoint(tmp_path / name)


# What an error means.


class FakeManager:
    """Orbax' manager of two checkpoints, which fails with an error."""

    def __init__(self, error=None):
        self.error = error

    def all_steps(self, read=False):
        return [5, 4]

    def latest_step(self):
        return 5

    def check_for_errors(self):
        if self.error is not None:
            raise self.error

    def restore(self, step, args):
        raise self.error

    def close(self):
        pass

    wait_until_finished = check_for_errors


def caused(error, cause):
    error.__cause__ = cause
    return error


# As TensorStore says it, shortened.
NO_SPACE = (
    'RESOURCE_EXHAUSTED: Error writing "model.0/0.0" in OCDBT database: Failed to write 160998 '
    "bytes to file 7: No space left on device [os_error_code='28'] [tensorstore_spec='{...}']"
)
UNSUPPORTED = "Unsupported type: <class 'object'> for key: ('model', '0')."
OF_THE_DISK = {
    "no space": OSError(errno.ENOSPC, "No space left on device"),
    "read only": OSError(errno.EROFS, "Read-only file system"),
    "no right": PermissionError(errno.EACCES, "Permission denied"),
    "TensorStore's": ValueError(NO_SPACE),
    "behind others": caused(RuntimeError("A thread failed."), OSError(errno.EDQUOT, "Quota")),
}
OF_SOMETHING_ELSE = {
    "a value": ValueError(UNSUPPORTED),
    "memory of a device": RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
    "the network": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "the cloud": ValueError("UNAVAILABLE: HTTP 503 from storage"),
    "a bug": KeyError("state"),
}


def failing(tmp_path, error):
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.folder.joinpath("5", "about").mkdir(parents=True)
    checkpoint._manager = FakeManager(error)
    return checkpoint


@pytest.mark.parametrize("kind", OF_THE_DISK)
def test_an_error_of_the_disk_in_writing(tmp_path, kind):
    checkpoint = failing(tmp_path, OF_THE_DISK[kind])
    with pytest.raises(OSError, match=r"last good one \(step 5\) is as it was: mend the disk") as e:
        checkpoint.close()
    assert e.value.__cause__ is OF_THE_DISK[kind]
    assert "tensorstore_spec" not in str(e.value)
    checkpoint.close()  # what has failed is not waited for again


@pytest.mark.parametrize("kind", OF_SOMETHING_ELSE)
def test_any_other_error_in_writing_stays_itself(tmp_path, kind):
    """An error of memory was advice to mend the disk."""
    with pytest.raises(Exception) as e:  # noqa: PT011
        failing(tmp_path, OF_SOMETHING_ELSE[kind]).close()
    assert e.value is OF_SOMETHING_ELSE[kind]
    assert "mend" not in str(e.value)
    assert f"writing to {tmp_path / 'run'}" in e.value.__notes__[-1]


@pytest.mark.parametrize("kind", OF_SOMETHING_ELSE | OF_THE_DISK)
def test_other_errors_in_reading_delete_nothing(tmp_path, kind):
    """A lost connection was advice to delete the checkpoint."""
    error = (OF_SOMETHING_ELSE | OF_THE_DISK)[kind]
    with pytest.raises(Exception) as e:  # noqa: PT011
        failing(tmp_path, error).restore(model())
    assert e.value is error
    assert "Delete" not in str(e.value)
    assert f"reading {tmp_path / 'run' / '5'}" in e.value.__notes__[-1]


def cut(file):
    file.write_bytes(file.read_bytes()[:9])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("about/metadata", cut),
        ("about/metadata", Path.unlink),
        ("state/_METADATA", cut),  # Orbax reads without it
        ("state/manifest.ocdbt", cut),
        ("state/manifest.ocdbt", Path.unlink),
    ],
)
def test_damage_of_each_kind(saved, tmp_path, file, damage):
    shutil.copytree(saved, tmp_path / "run")
    damage(tmp_path / "run" / "5" / file)
    other = model()
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(ValueError, match=r"run/5, which cannot be read .* to go on from \[4\]"):
        Checkpoint(tmp_path / "run").restore(other)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    fit(model(), folder, epochs=1)
    return folder


def test_of_another_program(tmp_path):
    """Its folder was to be deleted."""
    with orbax.checkpoint.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, args=orbax.checkpoint.args.StandardSave({"a": np.ones(2)}))
    with pytest.raises(ValueError, match=r"checkpoint of keras_encdec.*run/3, without its 'about'"):
        Checkpoint(tmp_path / "run").restore(model())


def test_the_error_that_ended_fit_is_the_one_that_is_raised(tmp_path):
    """An error of the last write took its place."""
    checkpoint = failing(tmp_path, OF_THE_DISK["no space"])
    with pytest.warns(UserWarning, match="last checkpoint was not written: .*mend the disk"):
        checkpoint.on_fit_interrupted()


# Batches, where Keras counts calls.


@pytest.mark.parametrize(
    ("steps", "offset", "every", "expected"),
    [
        (5, 0, 1, [2, 4]),  # calls of 2, 2 and 1 batches; the last is the epoch's end
        (5, 0, 3, [4]),
        (3, 2, 1, [4]),  # what is left of it after batch 2
        (4, 0, 1, [2]),
        (1, 4, 1, []),
    ],
)
def test_places_are_counted_in_batches(tmp_path, steps, offset, every, expected):
    checkpoint, places = Checkpoint(tmp_path / "run", every=every), []
    checkpoint._manager, checkpoint._offset = FakeManager(), offset
    checkpoint.save = lambda epoch, batch, metrics=None: places.append(batch)
    checkpoint.set_model(types.SimpleNamespace(steps_per_execution=2, metrics_variables=[]))
    checkpoint.set_params({"steps": steps})
    checkpoint.on_epoch_begin(0)
    for begin in range(0, steps, 2):
        checkpoint.on_train_batch_end(begin + 1, {"loss": 1.0})
    assert places == expected


def test_a_stream_by_several_steps_a_call(tmp_path):
    """A last call with 1 of 2 batches was saved as one of 2: the run went on behind its end."""
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.set_model(types.SimpleNamespace(steps_per_execution=2))
    checkpoint.set_params({"steps": None})
    with pytest.raises(ValueError, match="Give fit steps_per_epoch"):
        checkpoint.on_epoch_begin(0)


@pytest.mark.long
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras refuses it on PyTorch")
def test_resumed_by_several_steps_a_call(tmp_path):
    """Five batches by twos: the kill is in the second call of the second epoch."""

    def by_twos():
        lm = model()
        lm.compile(keras.optimizers.AdamW(1e-2), steps_per_execution=2)
        return lm

    plain, again = by_twos(), by_twos()
    fit(plain, tmp_path / "whole", epochs=2)
    with pytest.raises(Stopped):
        fit(by_twos(), tmp_path / "run", kill=4, epochs=2)
    assert Checkpoint(tmp_path / "run").saved_steps()[-1] == 9
    fit(again, tmp_path / "run", epochs=2)
    assert int(again.optimizer.iterations) == 10
    assert_identical(plain, again)


def test_a_pair_of_a_version_that_knew_fewer_fields_is_the_same():
    ours = model_facts(model())
    saved = json.loads(json.dumps(ours))
    for side in ("encoder", "decoder"):
        del saved["pair"][side]["experts"], saved["pair"][side]["attention"]["norm_across_heads"]
    check_same(saved, ours, "run")
    saved["pair"]["encoder"]["attention"]["norm_across_heads"] = True
    with pytest.raises(ValueError, match="run, where pair differs"):
        check_same(saved, ours, "run")
    saved["pair"]["encoder"] = {"width": 16}
    with pytest.raises(ValueError, match="run, where pair differs"):
        check_same(saved, ours, "run")
