"""What data is, where text comes from, how it is kept as tokens, and in what order it is learnt.

`guides/fine_tune_on_pairs.py` has the table of what `fit` and the others take.
"""

from keras_encdec.data.conversations import Conversations
from keras_encdec.data.encoded import EncodedDocuments
from keras_encdec.data.pipeline import batches
from keras_encdec.data.read import read
from keras_encdec.data.recognize import as_source
from keras_encdec.data.teacher import Teacher, write_teacher
from keras_encdec.data.tokenizing import tokenize
from keras_encdec.data.tokens import Tokens

__all__ = [
    "Conversations",
    "EncodedDocuments",
    "Teacher",
    "Tokens",
    "as_source",
    "batches",
    "read",
    "tokenize",
    "write_teacher",
]
