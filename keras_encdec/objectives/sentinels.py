"""Sentinels: the ids that stand for hidden spans, and what to do when they run out."""

from typing import Any

from keras_encdec import check
from keras_encdec.objectives.tokenizer import piece_id

# <unused0> to <unused98> in every Gemma tokenizer (google-deepmind/gemma issue 29).
GEMMA = tuple(range(7, 106))

# Tokens that vocabularies keep free, by their numbers: no more than Gemma's of each.
_RESERVED = {
    "<unused{}>": 0,  # Gemma
    "<|reserved_special_token_{}|>": 0,  # Llama 3, SmolLM3
    "[control_{}]": 8,  # Mistral from 7B v0.3 on
    "<SPECIAL_{}>": 14,  # Mistral NeMo and what came after it
    "<|reserved_{}|>": 200013,  # gpt-oss
    "<|extra_id_{}|>": 0,  # OLMo 2; 11 of them
}
PIECES = tuple(
    piece.format(first + number) for piece, first in _RESERVED.items() for number in range(99)
)

OVERFLOW = ("reuse", "cap", "error")


def sentinel_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids of what the tokenizer keeps free, such as `<unused0>` to `<unused98>`.

    Raises:
        ValueError: if it keeps nothing free.
    """
    ids = [i for piece in PIECES if (i := piece_id(tokenizer, piece)) is not None]
    if not ids:
        raise ValueError(
            "Expected a tokenizer that keeps tokens free, such as <unused0> or "
            "<|reserved_special_token_0|>, to stand for hidden spans. Received: "
            f"{type(tokenizer).__name__} without them. Pass sentinels=(...), ids that no text is "
            "tokenised to, such as those of its special tokens that the model does without."
        )
    return tuple(ids)


def check_overflow(overflow: str) -> None:
    check.one_of("overflow", overflow, OVERFLOW)
