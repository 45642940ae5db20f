"""Tokens to (encoder input, decoder target)."""

from keras_encdec.objectives.mixture import Mixture, Stages
from keras_encdec.objectives.mntp import MNTP
from keras_encdec.objectives.objective import Example, Objective
from keras_encdec.objectives.prefix_lm import PrefixLM
from keras_encdec.objectives.span_corruption import SpanCorruption
from keras_encdec.objectives.ul2 import UL2

__all__ = ["MNTP", "UL2", "Example", "Mixture", "Objective", "PrefixLM", "SpanCorruption", "Stages"]
