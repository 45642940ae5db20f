"""Model inputs that generation can read: whole ids of the vocabulary, tokens before padding.

Leaves what the arrays were to `keras_encdec.data`.
"""

from typing import Any

import numpy as np

from keras_encdec.data.ready import check_images, checked_ids
from keras_encdec.objectives.images import ImageTokens
from keras_encdec.objectives.rows import Inputs
from keras_encdec.spec import PairSpec


def checked_inputs(x: Inputs, pair: PairSpec) -> Inputs:
    """The four model inputs with int32 ids and bool masks.

    Raises:
        ValueError: if ids are none of the vocabularies, or images are not for them.
    """
    x = checked_ids(x, pair.vocabulary_sizes)
    check_images(x, ImageTokens.of(pair.vision))
    masks = "encoder_padding_mask", "decoder_padding_mask"
    return {**x, **{name: np.asarray(x[name]) > 0 for name in masks}}


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
