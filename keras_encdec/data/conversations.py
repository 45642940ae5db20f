"""Conversations: a kind of data whose answers are written after all that was said before.

Knows which columns hold them, which answers count, and how many lost their beginning. Leaves who
speaks when, and how turns are framed, to `keras_encdec.objectives.chat`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from keras_encdec.data.images import images_of, joined_images
from keras_encdec.data.message_parts import apart
from keras_encdec.objectives import Example, chat
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.progress import track
from keras_encdec.warn import warn

_TOGETHER = 256  # conversations given to the tokenizer at once


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Messages in turn, of which the assistant's are written.

    Args:
        messages: n lists of `{"role": ..., "content": text}`, as of
            `keras_encdec.objectives.chat.turns`.
        answers: whether `"all"` answers of a conversation are learnt, each after all that was
            said before it, or the `"last"` alone.
        weights: (n,), what the answers of each count in the loss; or None.
        single: whether it was one conversation rather than several.
        places: where each is from, for messages; None for its number.
        images: of each, in the order of the places that its messages keep for them; None where
            there are none.

    Raises:
        ValueError: if there are none, or one is no list.
    """

    messages: Sequence[Sequence[Any]]
    answers: Literal["all", "last"] = "all"
    weights: np.ndarray | None = None
    single: bool = False
    places: Sequence[str] | None = None
    images: Sequence[Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        if not len(self.messages):
            raise ValueError("Expected at least one conversation. Received: none.")
        for number, messages in enumerate(self.messages):
            if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
                raise ValueError(
                    f"Expected messages as a list in {self.place(number)}. Received: "
                    f"{type(messages).__name__}."
                )

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, part: slice) -> "Conversations":
        return dataclasses.replace(
            self,
            messages=self.messages[part],
            weights=None if self.weights is None else self.weights[part],
            places=None if self.places is None else self.places[part],
            images=None if self.images is None else self.images[part],
        )

    def place(self, number: int, first: int = 0) -> str:
        """Where a conversation is from, by its number behind `first`."""
        number += first
        return f"conversation {number}" if self.places is None else self.places[number]

    def weighted(self, weights: np.ndarray) -> "Conversations":
        """The same with weights.

        Raises:
            ValueError: if there is not one for each.
        """
        if weights.shape != (len(self),):
            raise ValueError(
                f"Expected a sample_weight for each of {len(self)} conversations. Received: shape "
                f"{weights.shape}."
            )
        return dataclasses.replace(self, weights=weights)

    def answered(self) -> list[tuple[str | None, list[str]]]:
        """What the system said, and what user and assistant said in turn, of each.

        Raises:
            ValueError: naming a conversation that is out of turn, does not end with an answer,
                or has an empty message.
        """
        found = []
        for number, messages in enumerate(self.messages):
            try:
                found.append(chat.answered(messages))
            except ValueError as error:
                raise ValueError(f"{error} It is in {self.place(number)}.") from error
        return found


def of_messages(source: Conversations, beside: Any = None) -> Conversations:
    """The same with texts as messages, and with the images that were among or beside them.

    Args:
        source: whose messages may have parts as content.
        beside: a column of images, of each conversation one or several; None for none.

    Raises:
        ValueError: naming a conversation whose parts or images are not as expected.
    """
    given: list[list[Any]] = [[]] * len(source)
    if beside is not None:
        given = images_of(beside, len(source), source.single)
    messages, images = [], []
    for number, (one, some) in enumerate(zip(source.messages, given, strict=True)):
        try:
            texts, seen = apart(one, some)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{error} It is in {source.place(number)}.") from error
        messages.append(texts)
        images.append(seen)
    seen_by_any = images if any(images) else None
    return dataclasses.replace(source, messages=messages, images=seen_by_any)


def of_columns(columns: Mapping[str, Any], beside: Any = None) -> Conversations | None:
    """Those in `messages`, or in `prompt` and `completion` where these hold messages.

    Args:
        columns: by name, as lists.
        beside: a column of images; None where there is none.

    Returns:
        None where there are no such columns.

    Raises:
        ValueError: if there are not as many prompts as completions.
    """
    if "messages" in columns:
        return _of_messages(columns["messages"], "all", beside)
    if not {"prompt", "completion"} <= columns.keys():
        return None
    prompt, completion = columns["prompt"], columns["completion"]
    if not (_holds_messages(prompt) and _holds_messages(completion)):
        return None
    if _is_one(prompt):
        prompt, completion = [prompt], [completion]
    if len(prompt) != len(completion):
        raise ValueError(
            f"Expected as many prompts as completions. Received: {len(prompt)} and "
            f"{len(completion)}."
        )
    together = [[*before, *after] for before, after in zip(prompt, completion, strict=True)]
    return _of_messages(together, "last", beside)


def examples_of_conversations(source: Conversations, converter: FeatureConverter) -> list[Example]:
    """One for each answer; what did not fit is told once."""
    said, examples, left_out = source.answered(), list[Example](), 0
    for at in track(range(0, len(said), _TOGETHER), "Tokenising"):
        some = said[at : at + _TOGETHER]
        place = partial(source.place, first=at)
        images = None if source.images is None else source.images[at : at + _TOGETHER]
        last = source.answers == "last"
        found, numbers, cut = converter.of_conversations(some, last, place, images)
        if source.weights is not None:
            counts = source.weights[at : at + _TOGETHER][numbers]
            found = [dataclasses.replace(e, weight=w) for e, w in zip(found, counts, strict=True)]
        examples += found
        left_out += cut
    if left_out:
        warn(
            f"{left_out} of {len(examples)} answers follow more than encoder_sequence_length = "
            f"{converter.encoder_sequence_length} tokens. The oldest turns before them were left "
            "out."
        )
    return examples


def joined(parts: Sequence[Conversations]) -> Conversations:
    """Those of many sources as one.

    Raises:
        ValueError: if some have weights and some none, or they are learnt from otherwise.
    """
    weights = [part.weights for part in parts if part.weights is not None]
    if len(weights) not in (0, len(parts)) or len({part.answers for part in parts}) > 1:
        raise ValueError(
            "Expected sample_weight, and messages or prompt and completion, in all elements or "
            "in none. Received: some of each."
        )
    return Conversations(
        [messages for part in parts for messages in part.messages],
        parts[0].answers,
        np.concatenate(weights) if weights else None,
        images=joined_images(parts),
    )


def _of_messages(
    column: Sequence[Any], answers: Literal["all", "last"], beside: Any
) -> Conversations:
    if single := _is_one(column):
        column = [column]
    lists = [list(row) if isinstance(row, (np.ndarray, tuple)) else row for row in column]
    return of_messages(Conversations(lists, answers, single=single), beside)


def _is_one(column: Sequence[Any]) -> bool:
    """Whether it is a conversation rather than a column of them."""
    return len(column) > 0 and isinstance(column[0], Mapping)


def _holds_messages(column: Any) -> bool:
    return (
        not isinstance(column, (str, bytes))
        and len(column) > 0
        and not isinstance(column[0], (str, bytes))
    )
