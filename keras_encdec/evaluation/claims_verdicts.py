"""What the paper claims of the arms, and what their numbers say to it.

Knows each claim that can be tried in small (arXiv 2504.06225, tables 2 to 4, figures 2 to 6,
section 5) as comparisons of two arms, or of what two models cost. A claim agrees where every
comparison does, disagrees where one does, and is undecided else. Leaves intervals to
`keras_encdec.evaluation.intervals`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_encdec.evaluation.intervals import Difference, difference, over_seeds

# What is measured, how it reads, and whether more of it is better.
MEASURES = {
    "begin": ("nats a token on windows before adaptation", False),
    "quarter": ("nats a token on windows after a quarter of it", False),
    "loss": ("nats a token on windows after adaptation", False),
    "tuned": ("nats a token of summaries after fine-tuning", False),
    "encoder": ("mean score of seven stand-in tasks", True),
}

COSTS = {
    "flops": "operations for a window",
    "seconds": "seconds to read half a window and write as much",
}
ALIKE = 1.25  # two costs are alike where neither is more than so many times the other

# By arm and measure, one number for each seed; by model and cost, one for each query.
Scores = Mapping[str, Mapping[str, Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """That one arm is better than another.

    Args:
        better: its name.
        than: the other's.
        measure: one of `MEASURES`.
    """

    better: str
    than: str
    measure: str

    def __str__(self) -> str:
        return f"{self.better} better than {self.than}: {MEASURES[self.measure][0]}"

    def of(self, scores: Scores) -> Difference:
        """How much better, in the measure's unit; below 0 where it is worse."""
        sign = 1 if MEASURES[self.measure][1] else -1
        one, other = (scores[name][self.measure] for name in (self.better, self.than))
        parts = [over_seeds(one), over_seeds(other)]
        return difference(sign * float(np.mean(one) - np.mean(other)), parts)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as much a model costs as another.

    Args:
        mean: geometric, over queries.
        low: end of its interval of 95%.
        high: likewise.
    """

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`"agrees"` where all of the interval is alike, `"disagrees"` where none of it is."""
        if self.low >= 1 / ALIKE and self.high <= ALIKE:
            return "agrees"
        return "disagrees" if self.high < 1 / ALIKE or self.low > ALIKE else "undecided"

    def text(self, digits: int) -> str:
        """`"1.07 x (1.02 to 1.12): agrees"`, with so many digits."""
        mean, low, high = (f"{x:.{digits}f}" for x in (self.mean, self.low, self.high))
        return f"{mean} x ({low} to {high}): {self.verdict}"

    def to_json(self) -> dict[str, Any]:
        return {"ratio": self.mean, "low": self.low, "high": self.high, "verdict": self.verdict}


@dataclasses.dataclass(frozen=True)
class Alike:
    """That one model costs about what another does.

    Args:
        one: its name.
        other: the other's.
        measure: one of `COSTS`.
    """

    one: str
    other: str
    measure: str

    def __str__(self) -> str:
        return f"{self.one} like {self.other}: {COSTS[self.measure]}"

    def of(self, costs: Scores) -> Ratio:
        """How many times as much, query by query."""
        mine, theirs = (np.log(costs[name][self.measure]) for name in (self.one, self.other))
        ratios = mine - theirs
        parts = (
            [over_seeds(ratios.tolist())] if len(ratios) > 1 else []
        )  # one number is a count, and exact
        found = difference(float(np.mean(ratios)), parts)
        return Ratio(*map(math.exp, (found.mean, found.low, found.high)))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper, with what has to hold for it.

    Args:
        text: the sentence, in our words.
        comparisons: all of them, of arms or of costs.
    """

    text: str
    comparisons: tuple[Comparison | Alike, ...]

    @property
    def arms(self) -> list[str]:
        """Names of the arms that it needs."""
        pairs = ((c.than, c.better) for c in self.comparisons if isinstance(c, Comparison))
        return list(dict.fromkeys(name for pair in pairs for name in pair))

    def of_encoders(self) -> set[str]:
        """Those whose encoders are fine-tuned on tasks."""
        arms = [c for c in self.comparisons if isinstance(c, Comparison)]
        return {name for c in arms if c.measure == "encoder" for name in (c.better, c.than)}

    def of_costs(self) -> bool:
        """Whether it is about what models cost."""
        return any(isinstance(c, Alike) for c in self.comparisons)


def verdict(differences: Sequence[Difference | Ratio]) -> str:
    """Of all comparisons of a claim."""
    each = {one.verdict for one in differences}
    if "disagrees" in each:
        return "disagrees"
    return "agrees" if each == {"agrees"} else "undecided"


def _claim(text: str, *comparisons: tuple[str, str, str]) -> Claim:
    return Claim(text, tuple(Comparison(*each) for each in comparisons))


CLAIMS = {
    "C1": _claim(
        "Adaptation of a balanced pair beats training it from scratch, on as many tokens.",
        ("prefix_lm", "scratch", "loss"),
        ("prefix_lm_4x", "scratch_4x", "loss"),
        ("large_prefix_lm", "large_scratch", "loss"),
    ),
    "C2": _claim(
        "A balanced pair soon reaches its source; an unbalanced one starts lower and comes later.",
        ("prefix_lm", "source", "loss"),
        ("prefix_lm", "unbalanced", "begin"),
        ("prefix_lm", "unbalanced", "quarter"),
    ),
    "C3": _claim(
        "After the same fine-tuning a pair is better than its source.",
        ("prefix_lm", "source", "tuned"),
        ("ul2", "source", "tuned"),
    ),
    "C4": _claim(
        "An adapted encoder understands better than its source.",
        ("prefix_lm", "source", "encoder"),
        ("ul2", "source", "encoder"),
    ),
    "C5": _claim("UL2 makes the better encoder.", ("ul2", "prefix_lm", "encoder")),
    "C6": _claim(
        "PrefixLM writes better than UL2.",
        ("prefix_lm", "ul2", "loss"),
        ("prefix_lm", "ul2", "tuned"),
    ),
    "C7": _claim(
        "A larger encoder makes the same decoder better.",
        ("unbalanced", "prefix_lm", "loss"),
        ("unbalanced", "prefix_lm", "tuned"),
    ),
    "C8": _claim(
        "A short warm-up of fresh cross-attention is better than none, and than a long one.",
        ("unbalanced", "unbalanced_k0", "tuned"),
        ("unbalanced", "unbalanced_k5", "tuned"),
    ),
    "C9": _claim(
        "A causal encoder costs quality; such a pair is still better than its source.",
        ("prefix_lm", "causal_encoder", "loss"),
        ("prefix_lm", "causal_encoder", "tuned"),
        ("causal_encoder", "source", "tuned"),
    ),
    "C10": _claim(
        "A key/value head for each of the encoder's query heads: better before fine-tuning, worse "
        "after it.",
        ("expanded_heads", "prefix_lm", "loss"),
        ("prefix_lm", "expanded_heads", "tuned"),
    ),
    "C11": _claim(
        "Training the source for as long does not make up for it.",
        ("prefix_lm", "source_longer", "tuned"),
    ),
    "C12": _claim(
        "The mean of PrefixLM's and UL2's weights is no better than the better of both.",
        ("prefix_lm", "average", "loss"),
        ("ul2", "average", "encoder"),
    ),
    "C13": _claim(
        "UL2 behind PrefixLM hurts; PrefixLM behind UL2 helps fine-tuning, and costs the encoder.",
        ("prefix_lm", "prefix_then_ul2", "tuned"),
        ("ul2_then_prefix", "ul2", "tuned"),
        ("ul2", "ul2_then_prefix", "encoder"),
    ),
    "C15": Claim(
        "A balanced pair costs what its source costs; a larger encoder costs no time where queries "
        "are written one token after the other.",
        (
            Alike("pair of small", "small", "flops"),
            Alike("pair of large", "large", "flops"),
            Alike("pair of small", "small", "seconds"),
            Alike("pair of large", "large", "seconds"),
            Alike("large with small", "small", "seconds"),
        ),
    ),
    "null": _claim(
        "Planted, to be undecided: an arm is better than itself with other seeds.",
        ("prefix_lm_again", "prefix_lm", "loss"),
        ("prefix_lm_again", "prefix_lm", "tuned"),
    ),
}
