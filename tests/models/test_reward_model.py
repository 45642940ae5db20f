"""A pair as a reward model: numbers by hand, what it learns, and how it comes back."""

import keras
import numpy as np
import pytest
from keras import ops
from seen import pair_of_texts

import keras_encdec
from keras_encdec import training
from keras_encdec.models import EncDecRewardModel
from keras_encdec.training.reward_trainer import Rewarded

PROMPTS = ["Returns the sum.", "Sort an array.", "Mean of values.", "Write."]
CHOSEN = ["Of all values.", "In place.", "Of an axis.", "To a file."]
REJECTED = ["None.", "No.", "It is a mean.", "x"]
COLUMNS = {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}
SIDES = ["decoder", "encoder"]


def make(reads="decoder", **options):
    keras.utils.set_random_seed(0)
    lm = pair_of_texts()
    return EncDecRewardModel(lm.backbone, lm.preprocessor, reads=reads, **options)


@pytest.fixture(scope="module", params=SIDES)
def model(request):
    return make(request.param)


def by_hand(model, prompts, answers):
    """One row at a time, without padding; the embedding of each text by the tokenizer."""
    tokenizer, backbone = model.preprocessor.tokenizer, model.backbone
    start, end = tokenizer.start_token_id, tokenizer.end_token_id
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        read, written = list(tokenizer(prompt)), list(tokenizer(answer))
        if model.reads == "encoder":
            read = [*read, *written, end]
        ids = np.array([read])
        states = backbone.encoder(ids, np.ones_like(ids))
        if model.reads == "decoder":
            target = np.array([[start, *written]])
            states = backbone.decoder(target, np.ones_like(target), states, np.ones_like(ids))
        last = ops.convert_to_numpy(states)[0, -1].astype("float64")
        kernel, bias = map(ops.convert_to_numpy, (model.head.kernel, model.head.bias))
        found.append(float(last @ kernel[:, 0].astype("float64") + bias[0]))
    return np.array(found)


def test_rewards_by_hand(model):
    expected = by_hand(model, PROMPTS, CHOSEN)
    np.testing.assert_allclose(model.score(PROMPTS, CHOSEN), expected, atol=2e-5)
    np.testing.assert_allclose(model.score(PROMPTS, CHOSEN, batch_size=3), expected, atol=2e-5)
    assert np.ptp(expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("margin", [None, [1.0, 0.0, 2.0, 0.5]])
def test_a_loss_by_hand(model, margin):
    model.compile(loss=training.BradleyTerry(center=0.1))
    columns = COLUMNS if margin is None else {**COLUMNS, "margin": margin}
    weight = np.array([1.0, 0.5, 0.0, 2.0])
    better, worse = (by_hand(model, PROMPTS, some) for some in (CHOSEN, REJECTED))
    ahead = better - worse - (0 if margin is None else np.array(margin))
    losses = np.logaddexp(0, -ahead) + 0.1 * (better + worse) ** 2
    for size in (1, 3, 4):
        found = model.evaluate(
            columns, sample_weight=weight, batch_size=size, verbose=0, return_dict=True
        )
        assert found["loss"] == pytest.approx((losses * weight).sum() / weight.sum(), rel=1e-4)
        right = ((better > worse) * weight).sum() / weight.sum()
        assert found["accuracy"] == pytest.approx(right, rel=1e-6)
        margins = ((better - worse) * weight).sum() / weight.sum()
        assert found["margin"] == pytest.approx(margins, rel=1e-3, abs=1e-5)


def test_the_formula():
    rewards = np.array([[1.0, 3.0], [2.0, -1.0]], "float32")
    loss = training.BradleyTerry(center=0.5)
    found = ops.convert_to_numpy(loss(Rewarded(ops.convert_to_tensor(rewards))))
    np.testing.assert_allclose(found, [np.log1p(np.exp(2)) + 8, np.log1p(np.exp(-3)) + 0.5], 1e-6)


def test_it_learns_and_comes_back(tmp_path):
    model = make()
    model.compile(keras.optimizers.Adam(1e-3))
    history = model.fit(COLUMNS, batch_size=2, epochs=12, verbose=0).history
    assert history["accuracy"][-1] == 1
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    folder = str(tmp_path / "reward")
    model.save_to_preset(folder)
    again = EncDecRewardModel.from_preset(folder)
    np.testing.assert_array_equal(again.score(PROMPTS, CHOSEN), model.score(PROMPTS, CHOSEN))


def test_only_the_encoder_trains_where_it_is_read():
    model = make("encoder")
    before = [np.array(v) for v in model.backbone.decoder.blocks[0].weights]
    model.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1))
    model.fit(COLUMNS, epochs=1, verbose=0)
    for variable, value in zip(model.backbone.decoder.blocks[0].weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_what_cannot_be(model):
    with pytest.raises(ValueError, match="Expected columns prompt, chosen and rejected"):
        model.fit(PROMPTS)
    with pytest.raises(ValueError, match="prompt, chosen and rejected to train"):
        model.fit({"prompt": PROMPTS, "completion": CHOSEN})
    with pytest.raises(ValueError, match="completion to predict"):
        model.predict(COLUMNS)
    with pytest.raises(ValueError, match=r"Expected a keras_encdec\.training\.BradleyTerry"):
        model.compile(loss="mse")
    with pytest.raises(ValueError, match="reads"):
        make("both")
    assert keras_encdec.training.BradleyTerry() == training.BradleyTerry(0.01)


def test_a_number_is_a_learning_rate():
    """As the examples write it, for each kind of task."""
    lm = pair_of_texts()
    for task in (lm, EncDecRewardModel(lm.backbone, lm.preprocessor)):
        task.compile(3e-4)
        optimizer = task.optimizer
        assert isinstance(optimizer, keras.optimizers.AdamW)
        assert float(optimizer.learning_rate) == pytest.approx(3e-4)
        assert optimizer.global_clipnorm == 1.0
        for wrong in (0, -1e-4, float("nan")):
            with pytest.raises(ValueError, match="Expected optimizer as a learning rate"):
                task.compile(wrong)
