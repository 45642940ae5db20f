"""What the arms of the claims learn from and are asked: docstrings of the installed packages.

Knows windows, whose second half is to be written, and summaries. Both come as token ids, so that
pairs and decoder-only models answer for the same tokens.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_encdec.data import docstrings
from keras_encdec.evaluation.claims_arms import Scale
from keras_encdec.files import digest_of
from keras_encdec.objectives.rows import padded
from keras_encdec.progress import track

_ANSWER = 48  # tokens of a summary at most, its end included


@dataclasses.dataclass(frozen=True)
class Rows:
    """Inputs and targets as token ids, n of each, of any lengths.

    Args:
        read: what is given.
        written: what is to be written.
    """

    read: Sequence[Sequence[int]]
    written: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.read)

    def some(self, numbers: Sequence[int]) -> "Rows":
        """Those of some numbers."""
        return Rows([self.read[i] for i in numbers], [self.written[i] for i in numbers])

    def of_pair(self, start: int, read: int, written: int) -> tuple[dict[str, np.ndarray], Any]:
        """Model inputs and labels of a pair, -100 where none counts.

        Args:
            start: what a decoder begins with.
            read: tokens of the encoder's array.
            written: tokens of the decoder's.
        """
        given = [[start, *ids[:-1]] for ids in self.written]
        sides = {"encoder": padded(self.read, read), "decoder": padded(given, written)}
        x = {
            f"{side}_{name}": array
            for side, arrays in sides.items()
            for name, array in zip(("token_ids", "padding_mask"), arrays, strict=True)
        }
        labels, there = padded(self.written, written)
        return x, np.where(there > 0, labels, -100)

    def of_source(
        self, start: int, length: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Inputs, labels and weights of a decoder-only model, which reads one before the other.

        Args:
            start: what a text begins with.
            length: tokens of its arrays.
        """
        both = [[*r, *w] for r, w in zip(self.read, self.written, strict=True)]
        ids, mask = padded([[start, *ids[:-1]] for ids in both], length)
        labels, there = padded(both, length)
        asked = np.arange(length) >= np.array([len(ids) for ids in self.read])[:, None]
        x = {"token_ids": ids, "padding_mask": mask}
        return x, labels, (asked & (there > 0)).astype("float32")


@dataclasses.dataclass(frozen=True)
class Split:
    """What is trained on, chosen by, or reported.

    Args:
        windows: (n, 2 half) token ids.
        summaries: first lines of docstrings to be written from the rest.
    """

    windows: np.ndarray
    summaries: Rows

    def halves(self) -> Rows:
        """Windows with the second half to be written."""
        half = self.windows.shape[1] // 2
        return Rows(self.windows[:, :half].tolist(), self.windows[:, half:].tolist())


@dataclasses.dataclass(frozen=True)
class Data:
    """Texts to adapt on, and splits.

    Args:
        texts: training documents.
        lengths: tokens that a summary's input and a summary take at most.
        train: of the same files.
        val: of files held out; learning rates are chosen by it.
        test: of other files held out; what is reported.
    """

    texts: tuple[str, ...]
    lengths: tuple[int, int]
    train: Split
    val: Split
    test: Split

    @property
    def digest(self) -> str:
        """Changes with what is trained on and asked, as with another version of a package."""
        splits = [
            [split.windows.tolist(), split.summaries.read, split.summaries.written]
            for split in (self.train, self.val, self.test)
        ]
        return digest_of([self.texts, splits])


def read(scale: Scale, tokenizer: Any, packages: Sequence[str] = docstrings.PACKAGES) -> Data:
    """Docstrings of this machine, by the sizes of a scale.

    Args:
        scale: `Scale`.
        tokenizer: of all arms.
        packages: names of installed packages.
    """
    train, held = docstrings.load(packages, lambda files: track(files, "Reading docstrings"))
    files = sorted({doc.file for doc in held})
    chosen_by = set(files[::2])
    parts = [
        train,
        [doc for doc in held if doc.file in chosen_by],
        [doc for doc in held if doc.file not in chosen_by],
    ]
    wanted = scale.batch_size * scale.tune_steps
    counts = [(scale.batch_size * scale.steps, wanted), *[(scale.windows, scale.windows)] * 2]
    splits = [
        Split(
            np.array(_some(_windows(docs, tokenizer, 2 * scale.half), windows), "int32"),
            _rows(_some(_summaries(docs, tokenizer, scale.body), summaries)),
        )
        for docs, (windows, summaries) in zip(parts, counts, strict=True)
    ]
    return Data(tuple(doc.text for doc in train), (scale.body, _ANSWER), *splits)


def _windows(docs: Sequence[Any], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Whole ones, which lie in one document."""
    for number in np.random.default_rng(0).permutation(len(docs)):
        ids = list(map(int, tokenizer(docs[number].text)))
        for begin in range(0, len(ids) - length + 1, length):
            yield ids[begin : begin + length]


def _summaries(
    docs: Sequence[Any], tokenizer: Any, most: int
) -> Iterator[tuple[list[int], list[int]]]:
    """The beginning of each text below a first line, and that line with its end."""
    for number in np.random.default_rng(1).permutation(len(docs)):
        if found := docs[number].summary_and_body:
            summary, body = (list(map(int, tokenizer(text))) for text in found)
            if len(summary) < _ANSWER:
                yield body[:most], [*summary, int(tokenizer.end_token_id)]


def _some(items: Iterator[Any], count: int) -> list[Any]:
    found = [item for item, _ in zip(items, range(count), strict=False)]
    if not found:
        raise ValueError("Expected docstrings of installed packages. Received: too few of them.")
    return found


def _rows(pairs: Sequence[tuple[list[int], list[int]]]) -> Rows:
    return Rows(*(list(side) for side in zip(*pairs, strict=True)))
