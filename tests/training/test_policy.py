"""Losses of drawn answers: by hand, by trl, and their mean over all that can be drawn."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from keras import Variable, ops

from keras_encdec import training
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.training.policy import Drawn


def any_reward(prompts, texts, records):
    return [0.0] * len(texts)


def drawn(log_probs, old, there, rewards, reference=None, rows=None, weights=(1.0,)):
    """Of one reward (B, G), or of several (B, G, n)."""
    rewards = rewards[..., None] if np.ndim(rewards) == 2 else rewards
    rows = np.ones(len(there)) if rows is None else rows
    given = old, there, rewards, np.array(weights), 0 * there.sum(-1), rows
    given = [ops.cast(ops.convert_to_tensor(a), "float32") for a in given]
    return Drawn(log_probs, *given, None if reference is None else ops.cast(reference, "float32"))


def mean_loss(loss, given, there):
    """As `Trainer._mean` takes it."""
    counts = loss.row_weights(np.ones(len(there), "float32"), there.sum((1, 2)))
    return ops.sum(loss(given) * ops.cast(counts, "float32")) / float(counts.sum())


OF_TRL = {
    "RLOO": training.RLOO(any_reward, num_samples=4, kl=0.3),
    "tokens": training.GRPO(any_reward, num_samples=4, kl=0.3, reference="initial"),
    "length": training.GRPO(
        any_reward,
        num_samples=4,
        kl=0.3,
        reference="initial",
        epsilon_high=0.28,
        scale=None,
        normalize="length",
        max_length=9,
    ),
}


@pytest.mark.parametrize("name", OF_TRL)
def test_as_trl_has_it(name):
    kept = np.load(Path(__file__).parents[1] / "parity/trl_policies.npz")
    loss, there = OF_TRL[name], kept["there"].astype("float64")
    old = kept["log_probs"] if name == "RLOO" else kept["old"]
    said = Variable(kept["log_probs"], dtype="float32")

    def function():
        given = drawn(said + 0.0, old, there, kept["rewards"], kept["reference"])
        return mean_loss(loss, given, there)

    value, (gradient,) = value_and_gradients(function, [said])
    gradient = ops.convert_to_numpy(gradient) * there
    np.testing.assert_allclose(float(value), kept[f"{name}_loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, kept[f"{name}_gradient"], rtol=2e-5, atol=1e-6)


# A policy of two words, 0 to end and 1 to go on: the answers [0], [1, 0] and [1, 1].

ANSWERS = np.array([[0, 0], [1, 0], [1, 1]])
THERE = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
LOGITS = np.array([[0.3, -0.2], [-0.5, 0.4]])  # of the first word and of the second
REFERENCE = np.array([[0.1, 0.0], [0.6, -0.3]])
REWARDS = np.array([0.2, -1.0, 1.5])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def of_answers(logits):
    """(3, 2) log-probabilities of words, in float64."""
    return THERE * np.stack([log_softmax(logits)[i, ANSWERS[:, i]] for i in range(2)], axis=1)


def expected(logits, kl):
    """The reward less the divergence, over all answers."""
    said, by_reference = of_answers(logits).sum(1), of_answers(REFERENCE).sum(1)
    return (np.exp(said) * (REWARDS - kl * (said - by_reference))).sum()


def exact_gradient(kl, step=1e-5):
    found = np.zeros_like(LOGITS)
    for place in np.ndindex(*LOGITS.shape):
        more = np.zeros_like(LOGITS)
        more[place] = step
        found[place] = (expected(LOGITS + more, kl) - expected(LOGITS - more, kl)) / (2 * step)
    return found


UNBIASED = [
    (training.RLOO(any_reward, num_samples=2, kl=0.0, reference=None), 1.0),
    (training.RLOO(any_reward, num_samples=2, kl=0.7), 1.0),
    (training.RLOO(any_reward, num_samples=3, kl=0.7), 1.0),
    # Of a mean that holds the answer itself, over at most 2 words.
    (training.GRPO(any_reward, num_samples=3, scale=None, normalize="length", max_length=2), 1 / 3),
    (
        training.GRPO(
            any_reward,
            num_samples=2,
            kl=0.7,
            reference="initial",
            scale=None,
            normalize="length",
            max_length=2,
        ),
        1 / 4,
    ),
]


@pytest.mark.parametrize(("loss", "factor"), UNBIASED, ids=lambda x: str(x)[:5])
def test_the_mean_over_all_outcomes_is_the_exact_gradient(loss, factor):
    """Each group of answers, by its probability, in one batch; gradients to float32's precision."""
    groups = np.array(list(itertools.product(range(3), repeat=loss.num_samples)))
    said = of_answers(LOGITS)
    chance = np.exp(said.sum(1))[groups].prod(axis=1)
    logits = Variable(LOGITS, dtype="float32")
    words = ops.one_hot(ANSWERS, 2)

    def function():
        each = ops.log_softmax(logits + 0.0)
        now = ops.sum(words * each, axis=-1) * ops.cast(THERE, "float32")
        now = ops.take(now, groups, axis=0)
        reference = None if loss.reference is None else of_answers(REFERENCE).sum(1)[groups]
        given = drawn(now, said[groups], THERE[groups], REWARDS[groups], reference)
        return ops.sum(loss(given) * ops.cast(chance, "float32"))

    _, (gradient,) = value_and_gradients(function, [logits])
    found = -ops.convert_to_numpy(gradient)
    np.testing.assert_allclose(found, factor * exact_gradient(loss.kl), atol=1e-6)


def test_logs_by_hand():
    rng = np.random.default_rng(0)
    there = np.array([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]], "float64")
    old = -rng.random((2, 2, 3)) * there
    rewards = np.array([[[1, 0], [0, 1]], [[1, 1], [1, 1]]], "float64")
    reference = old.sum(-1) - np.array([[0.5, 0.1], [-0.2, 0.3]])
    rows = np.array([1.0, 3.0])

    def other(prompts, texts, records):
        return any_reward(prompts, texts, records)

    shared = {"num_samples": 2, "kl": 0.1, "reference": "initial", "weights": [2, 0.5]}
    loss = training.GRPO([any_reward, other], **shared)
    now = old + np.array([0.0, 0.3, -0.4]) * there
    given = drawn(
        ops.cast(now, "float32"), old, there, rewards, reference, rows=rows, weights=(2, 0.5)
    )
    logs = {name: map(ops.convert_to_numpy, log) for name, log in loss.logs(given).items()}
    found = {name: np.average(values, weights=counts) for name, (values, counts) in logs.items()}
    assert set(found) >= set(loss.reports)

    def by_rows(x):
        return np.average(x.mean(axis=1), weights=rows)

    tokens = rows[:, None, None] * there
    reward = rewards @ np.array([2, 0.5])
    target = reward - 0.1 * (old.sum(-1) - reference)
    above = target - target.mean(1, keepdims=True)
    rho = np.exp(now - old)
    clipped = np.clip(rho, 0.8, 1.2)
    bites = (rho * above[..., None] > clipped * above[..., None]) * tokens
    expected = {
        "reward": by_rows(reward),
        "reward_any_reward": by_rows(rewards[..., 0]),
        "reward_other": by_rows(rewards[..., 1]),
        "kl": by_rows(old.sum(-1) - reference),
        "length": by_rows(there.sum(-1)),
        "zero_std": 0.75,
        "truncated": 0.0,
        "entropy": -(old * tokens).sum() / tokens.sum(),
        "clip_share": bites.sum() / tokens.sum(),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert 0 < found["clip_share"] < 1


def test_groups_that_are_alike_move_nothing():
    there = np.ones((2, 3, 4))
    said = ops.cast(-there, "float32")
    for loss in (
        training.RLOO(any_reward, num_samples=3, kl=0, reference=None),
        training.GRPO(any_reward, num_samples=3),
    ):
        given = drawn(said, -there, there, np.ones((2, 3)))
        np.testing.assert_array_equal(ops.convert_to_numpy(loss.advantages(given)), 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rewards": []}, "Expected rewards as functions"),
        ({"rewards": ["length"]}, "Expected rewards as functions"),
        ({"num_samples": 1}, "Expected num_samples of at least 2"),
        ({"weights": [1, 2]}, "Expected a weight for each of 1 rewards"),
        ({"kl": -0.1}, "Expected kl"),
        ({"kl": 0.1, "reference": None}, "Expected kl=0 without a reference"),
        ({"reference": "first"}, "Expected reference as 'initial'"),
        ({"reference": 3}, "Expected reference as 'initial'"),
        ({"temperature": 0}, "Expected temperature"),
        ({"max_length": 0}, "Expected max_length"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        training.RLOO(**{"rewards": any_reward, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epsilon": 0}, "Expected epsilon"),
        ({"epsilon_high": -1}, "Expected epsilon_high"),
        ({"scale": "mean"}, "scale"),
        ({"normalize": "rows"}, "normalize"),
        ({"updates": 0}, "updates"),
    ],
)
def test_what_grpo_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        training.GRPO(any_reward, **given)


def test_names_of_rewards():
    loss = training.RLOO([any_reward, any_reward, lambda p, t, r: t])
    assert loss.names == ("any_reward_0", "any_reward_1", "lambda")
    assert dataclasses.replace(loss, rewards=[any_reward], weights=None).reports[1] == "length"
