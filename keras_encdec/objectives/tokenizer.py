"""What is asked of a tokenizer, whatever KerasHub's tokenizers return it as."""

import itertools
from typing import Any

# Between two parts of a text that are tokenised apart; no text can hold it, as it is half a
# character of UTF-16.
BREAK = "\udfff"


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The token ids of each text; the parts beside a `BREAK` share no token."""
    parts = [text.split(BREAK) for text in texts]
    rows = tokenizer([part for every in parts for part in every])
    each = iter(rows.to_list() if hasattr(rows, "to_list") else [list(row) for row in rows])
    return [[i for row in itertools.islice(each, len(every)) for i in row] for every in parts]


def start_token_id(tokenizer: Any) -> int:
    """What a decoder reads first: `<bos>`, or where there is none the end token."""
    start = tokenizer.start_token_id
    return tokenizer.end_token_id if start is None else start


def piece_id(tokenizer: Any, piece: str) -> int | None:
    """The id of a piece of the vocabulary; None if it has no such piece."""
    try:  # an unknown piece has the id of <unk> with some tokenizers, and no id with others
        token_id = int(tokenizer.token_to_id(piece))
    except (KeyError, IndexError, ValueError, TypeError):
        return None
    return token_id if tokenizer.id_to_token(token_id) == piece else None
