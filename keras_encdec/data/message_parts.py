"""Messages whose content is a list of parts, texts and images, as texts with places for images.

Knows how users of transformers write parts: `{"type": "text", "text": ...}`, and `{"type":
"image"}` with the image as `image`, `path` or `url`, or beside the messages. Leaves what an image
may be to `keras_encdec.data.images`, and who speaks when to `keras_encdec.objectives.chat`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_encdec.data.arrays import short
from keras_encdec.data.images import images_of
from keras_encdec.objectives.images import PLACEHOLDER

_PAYLOADS = "image", "path", "url"


def apart(messages: Sequence[Any], beside: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
    """Messages of texts alone, and the images of their places, in order.

    Texts of parts lose the white space around them, as in Gemma 3's chat template.

    Args:
        messages: as of `keras_encdec.objectives.chat.turns`, or with parts as content.
        beside: images that are not in the messages; without places, they stand in front of the
            first message of the user.

    Raises:
        ValueError: if a part is neither text nor image, an image is not the user's, or there are
            not as many places as images.
    """
    found: list[Any] = []
    inside: list[Any] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            text, images = _of_parts(content)
            if images and message.get("role") != "user":
                raise ValueError(
                    "Expected images in messages of the user. Received: one of role "
                    f"{message.get('role')!r}."
                )
            message, inside = {**message, "content": text}, inside + images
        found.append(message)
    given = [image for image in inside if image is not None]
    if given and beside:
        raise ValueError("Expected images in messages or beside them. Received: both.")
    images = list(beside) or images_of(given, 1, single=True)[0]
    if not images and not inside:
        return found, []
    return _placed(found, len(images)), images


def _of_parts(parts: Sequence[Any]) -> tuple[str, list[Any]]:
    """The text, and of each place in it the image, or None where it is beside the messages."""
    said, images = "", []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            said += part["text"].strip()
        elif kind == "image":
            given = (part[name] for name in _PAYLOADS if part.get(name) is not None)
            images.append(next(given, None))
            said += PLACEHOLDER
        else:
            raise ValueError(
                'Expected parts of a message as {"type": "text", "text": ...} or {"type": "image", '
                f'"image": ...}}. Received: {short(part)}.'
            )
    return said, images


def _placed(messages: list[Any], count: int) -> list[Any]:
    """Messages with a place for each image."""
    known = [message if isinstance(message, Mapping) else {} for message in messages]
    places = sum(str(message.get("content")).count(PLACEHOLDER) for message in known)
    first = next((i for i, message in enumerate(known) if message.get("role") == "user"), None)
    if not places and first is not None:
        content = PLACEHOLDER * count + str(known[first].get("content"))
        return [*messages[:first], {**known[first], "content": content}, *messages[first + 1 :]]
    if places != count:
        raise ValueError(
            f"Expected as many images as places for them, {PLACEHOLDER} or parts of type image. "
            f"Received: {count} images, and {places} places."
        )
    return messages
