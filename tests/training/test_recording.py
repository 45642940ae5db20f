"""What a run says of itself: tokens to the last one, and the truth where it did not end well."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, pad, tiny_backbone, tiny_lm
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.testing.stops import StopAfter, Stopped
from keras_encdec.training import Checkpoint
from keras_encdec.training.trainer import TokenCount

# Threads of Orbax outlive the loop that they report to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SOURCE, TARGET = range(1, 11), (5, 1, 4, 2, 2, 9, 3, 3, 6, 7)
READ, WRITTEN = 55, 42  # 1 + 2 + ... + 10, and the sum of TARGET
ONE_LAYER = {"windows": (8,)}


def model(**options):
    lm = tiny_lm(pair=PairSpec(tiny_encoder(**ONE_LAYER), tiny_decoder(**ONE_LAYER)))
    lm.compile(keras.optimizers.SGD(1e-2), **options)
    return lm


def data(padding=0):
    x = make_inputs(SOURCE, TARGET)
    for side in ("encoder", "decoder"):
        x = pad(x, side, right=padding, token=7)
    y, weight = np.roll(x["decoder_token_ids"], -1, 1), x["decoder_padding_mask"]
    return {"x": x, "y": y, "sample_weight": weight.astype("float32")}


def fit(lm, folder=None, fail_at=None, epochs=1, padding=0, **options):
    callbacks = [Checkpoint(folder, every=1)] if folder else []
    callbacks += [StopAfter(fail_at)] if fail_at else []
    options = {"batch_size": 2, "verbose": 0, "shuffle": False, **options}
    return lm.fit(**data(padding), epochs=epochs, callbacks=callbacks, **options)


def runs(lm):
    return [entry for entry in lm.provenance["history"] if entry["what"] == "fit"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "padding", "parts"), [(2, 0, 1), (3, 5, 1), (10, 0, 1), (4, 3, 2), (64, 0, 1)]
)
def test_tokens_do_not_depend_on_batches_or_padding(batch_size, padding, parts):
    lm = model(gradient_accumulation_steps=parts)
    fit(lm, batch_size=batch_size, padding=padding, epochs=3, shuffle=True)
    (run,) = runs(lm)
    assert run["tokens"] == {"encoder": 3 * READ, "decoder": 3 * WRITTEN}
    assert run["batches"] == run["steps"] == 3 * -(-10 // batch_size)
    assert (run["state"], run["epochs"], run["data"]["kind"]) == ("finished", 3, "model inputs")


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_tokens_of_pairs_are_those_of_the_tokenizer(packing):
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    size = {**ONE_LAYER, "vocabulary_size": 4096}
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    lm = EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 20, packing=packing))
    lm.compile(keras.optimizers.SGD(1e-2))
    read, written = ["Adds two arrays.", "A text", "Sums."], ["Adds.", "Another text.", "x y z"]
    lm.fit(read, written, batch_size=2, epochs=2, verbose=0)
    (run,) = runs(lm)
    # The encoder reads its text alone, the decoder <bos> and its target.
    assert run["tokens"] == {
        "encoder": 2 * sum(len(tokenizer(text)) for text in read),
        "decoder": 2 * sum(1 + len(tokenizer(text)) for text in written),
    }
    assert run["data"]["packing"] is packing
    assert run["data"]["objective"] is None


@pytest.mark.slow
def test_what_is_evaluated_is_not_trained_on():
    lm = model()
    fit(lm, validation_data=tuple(data().values()))
    lm.evaluate(**data(), verbose=0)
    (run,) = runs(lm)
    assert run["tokens"] == {"encoder": READ, "decoder": WRITTEN}
    assert "val_loss" in run["last"]


@pytest.mark.slow
def test_losses_are_of_the_first_batch_and_of_the_last_epoch():
    lm = model()
    two = {"x": {k: v[:2] for k, v in data()["x"].items()}, "y": data()["y"][:2]}
    before = lm.evaluate(
        **two, sample_weight=data()["sample_weight"][:2], verbose=0, return_dict=True
    )
    losses = fit(lm, epochs=2).history["loss"]
    (run,) = runs(lm)
    assert run["first"]["loss"] == pytest.approx(before["loss"], rel=1e-6)
    assert run["last"]["loss"] == pytest.approx(losses[-1], rel=1e-6)
    assert losses[0] > losses[-1]
    assert set(run["versions"]) == {"keras-encdec", "keras", "keras-hub", keras.backend.backend()}
    assert run["optimizer"] == "SGD"
    assert run["learning_rate"] == pytest.approx(1e-2)


def test_a_run_that_fails_says_how_far_it_came():
    lm = model()
    with pytest.raises(Stopped):
        fit(lm, fail_at=3)
    (run,) = runs(lm)
    assert (run["state"], run["steps"], run["batches"]) == ("stopped", 3, 3)
    rows = 6  # of three batches, in their order
    assert run["tokens"] == {"encoder": sum(SOURCE[:rows]), "decoder": sum(TARGET[:rows])}
    fit(lm)
    assert [run["state"] for run in runs(lm)] == ["stopped", "finished"]
    assert runs(lm)[1]["steps"] == 5


def test_a_run_of_no_step_says_nothing():
    lm = model()
    bad = data()
    bad["y"] = bad["y"] + 1000
    with pytest.raises(ValueError, match="Expected label"):
        lm.fit(**bad, verbose=0)
    lm.fit(**data(), epochs=0, verbose=0)
    assert runs(lm) == []


def without_dates(run):
    return {k: v for k, v in run.items() if k not in ("date", "ended", "resumed")}


@pytest.mark.slow
def test_a_run_that_goes_on_in_another_process_is_one_run(tmp_path):
    whole = model()
    fit(whole, epochs=2)
    with pytest.raises(Stopped):
        fit(model(), tmp_path / "run", fail_at=7, epochs=2)
    resumed = model()
    fit(resumed, tmp_path / "run", epochs=2)
    (once,), (twice,) = runs(whole), runs(resumed)
    assert without_dates(once) == without_dates(twice)
    assert len(twice["resumed"]) == 1
    fit(resumed, tmp_path / "run", epochs=2)  # nothing is left of it
    assert without_dates(runs(resumed)[0]) == without_dates(once)


@pytest.mark.slow
def test_a_checkpoint_that_is_restored_says_what_it_had_seen(tmp_path):
    fit(model(), tmp_path / "run", epochs=2)
    lm = model()
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.restore(lm, checkpoint.saved_steps()[0])
    (run,) = runs(lm)
    steps = checkpoint.saved_steps()[0]
    assert (run["state"], run["steps"]) == ("stopped", steps)
    rows = 2 * (steps - 5)  # of the second epoch
    assert run["tokens"]["encoder"] == READ + sum(SOURCE[:rows])
    assert run["tokens"]["decoder"] == WRITTEN + sum(TARGET[:rows])


def test_steps_taken_by_hand_are_counted():
    lm = model()
    for _ in range(2):
        lm.train_on_batch(**data())
    last = lm.provenance["history"][-1]
    assert (last["what"], last["times"]) == ("train_on_batch", 2)


def test_counts_stay_exact_beyond_float32():
    count = TokenCount()
    count.high.assign([1, 3])
    count.low.assign([2**24 - 1, 5])
    count.update_state(np.ones((2, 2), "int32"), np.array([[1, 2, 0]]))
    assert count.counts() == {"encoder": 2**25 + 3, "decoder": 3 * 2**24 + 7}
    assert count.count() == 2**25 + 3 + 3 * 2**24 + 7
