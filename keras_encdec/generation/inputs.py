"""Model inputs that generation can read: whole ids of the vocabulary, tokens before padding.

Leaves what the arrays were to `keras_encdec.data`.
"""

from typing import Any

import numpy as np

from keras_encdec.objectives.rows import Inputs
from keras_encdec.spec import PairSpec


def checked_ids(x: Inputs, pair: PairSpec) -> Inputs:
    """The four model inputs with int32 ids and bool masks; ids of padding are of no account.

    Raises:
        ValueError: if ids are no integers, or one that is not padding is outside its vocabulary.
    """
    checked = {}
    for side in ("encoder", "decoder"):
        name, size = f"{side}_token_ids", getattr(pair, side).vocabulary_size
        ids, mask = np.asarray(x[name]), np.asarray(x[f"{side}_padding_mask"]) > 0
        if ids.dtype.kind not in "iu":
            raise ValueError(f"Expected integers as {name}. Received: {ids.dtype}.")
        wrong = (ids < 0) | (ids >= size)
        if (wrong & mask).any():
            row, place = np.argwhere(wrong & mask)[0]
            raise ValueError(
                f"Expected {name} from 0 to {size - 1}, the vocabulary. Received: "
                f"{ids[row, place]} at place {place} of row {row}."
            )
        checked[name] = np.where(wrong, 0, ids).astype("int32")
        checked[f"{side}_padding_mask"] = mask
    return checked


def check_prompts(x: Inputs) -> None:
    """Raises ValueError where a row has nothing to read, or nothing to begin an output with."""
    for side, what in (("encoder", "to read"), ("decoder", "that outputs begin with")):
        name = f"{side}_padding_mask"
        _refuse_rows(~x[name].any(axis=1), f"a token {what} in each row of {name}", "none")
    mask = x["decoder_padding_mask"]
    before = np.diff(mask.astype(int), axis=1) > 0
    _refuse_rows(
        before.any(axis=1), "decoder_padding_mask with the tokens first", "padding before them"
    )


def _refuse_rows(rows: Any, expected: str, received: str) -> None:
    if rows.any():
        raise ValueError(f"Expected {expected}. Received: {received} in row {np.argmax(rows)}.")
