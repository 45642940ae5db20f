"""What a run remembers of the call that made it, and what another call may change."""

import contextlib
import shutil
import warnings

import keras
import keras_hub
import numpy as np
import pytest

from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import UL2
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.testing.stops import StopAfter, Stopped
from keras_encdec.training import Checkpoint, FusedCrossEntropy

TEXTS = [f"Text {i} of some words, and of {i} more of them." for i in range(10)]
PAIRS = {"encoder_text": TEXTS, "decoder_text": [text[:9] for text in TEXTS]}


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


def make_lm(tokenizer, rate=1e-2, **compiled):
    size = {"windows": (8,), "vocabulary_size": tokenizer.vocabulary_size()}
    keras.utils.set_random_seed(0)
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    lm = EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 16))
    lm.compile(keras.optimizers.SGD(rate, momentum=0.9), **compiled)
    return lm


def fit(lm, folder, x=TEXTS, kill=None, epochs=1, **kwargs):
    callbacks = [Checkpoint(folder, every=1), *([StopAfter(kill)] if kill else [])]
    with contextlib.suppress(Stopped):
        return lm.fit(
            x, epochs=epochs, callbacks=callbacks, verbose=0, **{"batch_size": 2, **kwargs}
        ).history


def weights(lm):
    return [to_numpy(w) for w in lm.weights]


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """A run of one epoch, and a run that was killed in it; and the weights of the first."""
    folder = tmp_path_factory.mktemp("runs")
    lm = make_lm(tokenizer)
    fit(lm, folder / "whole")
    fit(make_lm(tokenizer), folder / "half", kill=3)
    return folder, weights(lm)


@pytest.fixture
def runs(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "runs")
    return tmp_path / "runs"


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.long
def test_a_finished_run_is_finished(whole, runs, tokenizer):
    lm = make_lm(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(lm, runs / "whole") == {}
        assert fit(lm, runs / "whole") == {}
    assert equal(weights(lm), whole[1])
    assert len(fit(lm, runs / "whole", epochs=2)["loss"]) == 1


@pytest.mark.slow
def test_a_run_killed_in_its_last_epoch_ends(whole, runs, tokenizer):
    lm = make_lm(tokenizer)
    assert len(fit(lm, runs / "half")["loss"]) == 1
    assert equal(weights(lm), whole[1])
    assert fit(lm, runs / "half") == {}


OTHERS = {
    "batch_size": {"batch_size": 5},
    "data": {"x": [*TEXTS[:-1], "Another."]},
    "shuffle": {"shuffle": False},
    "steps_per_epoch": {"steps_per_epoch": 5},
}
SET = {
    "seed": ("seed", 1),
    "packing": ("packing", True),
    "objective": ("objective", UL2()),
    "encoder_sequence_length": ("encoder_sequence_length", 24),
}


@pytest.mark.parametrize("name", [*OTHERS, *SET])
def test_other_batches_in_the_middle_of_an_epoch_are_refused(runs, tokenizer, name):
    lm = make_lm(tokenizer)
    if name in SET:
        setattr(lm.preprocessor, *SET[name])
    before = weights(lm)
    with pytest.raises(ValueError, match=f"(?s)go on as it was made.*another {name} "):
        fit(lm, runs / "half", **OTHERS.get(name, {}))
    assert equal(weights(lm), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHERS, *SET])
def test_at_the_end_of_one_they_are_said(runs, tokenizer, name):
    lm = make_lm(tokenizer)
    if name in SET:
        setattr(lm.preprocessor, *SET[name])
    with pytest.warns(UserWarning, match=f"goes on with another {name} ") as said:
        assert fit(lm, runs / "whole", epochs=2, **OTHERS.get(name, {}))["loss"]
    assert len([one for one in said if "goes on with" in str(one.message)]) == 1


COMPILED = {
    "loss": {"loss": FusedCrossEntropy(label_smoothing=0.1)},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "learning_rate": {"rate": 1e-5},
}


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="accumulation is JAX's")
@pytest.mark.parametrize("name", COMPILED)
def test_what_does_not_change_batches_is_said_and_taken(runs, tokenizer, name):
    lm = make_lm(tokenizer, **COMPILED[name])
    with pytest.warns(UserWarning, match=f"goes on with another {name} "):
        fit(lm, runs / "half")
    assert float(lm.optimizer.learning_rate) == pytest.approx(COMPILED[name].get("rate", 1e-2))


@pytest.mark.slow
def test_a_rate_that_a_callback_lowered_goes_on(tokenizer, tmp_path):
    class Lower(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 1e-4

    lm = make_lm(tokenizer)
    checkpoint = Checkpoint(tmp_path / "run")
    lm.fit(TEXTS, batch_size=2, verbose=0, callbacks=[Lower(), checkpoint])
    again = make_lm(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again.fit(
            TEXTS, batch_size=2, verbose=0, epochs=2, callbacks=[Checkpoint(tmp_path / "run")]
        )
    assert float(again.optimizer.learning_rate) == pytest.approx(1e-4)


@pytest.mark.slow
def test_arrays_and_pairs_are_told_apart_too(tokenizer, tmp_path):
    lm = make_lm(tokenizer)
    x, y, weight = lm.preprocessor(PAIRS)
    fit(lm, tmp_path / "arrays", x, y=y, sample_weight=weight, kill=2)
    other = np.array(y)
    other[0, 0] += 1
    with pytest.raises(ValueError, match="another data "):
        fit(make_lm(tokenizer), tmp_path / "arrays", x, y=other, sample_weight=weight)
    fit(make_lm(tokenizer), tmp_path / "pairs", PAIRS, kill=2)
    with pytest.raises(ValueError, match="another data "):
        fit(make_lm(tokenizer), tmp_path / "pairs", {**PAIRS, "decoder_text": TEXTS})
