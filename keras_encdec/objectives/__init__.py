"""Tokens to (encoder input, decoder target)."""

from keras_encdec.objectives.prefix_lm import Example, PrefixLM

__all__ = ["Example", "PrefixLM"]
