"""Where text comes from, how it is kept as tokens, and in what order it is learnt."""

from keras_encdec.data.pipeline import batches
from keras_encdec.data.read import read
from keras_encdec.data.teacher import Teacher, write_teacher
from keras_encdec.data.tokens import Tokens, tokenize

__all__ = ["Teacher", "Tokens", "batches", "read", "tokenize", "write_teacher"]
