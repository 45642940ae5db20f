"""Data as what generation reads: prompts, and pairs to score."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_encdec.data.images import Seen
from keras_encdec.data.kinds import (
    INPUTS,
    Conversations,
    Documents,
    ModelInputs,
    Pairs,
    Source,
    Stream,
    kind_of,
)
from keras_encdec.data.recognize import as_source
from keras_encdec.objectives.converter import FeatureConverter, Images, Prompt
from keras_encdec.objectives.images import IMAGES
from keras_encdec.objectives.rows import Batch, Inputs


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What generation begins with, row by row.

    Args:
        lengths: tokens that the encoder reads, for each.
        starts: tokens that the decoder begins with, for each.
        laid: numbers of rows to their four model inputs.
        longest: tokens of an encoder row at most, or None.
        width: T, where they came as model inputs; None for text.
        single: whether it was one text rather than several.
        numbers: those of the rows.
        seen: images of each row, where there are some.
    """

    lengths: Sequence[int]
    starts: Sequence[int]
    laid: Callable[[Sequence[int]], Inputs]
    longest: int | None = None
    width: int | None = None
    single: bool = False
    numbers: Sequence[int] | None = None
    seen: Seen | None = None

    @classmethod
    def of_ids(
        cls,
        prompts: list[Prompt],
        converter: FeatureConverter,
        single: bool = False,
        images: Images = None,
    ) -> "Prompts":
        """Prompts from `prompts_of`, and their images."""
        starts = [len(start) for _, start in prompts]

        def laid(numbers: Sequence[int]) -> Inputs:
            some = [prompts[i] for i in numbers]
            room = max(2, *(len(start) for _, start in some))
            return converter.resized(decoder=room).lay_prompts(some)

        lengths = [len(ids) for ids, _ in prompts]
        seen = None if images is None else Seen(images, converter.rows.pixels)
        longest = converter.encoder_sequence_length
        return cls(lengths, starts, laid, longest, None, single, None, seen)

    @classmethod
    def of_arrays(cls, x: Inputs) -> "Prompts":
        """Model inputs, whose decoder tokens are what outputs begin with."""
        counts = [(x[f"{side}_padding_mask"] > 0).sum(axis=1) for side in ("encoder", "decoder")]
        lengths, starts = (count.tolist() for count in counts)

        def laid(numbers: Sequence[int]) -> Inputs:
            return {name: x[name][list(numbers)] for name in INPUTS}

        width = x["decoder_token_ids"].shape[1]
        return cls(lengths, starts, laid, width=width, seen=Seen.of_array(x.get(IMAGES)))

    def __len__(self) -> int:
        return len(self.lengths if self.numbers is None else self.numbers)

    def some(self, numbers: Sequence[int]) -> "Prompts":
        """The rows with these numbers."""
        return dataclasses.replace(self, numbers=numbers)

    def arrays(self) -> Inputs:
        """The model inputs of all rows."""
        some = self._numbers
        return {**self.laid(some), **(self.seen.some(some) if self.seen else {})}

    @property
    def _numbers(self) -> Sequence[int]:
        return range(len(self)) if self.numbers is None else self.numbers

    def ids(self) -> list[list[Any]]:
        """The tokens of each row, and a digest of its images, to know it by."""
        x = self.laid(self._numbers)
        return [
            [
                x[f"{side}_token_ids"][i][x[f"{side}_padding_mask"][i] > 0].tolist()
                for side in ("encoder", "decoder")
            ]
            + ([self.seen.digests(number)] if self.seen else [])
            for i, number in enumerate(self._numbers)
        ]


def in_memory(inputs: Any) -> Source:
    """What data is, all of it read.

    Raises:
        ValueError: if batches of a stream differ in length.
    """
    source = as_source(inputs)
    source = source.collected() if isinstance(source, Stream) else source
    if not isinstance(source, Stream):
        return source
    parts = [part.x for part in source.begin(0) if isinstance(part, ModelInputs)]
    names = [*INPUTS, *[IMAGES] * any(IMAGES in part for part in parts)]
    if any(set(names) - set(part) for part in parts):
        raise ValueError("Expected images in all batches or in none. Received: in some.")
    shapes = {name: {part[name].shape[1] for part in parts} for name in names}
    if any(len(widths) > 1 for widths in shapes.values()):
        raise ValueError(
            f"Expected batches of one width. Received: {shapes}. Pad them alike, or generate for "
            "one batch at a time."
        )
    return ModelInputs({name: np.concatenate([part[name] for part in parts]) for name in names})


def prompts_of(source: Source, converter: FeatureConverter) -> tuple[list[Prompt], Images]:
    """The ids that encoder and decoder begin with, for each prompt, and its images.

    Raises:
        ValueError: if the data is no text.
    """
    if isinstance(source, Pairs):
        read, begun, images = source.encoder_text, source.decoder_text, source.images
        return converter.of_prompts(read, begun, images), images
    if isinstance(source, Documents):
        return converter.of_prompts(source.texts("encoder_text")), None
    if isinstance(source, Conversations):
        images = source.images or [()] * len(source)
        sides = zip(source.messages, images, strict=True)
        found = [chat_prompt(converter, *each) for each in sides]
        seen = None if source.images is None else [some for _, some in found]
        return [prompt for prompt, _ in found], seen
    raise ValueError(
        "Expected texts, or encoder_text and what outputs begin with as decoder_text. Received: "
        f"{kind_of(source)}."
    )


def chat_prompt(
    converter: FeatureConverter, messages: Any, images: Sequence[Any]
) -> tuple[Prompt, Sequence[Any]]:
    """A conversation as a prompt, and the images of the turns that there was room for.

    Args:
        converter: `FeatureConverter`.
        messages: as of `converter.of_chat`.
        images: in the places that messages keep for them.

    Raises:
        ValueError: as of `converter.of_chat`, or if an image has no room.
    """
    if not images:
        return converter.of_chat(messages), ()
    ids, seen = converter.seen.chat(converter.frame, messages, images)
    return (ids, [converter.start_token_id]), seen


def whole_pairs(source: Source, converter: FeatureConverter) -> tuple[Batch, Seen | None]:
    """`(x, y, sample_weight)` of pairs, each in a row of its own that is long enough for it.

    Returns:
        The batch, and the images of its rows, which are not in `x`.

    Raises:
        ValueError: if the data is not pairs.
    """
    if not isinstance(source, Pairs):
        raise ValueError(
            "Expected pairs to score: encoder_text, and the decoder_text whose likelihood is asked "
            f"for. Received: {kind_of(source)}."
        )
    sides = source.encoder_text, source.targets()
    examples = converter.of_pairs(*sides, warn=True, images=source.images)
    longest = max(2, *(len(example.targets) for example in examples))
    blind = [[dataclasses.replace(example, images=())] for example in examples]
    batch = converter.resized(decoder=longest).rows.batch(blind)
    images = source.images
    return batch, None if images is None else Seen(images, converter.rows.pixels)
