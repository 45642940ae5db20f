"""Losses that learn from rewards of answers which the model drew itself: formulas, with sources.

Knows advantages of G answers to one prompt and what a token counts. Leaves drawing and rewards to
`keras_encdec.models.rollouts`, log-probabilities to `keras_encdec.training.policy_trainer`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from keras import ops

from keras_encdec import check
from keras_encdec.spec import Tensor

INITIAL, EMA = "initial", "ema"
_LEAST_SPREAD = 1e-4  # of rewards, as of trl and of the release of DeepSeekMath


class Drawn(NamedTuple):
    """A batch of B prompts with G answers to each, all float32.

    Args:
        log_probs: (B, G, T) of tokens, in nats, at the temperature they were drawn with.
        old: (B, G, T) the same when they were drawn, without a gradient.
        there: (B, G, T) 1 for tokens of answers, their end token included.
        rewards: (B, G, n) of each reward by itself.
        weights: (n,) what each of them counts.
        truncated: (B, G) 1 for answers that have no end token.
        rows: (B,) what each prompt counts.
        reference: (B, G) log-probabilities of whole answers by the reference, or None.
    """

    log_probs: Tensor
    old: Tensor
    there: Tensor
    rewards: Tensor
    weights: Tensor
    truncated: Tensor
    rows: Tensor
    reference: Tensor | None = None

    @property
    def reward(self) -> Tensor:
        """(B, G): all rewards together."""
        return ops.sum(self.rewards * self.weights, axis=-1)

    @property
    def divergence(self) -> Tensor:
        """(B, G): by how much likelier than for the reference, in nats; its mean is the KL."""
        assert self.reference is not None
        return ops.sum(self.old, axis=-1) - self.reference


Logs = dict[str, tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What losses of drawn answers share; a subclass says what an answer's tokens count.

    A reward is a function of `(prompts, texts, records)`, three things of N rows each: prompts as
    they were given, texts that were drawn, and a dict of lists, the other columns of the data. It
    returns N numbers. Or it is a model that has `score(prompts, texts)`, such as
    `keras_encdec.models.EncDecRewardModel`.

    The divergence is inside of the reward, r - kl (log p - log reference) of whole answers, where
    its gradient is exact; as a term of the loss the same estimate has none.
    """

    rewards: Sequence[Any]
    weights: Sequence[float] | None = None
    num_samples: int = 8
    kl: float = 0.1
    reference: Any = INITIAL
    max_length: int | None = None
    temperature: float = 1.0
    path: str | None = None
    ema_rate: float = 0.01
    updates: ClassVar[int] = 1

    def __post_init__(self) -> None:
        several = isinstance(self.rewards, Sequence)
        put = object.__setattr__
        put(self, "rewards", tuple(self.rewards) if several else (self.rewards,))
        if not self.rewards or not all(map(_is_reward, self.rewards)):
            raise ValueError(
                "Expected rewards as functions of (prompts, texts, records), or models with "
                f"score(prompts, texts). Received: {self.rewards!r}."
            )
        weights = (1.0,) * len(self.rewards) if self.weights is None else tuple(self.weights)
        if len(weights) != len(self.rewards):
            raise ValueError(
                f"Expected a weight for each of {len(self.rewards)} rewards. Received: {weights}."
            )
        put(self, "weights", tuple(check.real("weights", w) for w in weights))
        check.whole("num_samples", self.num_samples, least=2)
        check.real("temperature", self.temperature, above=0)
        check.real("ema_rate", self.ema_rate, above=0, most=1)
        if self.max_length is not None:
            check.whole("max_length", self.max_length)
        if check.real("kl", self.kl, least=0) and self.reference is None:
            raise ValueError(f"Expected kl=0 without a reference. Received: {self.kl}.")
        known = self.reference in (INITIAL, EMA, None) if _is_name(self.reference) else True
        if not known or not (_is_name(self.reference) or hasattr(self.reference, "backbone")):
            raise ValueError(
                f"Expected reference as {INITIAL!r}, {EMA!r}, None or a task. Received: "
                f"{self.reference!r:.80}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of rewards, no two alike."""
        named = [str(getattr(r, "__name__", getattr(r, "name", "reward"))) for r in self.rewards]
        named = [name.strip("<>") for name in named]  # of a lambda
        return tuple(
            name if named.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(named)
        )

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of `logs`."""
        found = ["reward", *(f"reward_{name}" for name in self.names if len(self.names) > 1)]
        found += ["length", "truncated", "zero_std", "entropy"]
        return (*found, *(["kl"] if self.reference is not None else []))

    def facts(self) -> dict[str, Any]:
        """What decides the loss, as JSON types; rewards by their names."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        reference = self.reference if _is_name(self.reference) else "another task"
        return {**found, "rewards": self.names, "reference": reference}

    def target(self, drawn: Drawn) -> Tensor:
        """(B, G) reward of which the divergence has been taken."""
        return drawn.reward - self.kl * drawn.divergence if self.kl else drawn.reward

    def advantages(self, drawn: Drawn) -> Tensor:
        """(B, G) by how much an answer is better than the others to its prompt."""
        raise NotImplementedError

    def __call__(self, drawn: Drawn) -> Tensor:
        """(B,) losses, of which the mean by `row_weights` is that of the batch."""
        raise NotImplementedError

    def row_weights(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """(B,) what the loss of each prompt counts.

        Args:
            rows: (B,) what each prompt counts.
            tokens: (B,) of all answers to it.
        """
        return rows

    def logs(self, drawn: Drawn) -> Logs:
        """What is reported beside the loss: numbers (B,), and what each counts (B,)."""
        tokens = ops.sum(drawn.there, axis=(1, 2))
        reward = drawn.reward
        even = ops.max(reward, axis=1) == ops.min(reward, axis=1)
        by_prompt = {
            "reward": ops.mean(reward, axis=1),
            "length": tokens / self.num_samples,
            "truncated": ops.mean(drawn.truncated, axis=1),
            "zero_std": ops.cast(even, "float32"),
        }
        for i, name in enumerate(self.names):
            by_prompt[f"reward_{name}"] = ops.mean(drawn.rewards[..., i], axis=1)
        if self.reference is not None:
            by_prompt["kl"] = ops.mean(drawn.divergence, axis=1)
        found = {name: (values, drawn.rows) for name, values in by_prompt.items()}
        surprise = -ops.sum(drawn.old, axis=(1, 2)) / ops.maximum(tokens, 1.0)
        return {**found, "entropy": (surprise, drawn.rows * tokens)}


@dataclasses.dataclass(frozen=True)
class RLOO(Policy):
    """REINFORCE whose baseline is the mean reward of the other answers to the same prompt.

    -(r_i - mean of the others) p(answer i) / p when drawn, of whole answers, whose gradient is that
    of their log-probability (arXiv 2402.14740, section 3.3).

    Args:
        rewards: functions or models, one or several.
        weights: what each reward counts; 1 if None.
        num_samples: G, answers to each prompt, of one encoding.
        kl: what a nat of divergence from the reference costs.
        reference: `"initial"`, the weights when `fit` began first; `"ema"`, a mean of all since
            then that forgets (arXiv 2406.16768, section 3.1); another task; or None with `kl=0`.
        max_length: tokens of an answer at most; the preprocessor's `decoder_sequence_length` if
            None.
        temperature: that answers are drawn, and their log-probabilities taken, at.
        path: a file of JSON lines for all that is drawn, with rewards. It begins anew with a run.
        ema_rate: share of the weights that the mean takes after each step.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> def is_short(prompts, texts, records):
        ...     return [float(len(text) < 50) for text in texts]
        >>> lm.compile(1e-6, loss=keras_encdec.training.RLOO(is_short))
        >>> lm.fit({"prompt": prompts}, batch_size=8)
    """

    def advantages(self, drawn: Drawn) -> Tensor:
        reward = self.target(drawn)
        others = (ops.sum(reward, axis=1, keepdims=True) - reward) / (self.num_samples - 1)
        return reward - others

    def __call__(self, drawn: Drawn) -> Tensor:
        advantages = ops.stop_gradient(self.advantages(drawn))
        ratio = ops.exp(ops.sum(drawn.log_probs - drawn.old, axis=-1))
        return -ops.mean(advantages * ratio, axis=1)


@dataclasses.dataclass(frozen=True)
class GRPO(Policy):
    """Group relative policy optimisation, clipped as PPO is.

    -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) of each token, with rho = p / p when
    drawn and A = r - mean of the group, divided by its deviation (n - 1) + 1e-4
    (arXiv 2402.03300, equation 3). The group's mean holds the answer itself: the gradient is
    (G - 1) / G of what `RLOO` takes.

    Args:
        rewards: as of `RLOO`.
        weights: as of `RLOO`.
        num_samples: as of `RLOO`.
        kl: as of `RLOO`.
        reference: as of `RLOO`; None by default, as recent work has it (arXiv 2503.14476).
        max_length: as of `RLOO`.
        temperature: as of `RLOO`.
        path: as of `RLOO`.
        ema_rate: as of `RLOO`.
        epsilon: by how much a token may get likelier or less so in one round of `updates`.
        epsilon_high: by how much likelier, where that is another number (arXiv 2503.14476).
        scale: `"std"`, or None: advantages are not divided by the deviation
            (arXiv 2503.20783).
        normalize: `"tokens"`, each token of the batch counts alike (arXiv 2503.14476); or
            `"length"`, sums over tokens are divided by `max_length` (arXiv 2503.20783).
        updates: steps of the optimizer on the same answers.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> lm.compile(1e-6, loss=keras_encdec.training.GRPO([is_right], updates=2))
    """

    kl: float = 0.0
    reference: Any = None
    epsilon: float = 0.2
    epsilon_high: float | None = None
    scale: str | None = "std"
    normalize: str = "tokens"
    updates: int = 1  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        check.real("epsilon", self.epsilon, above=0, below=1)
        if self.epsilon_high is not None:
            check.real("epsilon_high", self.epsilon_high, above=0)
        check.one_of("scale", self.scale, ("std", None))
        check.one_of("normalize", self.normalize, ("tokens", "length"))
        check.whole("updates", self.updates)

    @property
    def reports(self) -> tuple[str, ...]:
        return (*super().reports, "clip_share")

    def advantages(self, drawn: Drawn) -> Tensor:
        reward = self.target(drawn)
        above = reward - ops.mean(reward, axis=1, keepdims=True)
        if self.scale is None:
            return above
        variance = ops.sum(ops.square(above), axis=1, keepdims=True) / (self.num_samples - 1)
        return above / (ops.sqrt(variance) + _LEAST_SPREAD)

    def __call__(self, drawn: Drawn) -> Tensor:
        advantages = ops.stop_gradient(self.advantages(drawn))[..., None]
        rho, clipped = self._ratios(drawn)
        tokens = -ops.minimum(rho * advantages, clipped * advantages) * drawn.there
        count = ops.sum(drawn.there, axis=(1, 2))
        if self.normalize == "length":
            count = self.num_samples * float(self.max_length or drawn.there.shape[-1])
        return ops.sum(tokens, axis=(1, 2)) / ops.maximum(count, 1.0)

    def _ratios(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """(B, G, T): by what factor tokens are likelier than when drawn, and that in its bounds."""
        rho = ops.exp(drawn.log_probs - drawn.old)
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return rho, ops.clip(rho, 1 - self.epsilon, 1 + high)

    def row_weights(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return rows * tokens if self.normalize == "tokens" else rows

    def logs(self, drawn: Drawn) -> Logs:
        rho, clipped = self._ratios(drawn)
        advantages = self.advantages(drawn)[..., None]
        bites = ops.cast(rho * advantages > clipped * advantages, "float32") * drawn.there
        tokens = ops.sum(drawn.there, axis=(1, 2))
        share = ops.sum(bites, axis=(1, 2)) / ops.maximum(tokens, 1.0)
        return {**super().logs(drawn), "clip_share": (share, drawn.rows * tokens)}


Reward = Callable[[Sequence[Any], Sequence[str], Mapping[str, Sequence[Any]]], Sequence[float]]


def _is_reward(x: Any) -> bool:
    return hasattr(x, "score") or (callable(x) and not isinstance(x, type))


def _is_name(x: Any) -> bool:
    return x is None or isinstance(x, str)
