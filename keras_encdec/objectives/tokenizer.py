"""What is asked of a tokenizer, whatever KerasHub's tokenizers return it as."""

from typing import Any


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The token ids of each text."""
    rows = tokenizer(texts)
    return rows.to_list() if hasattr(rows, "to_list") else [list(row) for row in rows]


def piece_id(tokenizer: Any, piece: str) -> int | None:
    """The id of a piece of the vocabulary; None if it has no such piece."""
    try:  # an unknown piece has the id of <unk> with some tokenizers, and no id with others
        token_id = int(tokenizer.token_to_id(piece))
    except (KeyError, IndexError, ValueError, TypeError):
        return None
    return token_id if tokenizer.id_to_token(token_id) == piece else None
