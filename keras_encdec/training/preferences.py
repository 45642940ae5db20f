"""Losses that learn from answers which people preferred: formulas, with their sources.

Knows log-probabilities of answers and what a row's loss is; a row's depends on its own answers
alone, but for the estimate of the divergence in `KTO`. Leaves the log-probabilities to
`keras_encdec.training.preference_trainer`.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor
from keras_encdec.training.contrastive import ByFields

Logs = dict[str, tuple[Tensor, Tensor]]

_LARGEST = -1e-6  # log-probability a token: that of a certain answer has odds of infinity


class Answers(NamedTuple):
    """A batch; each row has two answers to one input, all float32.

    Args:
        log_probs: (B, 2) of whole answers, in nats, their end token included: the better one and
            the worse one; for `KTO` the row's own and that of another input.
        lengths: (B, 2) tokens of each.
        reference: (B, 2) as `log_probs`, of the reference; None where the loss reads none.
        is_good: (B,) 1 where the row's own answer is wanted, 0 where not; None but for `KTO`.
        weight: (B,) what each row counts.
    """

    log_probs: Tensor
    lengths: Tensor
    weight: Tensor
    reference: Tensor | None = None
    is_good: Tensor | None = None

    @property
    def ratios(self) -> Tensor:
        """(B, 2) by how much more likely than for the reference, in nats."""
        assert self.reference is not None
        return self.log_probs - self.reference

    @property
    def means(self) -> Tensor:
        """(B, 2) log-probabilities a token."""
        return self.log_probs / ops.maximum(self.lengths, 1.0)


class Preference(ByFields):
    """A loss of `Answers`, one number for each row; a subclass says which.

    Attributes:
        compares: whether a row has a better and a worse answer, rather than one with a label.
        reads_reference: whether log-probabilities of a reference are needed.
        reads_batch: whether a row's loss reads other rows of its batch.
        reports: names of `logs`.
        reference: `"initial"`, a task, or None where none is read.
    """

    compares = True
    reads_reference = False
    reads_batch = False
    reports: ClassVar[tuple[str, ...]] = ("accuracy", "margin", "chosen_reward")
    reference: Any = None

    def __call__(self, answers: Answers) -> Tensor:
        """(B,) float32."""
        raise NotImplementedError

    def rewards(self, answers: Answers) -> Tensor:
        """(B, 2) float32: what the loss wants to be larger for the better answer."""
        raise NotImplementedError

    def logs(self, answers: Answers) -> Logs:
        """What is reported beside the loss: numbers (B,), and what each counts (B,)."""
        better, worse = ops.unstack(self.rewards(answers), 2, axis=1)
        right = ops.cast(better > worse, "float32")
        found = {"accuracy": right, "margin": better - worse, "chosen_reward": better}
        return {name: (values, answers.weight) for name, values in found.items()}


class Referred(Preference):
    """A loss that reads a reference: `"initial"`, the model when `fit` begins, or another task."""

    reads_reference = True
    beta: float

    def rewards(self, answers: Answers) -> Tensor:
        return self.beta * answers.ratios


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class DPO(Referred):
    """Direct preference optimisation.

    With the ratios r of answers to the reference, in nats,
    -(1 - e) log sigmoid(beta (r_w - r_l)) - e log sigmoid(-beta (r_w - r_l))
    (arXiv 2305.18290, equation 7; e as in conservative DPO, arXiv 2403.00409).

    Args:
        beta: how near to the reference the model stays.
        label_smoothing: e, the share of preferences that are thought to be wrong.
        reference: `"initial"`, or a task of the same vocabularies.
        path: a folder that keeps the reference's log-probabilities; None keeps them in memory.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> lm.compile(1e-6, loss=keras_encdec.training.DPO(beta=0.1))
        >>> lm.fit({"prompt": prompts, "chosen": better, "rejected": worse})
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    reference: Any = "initial"
    path: str | None = None

    def __post_init__(self) -> None:
        check.real("beta", self.beta, above=0)
        check.real("label_smoothing", self.label_smoothing, least=0, below=0.5)

    def __call__(self, answers: Answers) -> Tensor:
        margin = self.beta * _difference(answers.ratios)
        wrong = self.label_smoothing
        return (1 - wrong) * ops.softplus(-margin) + wrong * ops.softplus(margin)


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class IPO(Referred):
    """Identity preference optimisation: (r_w - r_l - 1 / (2 beta))^2 of ratios a token.

    arXiv 2310.12036, equation 17; ratios are means over tokens, as its authors advise.

    Args:
        beta: how near to the reference the model stays.
        reference: as of `DPO`.
        path: as of `DPO`.

    Raises:
        ValueError: if `beta` is no number above 0.

    Example:
        >>> lm.compile(1e-6, loss=keras_encdec.training.IPO(beta=0.1))
    """

    beta: float = 0.1
    reference: Any = "initial"
    path: str | None = None

    def __post_init__(self) -> None:
        check.real("beta", self.beta, above=0)

    def __call__(self, answers: Answers) -> Tensor:
        means = answers.ratios / ops.maximum(answers.lengths, 1.0)
        return ops.square(_difference(means) - 1 / (2 * self.beta))


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class KTO(Referred):
    """Kahneman-Tversky optimisation, of answers that are each wanted or not.

    weight (1 - sigmoid(+-beta (r - z))) with + for a wanted answer and - for another, and z, the
    divergence from the reference, at least 0: the mean over the batch of the ratios of answers to
    other rows' inputs, of which no gradient is taken (arXiv 2402.01306, section 4.1). Each row is
    given the answer of the row after it, in the order of the data. Parts of a batch are refused
    (`gradient_accumulation_steps`), as each would have a mean of its own.

    Args:
        beta: how near to the reference the model stays.
        wanted_weight: of rows whose answer is wanted.
        unwanted_weight: of the others.
        reference: as of `DPO`.
        path: as of `DPO`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> lm.compile(1e-6, loss=keras_encdec.training.KTO())
        >>> lm.fit({"prompt": prompts, "completion": answers, "label": [True, False, ...]})
    """

    compares = False
    reads_batch = True
    reports: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "wanted_reward",
        "unwanted_reward",
        "divergence",
    )

    beta: float = 0.1
    wanted_weight: float = 1.0
    unwanted_weight: float = 1.0
    reference: Any = "initial"
    path: str | None = None

    def __post_init__(self) -> None:
        check.real("beta", self.beta, above=0)
        check.real("wanted_weight", self.wanted_weight, least=0)
        check.real("unwanted_weight", self.unwanted_weight, least=0)

    def __call__(self, answers: Answers) -> Tensor:
        assert answers.is_good is not None
        side = 2 * answers.is_good - 1
        weight = ops.where(side > 0, self.wanted_weight, self.unwanted_weight)
        ahead = answers.ratios[:, 0] - _divergence(answers)
        return weight * ops.sigmoid(-side * self.beta * ahead)

    def logs(self, answers: Answers) -> Logs:
        good, weight = answers.is_good, answers.weight
        assert good is not None
        divergence, own = _divergence(answers), self.rewards(answers)[:, 0]
        right = ops.cast((answers.ratios[:, 0] > divergence) == (good > 0), "float32")
        return {
            "accuracy": (right, weight),
            "wanted_reward": (own, weight * good),
            "unwanted_reward": (own, weight * (1 - good)),
            "divergence": (divergence + ops.zeros_like(own), weight),
        }


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class ORPO(Preference):
    """Odds ratio preference optimisation, which learns to write and to prefer in one, by itself.

    -m_w - weight log sigmoid(o_w - o_l), with means m of log-probabilities a token and log odds
    o = m - log(1 - exp(m)) (arXiv 2403.07691, equations 6 and 7).

    Args:
        weight: lambda, of the second part.

    Raises:
        ValueError: if it is no number of 0 or more.

    Example:
        >>> lm.compile(5e-6, loss=keras_encdec.training.ORPO())
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        check.real("weight", self.weight, least=0)

    def __call__(self, answers: Answers) -> Tensor:
        means = ops.minimum(answers.means, _LARGEST)
        odds = means - _log1mexp(means)
        return -answers.means[:, 0] + self.weight * ops.softplus(-_difference(odds))

    def rewards(self, answers: Answers) -> Tensor:
        return self.weight * answers.means


@keras.saving.register_keras_serializable(package="keras_encdec")
@dataclasses.dataclass(frozen=True)
class SimPO(Preference):
    """Simple preference optimisation: -log sigmoid(beta (m_w - m_l) - gamma).

    With means m of log-probabilities a token (arXiv 2405.14734, equation 6); no reference.

    Args:
        beta: of the difference.
        gamma: margin by which the better answer is to lead.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> lm.compile(1e-6, loss=keras_encdec.training.SimPO())
    """

    beta: float = 2.5
    gamma: float = 1.375

    def __post_init__(self) -> None:
        check.real("beta", self.beta, above=0)
        check.real("gamma", self.gamma, least=0)

    def __call__(self, answers: Answers) -> Tensor:
        return ops.softplus(self.gamma - self.beta * _difference(answers.means))

    def rewards(self, answers: Answers) -> Tensor:
        return self.beta * answers.means


def _divergence(answers: Answers) -> Tensor:
    """z of `KTO`, a scalar without a gradient."""
    there = ops.cast(answers.weight > 0, "float32")
    mean = ops.sum(answers.ratios[:, 1] * there) / ops.maximum(ops.sum(there), 1.0)
    return ops.stop_gradient(ops.maximum(mean, 0.0))


def _difference(x: Tensor) -> Tensor:
    """(B, 2) to (B,): the first less the second."""
    return x[:, 0] - x[:, 1]


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0, exactly on both sides of -log 2.

    Each branch is given a number that it can take, so that the other's gradient is finite.
    """
    near = x > -0.6931472
    of_near = ops.log(-ops.expm1(ops.where(near, x, -0.5)))
    return ops.where(near, of_near, ops.log1p(-ops.exp(ops.where(near, -1.0, x))))
