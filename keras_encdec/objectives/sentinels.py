"""Sentinels: the ids that stand for hidden spans, and what to do when they run out."""

from typing import Any

from keras_encdec import check
from keras_encdec.objectives.tokenizer import piece_id

# <unused0> to <unused98> in every Gemma tokenizer (google-deepmind/gemma issue 29).
GEMMA = tuple(range(7, 106))
PIECES = [f"<unused{i}>" for i in range(99)]

OVERFLOW = ("reuse", "cap", "error")


def sentinel_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids of the tokenizer's `<unused0>` to `<unused98>`, as many as there are.

    Raises:
        ValueError: if it has none.
    """
    ids = [i for piece in PIECES if (i := piece_id(tokenizer, piece)) is not None]
    if not ids:
        raise ValueError(
            "Expected a tokenizer with tokens <unused0>, <unused1>, ... to stand for hidden spans. "
            f"Received: {type(tokenizer).__name__} without them. Pass sentinels=(...), ids that "
            "no text is tokenised to."
        )
    return tuple(ids)


def check_overflow(overflow: str) -> None:
    check.one_of("overflow", overflow, OVERFLOW)
