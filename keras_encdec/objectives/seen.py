"""Texts and turns with images among them: what an encoder reads of them, and which images are left.

Knows where in a text its images stand, and that of a conversation the oldest turns go first, with
their images. Leaves the tokens of an image to `keras_encdec.objectives.images`, frames of turns to
`keras_encdec.objectives.chat`. NumPy only.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keras_encdec.objectives import chat
from keras_encdec.objectives.chat import Asked, Frame
from keras_encdec.objectives.images import PLACEHOLDER, ImageTokens, parts_of
from keras_encdec.objectives.tokenizer import encode

_MARK = "\udffc"  # of an image in framed turns; no text can hold half a character of UTF-16


@dataclasses.dataclass(frozen=True)
class SeenReader:
    """Reads texts with images.

    Args:
        images: how images are read; None where the model reads none.
        tokenizer: of the encoder.
        plain: what users say as text that spells no control token; takes what
            `keras_encdec.objectives.control.plain` does behind its tokenizer.
        length: tokens that the encoder reads at most.
        packing: whether several examples share a row, which those with images do not.

    Raises:
        ValueError: if no images can be read.
    """

    images: ImageTokens | None
    tokenizer: Any
    plain: Callable[..., list[str]]
    length: int
    packing: bool

    def __post_init__(self) -> None:
        if self.images is None:
            raise ValueError(
                "Expected texts without images, as the model reads none. Received: images. Load "
                "one that does, such as google/t5gemma-2-270m-270m, or leave them out."
            )
        if self.packing:
            raise ValueError(
                "Expected preprocessor.packing = False with images, one text with its images in a "
                "row. Received: True."
            )

    def texts(
        self, texts: Sequence[str], images: Sequence[Sequence[Any]], frame: Frame | None = None
    ) -> list[list[int]]:
        """The ids of texts, before any is cut, which no image may be.

        Args:
            texts: strings.
            images: of each.
            frame: of users' turns, of which nothing is cut where there is an image; None for texts
                as they are.

        Raises:
            ValueError: if there are not as many images as places, or one would be cut.
        """
        every = [parts_of(text, len(some)) for text, some in zip(texts, images, strict=True)]
        if frame is None:
            said = [self.plain(parts) for parts in every]
            rows = self._tokens.encode(functools.partial(encode, self.tokenizer), said)
        else:
            rows = [self._framed(frame, None, [self._marked(frame, parts)])[0] for parts in every]
        for row in rows:
            self._tokens.check_room(row, self.length, whole=frame is not None)
        return rows

    def asked(
        self,
        frame: Frame,
        asked: Iterable[Asked],
        images: Sequence[Sequence[Any]],
        place: Callable[[int], str],
    ) -> tuple[list[list[int]], list[Sequence[Any]], int]:
        """What is read before each answer of conversations.

        Args:
            frame: what stands around turns.
            asked: answers, and what was said before them.
            images: of each conversation.
            place: where a conversation is from, by its number.

        Returns:
            The ids and the images before each answer, and how many lost older turns.

        Raises:
            ValueError: naming a conversation whose last turn has no room.
        """
        read, seen, cut = [], [], 0
        for number, system, texts, _ in asked:
            try:
                ids, some, left_out = self.turns(frame, system, texts, images[number])
            except ValueError as error:
                raise ValueError(f"{error} It is in {place(number)}.") from error
            read.append(ids)
            seen.append(some)
            cut += bool(left_out)
        return read, seen, cut

    def chat(
        self, frame: Frame, messages: Any, images: Sequence[Any]
    ) -> tuple[list[int], Sequence[Any]]:
        """As `turns`, of messages, with a warning of what was left out."""
        ids, some, left_out = self.turns(frame, *chat.turns(messages), images)
        chat.warn_of(left_out, self.length)
        return ids, some

    def turns(
        self, frame: Frame, system: str | None, texts: Sequence[str], images: Sequence[Any]
    ) -> tuple[list[int], Sequence[Any], list[str]]:
        """The last turns that there is room for, their images, and what was left out.

        Args:
            frame: what stands around turns.
            system: what the system said, or None.
            texts: what user and model said in turn, the user last.
            images: of a whole conversation, of which these turns may be the beginning.

        Raises:
            ValueError: if there is no room for the last turn, whose image might be cut.
        """
        said = [self._marked(frame, text.split(PLACEHOLDER)) for text in texts]
        places = sum(text.count(_MARK) for text in said)
        if places > len(images):
            raise ValueError(
                f"Expected as many images as {PLACEHOLDER} in messages. Received: {len(images)} "
                f"images, and {places}."
            )
        images = images[:places]
        told = None if system is None else self.plain([system], (), frame.tokens)[0]
        for first in range(0, len(said), 2):
            ids, count = self._framed(frame, told, said[first:])
            if len(ids) <= self.length:
                break
        left_out = [f"the oldest {first} of {len(texts)} messages"] if first else []
        self._tokens.check_room(ids, self.length, whole=True)
        if len(ids) > self.length:
            ids, cut = frame.cut(self.tokenizer, said[-1], self.length, told)
            left_out += cut
        return ids, images[len(images) - count :], left_out

    def _marked(self, frame: Frame, parts: Sequence[str]) -> str:
        return _MARK.join(self.plain(parts, (), frame.tokens))

    def _framed(
        self, frame: Frame, system: str | None, texts: Sequence[str]
    ) -> tuple[list[int], int]:
        """The ids of turns, and how many images are among them."""
        parts = frame.conversation(system, texts).split(_MARK)
        (ids,) = self._tokens.encode(functools.partial(frame.encode, self.tokenizer), [parts])
        return ids, len(parts) - 1

    @property
    def _tokens(self) -> ImageTokens:
        assert self.images is not None
        return self.images
