"""Images in a text: which tokens stand for one, and what its pixels become. NumPy only.

Leaves what the model makes of them to `keras_encdec.layers.vision`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

IMAGES = "images"  # as data and model inputs name them
PLACEHOLDER = "<start_of_image>"  # in a text, as in Gemma 3's processor (transformers 5.23)
_AROUND = "\n\n"  # what that processor sets an image apart by


@dataclasses.dataclass(frozen=True)
class ImageTokens:
    """How a model reads images.

    Args:
        size: pixels of a side, to which images are resized, whatever their shape.
        count: tokens that stand for one, M.
        begin: id of the token in front of them.
        token: id of each of them.
        end: id of the token behind them.
    """

    size: int
    count: int
    begin: int
    token: int
    end: int

    @classmethod
    def of(cls, vision: Any) -> "ImageTokens | None":
        """Those of a `keras_encdec.spec.VisionSpec`, or None."""
        if vision is None:
            return None
        ids = vision.begin_token_id, vision.image_token_id, vision.end_token_id
        return cls(vision.image_size, vision.tokens_per_image, *ids)

    def encode(
        self, encode: Callable[[list[str]], list[list[int]]], texts: Sequence[Sequence[str]]
    ) -> list[list[int]]:
        """Token ids of texts, each whole.

        Args:
            encode: strings to their ids.
            texts: of each the parts between which images stand.
        """
        ids = iter(encode([part for parts in texts for part in _set_apart(parts)]))
        image = [self.begin, *[self.token] * self.count, self.end]
        rows = []
        for parts in texts:
            row = list(next(ids))
            for _ in parts[1:]:
                row += [*image, *next(ids)]
            rows.append(row)
        return rows

    def check_room(self, ids: Sequence[int], length: int, whole: bool = False) -> None:
        """Raises ValueError if an image would be cut off.

        Args:
            ids: of a text with images.
            length: tokens that will be read of them.
            whole: whether none of the text may be cut, either.
        """
        behind = max((at for at, i in enumerate(ids, start=2) if i == self.token), default=0)
        needed = len(ids) if behind and whole else behind
        if needed > length:
            raise ValueError(
                f"Expected an encoder_sequence_length of at least {needed}, as an image takes "
                f"{self.count + 2} tokens. Received: {length}."
            )

    def pixels(self, rows: Sequence[Sequence[Any]]) -> np.ndarray:
        """(B, N, H, W, 3) float32 from -1 to 1, N the most of a row, behind its own zeros."""
        most = max(map(len, rows))
        found = np.zeros((len(rows), most, self.size, self.size, 3), "float32")
        for row, images in enumerate(rows):
            for place, image in enumerate(images):
                found[row, place] = _scaled(image, self.size)
        return found

    def check_inputs(self, ids: np.ndarray, mask: np.ndarray, images: np.ndarray | None) -> None:
        """Raises ValueError where ready images are none, or stand for other tokens.

        Args:
            ids: (B, S) int, that the encoder reads.
            mask: (B, S), 0 for padding.
            images: (B, N, H, W, 3), or None.
        """
        shape = (len(ids), "N", self.size, self.size, 3)
        if images is not None:
            fits = (
                images.ndim == 5
                and images.shape[::2] == shape[::2]
                and images.shape[3] == self.size
            )
            if not fits or images.dtype.kind != "f" or not np.isfinite(images).all():
                raise ValueError(
                    f"Expected images as finite floats of shape {shape}. Received: {images.dtype} "
                    f"of shape {images.shape}."
                )
        most = self.count * (0 if images is None else images.shape[1])
        counts = ((ids == self.token) & (mask != 0)).sum(axis=1)
        wrong = (counts > most) | (counts % self.count != 0)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"Expected {self.count} tokens {self.token} in encoder_token_ids for each image. "
                f"Received: {counts[row]} in row {row}, with {most // self.count} images."
            )


def parts_of(text: str, count: int) -> list[str]:
    """A text between its images, which stand in front of it where it has no `PLACEHOLDER`.

    Args:
        text: a string.
        count: of images.

    Raises:
        ValueError: if it has placeholders, and not as many.
    """
    parts = text.split(PLACEHOLDER)
    if len(parts) == 1 and count:
        return [""] * count + [text]
    if len(parts) != count + 1:
        raise ValueError(
            f"Expected as many images as {PLACEHOLDER} in the text, or none of these. Received: "
            f"{count} images, and {len(parts) - 1} in {text[:60]!r}."
        )
    return parts


def _set_apart(parts: Sequence[str]) -> list[str]:
    last = len(parts) - 1
    return [_AROUND * (i > 0) + part + _AROUND * (i < last) for i, part in enumerate(parts)]


def _scaled(image: Any, size: int) -> np.ndarray:
    """(size, size, 3) float32 from -1 to 1; integers stay integers, as in the processor."""
    array = np.asarray(image)
    found = array.astype("float32")
    for axis in (0, 1):
        if array.shape[axis] != size:
            found = np.moveaxis(
                np.tensordot(_bilinear(array.shape[axis], size), found, (1, axis)), 0, axis
            )
    if array.dtype.kind == "f":
        return found * 2 - 1
    return np.rint(found) / 127.5 - 1


def _bilinear(length: int, size: int) -> np.ndarray:
    """(size, length) float32: what each new pixel takes of old ones, of all that it covers.

    A triangle around its middle, as wide as a new pixel where these are larger (Pillow's
    BILINEAR, `antialias=True` elsewhere).
    """
    middle = (np.arange(size) + 0.5) * length / size
    distance = np.abs(np.arange(length) + 0.5 - middle[:, None]) / max(length / size, 1)
    weights = np.maximum(0, 1 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
