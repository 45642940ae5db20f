"""A pair in the layouts of transformers: which one holds it."""

import dataclasses

from keras_encdec.families import t5gemma, t5gemma2
from keras_encdec.families.layout import Layout, differences
from keras_encdec.spec import PairSpec


def layout_of(pair: PairSpec, dtype: str) -> Layout:
    """T5Gemma 2's where attention is merged and one embedding serves both sides, else T5Gemma's.

    Args:
        pair: to write.
        dtype: name of the dtype that the tensors are written in.

    Raises:
        ValueError: naming the fields that the layout cannot hold.
    """
    if not (pair.cross_attention.merged and pair.tied_embeddings):
        return Layout(t5gemma.to_transformers(pair, dtype), t5gemma.TRANSFORMERS)
    config = t5gemma2.to_transformers(pair, dtype)
    windows = tuple(window and t5gemma2.plain(window) for window in pair.encoder.windows)
    pair = dataclasses.replace(pair, encoder=dataclasses.replace(pair.encoder, windows=windows))
    if lost := list(differences(pair, t5gemma2.from_transformers(config))):
        raise ValueError(
            "Expected a pair of Gemma 3's kind, all that the T5Gemma 2 layout holds. Received: one "
            f"with {'; '.join(lost)}. save_to_preset keeps any pair."
        )
    return Layout(config, t5gemma2.TRANSFORMERS, t5gemma2.blank(pair))
