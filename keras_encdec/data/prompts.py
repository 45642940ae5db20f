"""Data as what generation reads: prompts, and pairs to score."""

from typing import Any

from keras_encdec.data.kinds import Documents, Pairs, Source, Stream, kind_of
from keras_encdec.data.recognize import as_source
from keras_encdec.objectives.converter import FeatureConverter, Prompt
from keras_encdec.objectives.rows import Batch


def in_memory(inputs: Any) -> Source:
    """What data is, of which all texts and pairs are read; batches of a stream are not."""
    source = as_source(inputs)
    return source.collected() if isinstance(source, Stream) else source


def prompts_of(source: Source, converter: FeatureConverter) -> list[Prompt]:
    """The ids that encoder and decoder begin with, for each prompt.

    Raises:
        ValueError: if the data is no text.
    """
    if isinstance(source, Pairs):
        return converter.of_prompts(source.encoder_text, source.decoder_text)
    if isinstance(source, Documents):
        return converter.of_prompts(source.texts())
    raise ValueError(
        "Expected texts, or encoder_text and what outputs begin with as decoder_text. Received: "
        f"{kind_of(source)}."
    )


def whole_pairs(source: Source, converter: FeatureConverter) -> Batch:
    """`(x, y, sample_weight)` of pairs, each in a row of its own that is long enough for it.

    Raises:
        ValueError: if the data is not pairs.
    """
    if not isinstance(source, Pairs):
        raise ValueError(
            "Expected pairs to score: encoder_text, and the decoder_text whose likelihood is asked "
            f"for. Received: {kind_of(source)}."
        )
    examples = converter.of_pairs(source.encoder_text, source.targets(), warn=True)
    longest = max(2, *(len(example.targets) for example in examples))
    return converter.resized(decoder=longest).rows.batch([[example] for example in examples])
