"""Losses of preferred answers: values by hand, and what a pair makes of two answers to an input."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_encdec import training
from keras_encdec.models import EncDecBackbone
from keras_encdec.spec import CrossAttentionSpec
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training.preferences import Answers
from keras_encdec.training.reward_trainer import Rewarded
from keras_encdec.training.token_likelihood import token_log_likelihoods

ROWS, LENGTH, WIDTH, WORDS = 3, 7, 16, 50


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def some_answers(seed=0, rows=5):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, (rows, 2)).astype("float32")
    log_probs, reference = -lengths * rng.uniform(0.1, 3, (2, rows, 2))
    is_good = np.array([1, 0, 1, 1, 0], "float32")[:rows]
    weight = np.array([1, 2, 0, 1, 0.5], "float32")[:rows]
    return log_probs, lengths, weight, reference, is_good


def by_hand(loss, log_probs, lengths, weight, reference, is_good):
    """The formulas, in float64."""
    ratios, means = log_probs - reference, log_probs / lengths
    if isinstance(loss, training.DPO):
        margin = loss.beta * (ratios[:, 0] - ratios[:, 1])
        e = loss.label_smoothing
        return -(1 - e) * log_sigmoid(margin) - e * log_sigmoid(-margin)
    if isinstance(loss, training.IPO):
        each = ratios / lengths
        return (each[:, 0] - each[:, 1] - 1 / (2 * loss.beta)) ** 2
    if isinstance(loss, training.SimPO):
        return -log_sigmoid(loss.beta * (means[:, 0] - means[:, 1]) - loss.gamma)
    if isinstance(loss, training.ORPO):
        odds = np.log(np.exp(means) / (1 - np.exp(means)))
        return -means[:, 0] - loss.weight * log_sigmoid(odds[:, 0] - odds[:, 1])
    z = max(0.0, ratios[weight > 0, 1].mean())
    good = 1 - np.exp(log_sigmoid(loss.beta * (ratios[:, 0] - z)))
    bad = 1 - np.exp(log_sigmoid(loss.beta * (z - ratios[:, 0])))
    return np.where(is_good > 0, loss.wanted_weight * good, loss.unwanted_weight * bad)


LOSSES = [
    training.DPO(beta=0.3),
    training.DPO(beta=0.1, label_smoothing=0.2),
    training.IPO(beta=0.2),
    training.KTO(beta=0.4, wanted_weight=1.5, unwanted_weight=0.7),
    training.ORPO(weight=0.3),
    training.SimPO(beta=2.0, gamma=0.8),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_values_by_hand(loss):
    given = some_answers()
    found = ops.convert_to_numpy(loss(Answers(*(ops.cast(a, "float32") for a in given))))
    np.testing.assert_allclose(found, by_hand(loss, *given), rtol=1e-5)


OF_TRL = {
    "DPO": training.DPO(beta=0.3),
    "IPO": training.IPO(beta=0.2),
    "KTO": training.KTO(beta=0.4, wanted_weight=1.5, unwanted_weight=0.7),
    "ORPO": training.ORPO(weight=0.3),
    "SimPO": training.SimPO(beta=2.0, gamma=0.8),
}


@pytest.fixture(scope="module")
def trl():
    with np.load(Path(__file__).parents[1] / "parity" / "trl_losses.npz") as found:
        return {name: array.astype("float32") for name, array in found.items()}


@pytest.mark.parametrize("name", OF_TRL)
def test_values_and_gradients_are_those_of_trl(name, trl):
    log_probs = keras.Variable(trl["log_probs"])
    others = [ops.convert_to_tensor(trl[n]) for n in ("lengths", "reference", "is_good")]

    def mean():
        lengths, reference, is_good = others
        weight = ops.ones_like(is_good)
        given = Answers(log_probs + 0.0, lengths, weight, reference, is_good)
        return ops.mean(OF_TRL[name](given))

    value, (gradient,) = value_and_gradients(mean, [log_probs])
    assert value == pytest.approx(trl[f"{name}_loss"], rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, trl[f"{name}_gradient"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "center"), [("plain", 0.01), ("margin", 0.1)])
def test_rewards_are_compared_as_in_trl(name, center, trl):
    rewards = keras.Variable(trl[f"{name}_rewards"])
    margin = ops.convert_to_tensor(trl[f"{name}_margin"])

    def mean():
        return ops.mean(training.BradleyTerry(center)(Rewarded(rewards + 0.0, margin)))

    value, (gradient,) = value_and_gradients(mean, [rewards])
    assert value == pytest.approx(trl[f"{name}_reward_loss"], rel=1e-6)
    np.testing.assert_allclose(gradient, trl[f"{name}_reward_gradient"], atol=1e-6)


def test_a_certain_answer_has_finite_odds():
    certain = ops.convert_to_tensor(np.array([[0.0, -1e-9]], "float32"))
    ones = ops.ones((1, 2))
    variable = keras.Variable(certain)
    loss = training.ORPO()
    value, (gradient,) = value_and_gradients(
        lambda: ops.sum(loss(Answers(variable + 0.0, ones, ops.ones((1,))))), [variable]
    )
    assert np.isfinite(value)
    assert np.isfinite(ops.convert_to_numpy(gradient)).all()


def embedding_and_states(cap):
    rng = np.random.default_rng(0)
    embedding = keras.layers.ReversibleEmbedding(WORDS, WIDTH, logit_soft_cap=cap)
    embedding.build()
    embedding.embeddings.assign(rng.normal(size=(WORDS, WIDTH)))
    states = keras.Variable(rng.normal(size=(ROWS, LENGTH, WIDTH)), dtype="float32")
    labels = rng.integers(0, WORDS, (ROWS, LENGTH)).astype("int32")
    weights = (np.arange(LENGTH) < np.array([7, 4, 1])[:, None]).astype("float32")
    return embedding, states, labels, weights


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_likelihoods_of_tokens_and_any_gradient(cap, trains, temperature):
    """In chunks of two tokens a row: as of whole logits, whatever is made of them."""
    embedding, states, labels, weights = embedding_and_states(cap)
    factor = ops.convert_to_tensor(np.array([2.0, -1.0, 0.5], "float32"))
    embedding.trainable = trains
    trained = [states, embedding.embeddings] if trains else [states]

    def ours():
        options = {"temperature": temperature, "chunk_tokens": 6}
        found = token_log_likelihoods(states + 0.0, embedding, labels, weights, **options)
        return ops.sum(factor[:, None] * ops.tanh(found / 10))

    def plain():
        logits = ops.matmul(states + 0.0, ops.transpose(embedding.embeddings + 0.0))
        logits = logits if cap is None else cap * ops.tanh(logits / cap)
        likely = ops.log_softmax(logits / temperature)
        found = ops.take_along_axis(likely, labels[..., None], axis=-1)[..., 0]
        return ops.sum(factor[:, None] * ops.tanh(ops.multiply(found, weights) / 10))

    (one, by_one), (other, by_other) = (value_and_gradients(f, trained) for f in (ours, plain))
    np.testing.assert_allclose(float(one), float(other), rtol=1e-5)
    for a, b in zip(by_one, by_other, strict=True):
        np.testing.assert_allclose(*map(ops.convert_to_numpy, (a, b)), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
def test_answers_that_share_an_input_are_those_of_repeated_inputs(merged):
    encoder = tiny_encoder(width=tiny_decoder().width)  # as merged attention needs it
    cross_attention = CrossAttentionSpec(merged=merged)
    backbone = EncDecBackbone(encoder, tiny_decoder(), cross_attention=cross_attention)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(1, 30, (2, 9)), np.ones((2, 9), "int32")
    mask[1, 6:] = 0
    targets, there = rng.integers(1, 30, (6, 5)), np.ones((6, 5), "int32")
    there[2, 3:] = 0
    states = backbone.encoder(ids, mask)
    shared = backbone.decoder(targets, there, states, mask)
    repeated = backbone.decoder(
        targets, there, ops.repeat(states, 3, axis=0), np.repeat(mask, 3, axis=0)
    )
    found, expected = (ops.convert_to_numpy(x)[there > 0] for x in (shared, repeated))
    np.testing.assert_allclose(found, expected, atol=1e-5)
