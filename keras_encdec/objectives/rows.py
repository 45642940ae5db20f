"""Examples to padded model inputs.

Knows start and end tokens, padding and the numbers of segments. NumPy only.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_encdec.objectives.images import IMAGES, ImageTokens
from keras_encdec.objectives.objective import Example
from keras_encdec.objectives.packing import pack

Inputs = dict[str, np.ndarray]
Batch = tuple[Inputs, Any, np.ndarray]


def padded(each: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, padded with 0: (n, length) int32, and 1 where there is one."""
    ids, mask = (np.zeros((len(each), length), "int32") for _ in range(2))
    for row, found in enumerate(each):
        ids[row, : len(found)], mask[row, : len(found)] = found, 1
    return ids, mask


@dataclasses.dataclass(frozen=True)
class Rows:
    """How examples are laid into rows.

    Args:
        source: S, tokens of an encoder row.
        target: T, tokens of a decoder row.
        start: id that the decoder reads first.
        end: id that it writes where a target ends.
        source_pad: id that fills an encoder row.
        target_pad: id that fills a decoder row.
        images: how images become pixels; None where there are none.
    """

    source: int
    target: int
    start: int
    end: int
    source_pad: int
    target_pad: int
    images: ImageTokens | None = None

    def sides(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """What encoder and decoder read and write: `inputs`, and `<bos> targets <eos>`.

        Both are cut to their room, the second to one token more, since it is read
        without its last token and written without its first.

        Raises:
            ValueError: if it is no example for a decoder.
        """
        if example.places is not None:
            raise ValueError(
                f"Expected an objective for encoder and decoder. Received: {example.denoiser}, by "
                "which an encoder learns alone. Train it with EncDecMaskedLM."
            )
        end = [self.end] if example.ends else []
        decoder = np.concatenate([[self.start], example.targets, end]).astype("int32")
        return np.asarray(example.inputs, "int32")[: self.source], decoder[: self.target + 1]

    def plan(self, examples: Iterable[Example]) -> list[list[int]]:
        """Which examples share a row; see `keras_encdec.objectives.packing`."""
        sizes = [self.room(example) for example in examples]
        return list(pack(np.array(sizes).reshape(-1, 2), (self.source, self.target)))

    def room(self, example: Example) -> tuple[int, int]:
        """What an example takes of `source` and of `target`."""
        source, target = self.sides(example)
        return len(source), len(target) - 1

    def batch(self, rows: Sequence[Sequence[Example]], size: int = 0) -> Batch:
        """Lays each row's examples side by side.

        Args:
            rows: the examples of each row.
            size: empty rows, which count nothing, are added up to this many.

        Returns:
            `(x, y, sample_weight)` as `EncDecSeq2SeqLMPreprocessor.call`; `x` with `images`
            where a row has some. The padding
            masks hold 1 for a row's first example, 2 for its second, and so on. With a
            teacher, `y` is a dict of `labels` and of `teacher_ids` and
            `teacher_log_probs`, (B, T, k) each.
        """
        rows = [*rows, *([()] * (size - len(rows)))]
        sides = [[self.sides(example) for example in row] for row in rows]
        sources = [[encoder for encoder, _ in row] for row in sides]
        targets = [[decoder[:-1] for _, decoder in row] for row in sides]
        labels = [[decoder[1:] for _, decoder in row] for row in sides]
        x = self.model_inputs(sources, targets)
        x |= self.pixels([[image for example in row for image in example.images] for row in rows])
        y, _ = self._fill(labels, self.target, self.target_pad)
        weight = self._weights(rows, labels)
        teachers = [[example.teacher for example in row] for row in rows]
        if all(teacher is None for row in teachers for teacher in row):
            return x, y, weight
        ids, log_probs = self._fill_teachers(teachers)
        return x, {"labels": y, "teacher_ids": ids, "teacher_log_probs": log_probs}, weight

    def pixels(self, rows: Sequence[Sequence[np.ndarray]]) -> Inputs:
        """`images` of rows, as the model's inputs have them; nothing where no row has any."""
        if not any(rows):
            return {}
        assert self.images is not None
        return {IMAGES: self.images.pixels(rows)}

    def _weights(
        self, rows: Sequence[Sequence[Example]], labels: Sequence[Sequence[np.ndarray]]
    ) -> np.ndarray:
        """(B, T) float32: what each label counts, 0 for padding."""
        weight = np.zeros((len(rows), self.target), "float32")
        for i, (row, segments) in enumerate(zip(rows, labels, strict=True)):
            at = 0
            for example, segment in zip(row, segments, strict=True):
                counts = np.asarray(example.weight, "float32")
                room = slice(at, at + len(segment))
                weight[i, room] = counts[: len(segment)] if counts.ndim else counts
                at += len(segment)
        return weight

    def _fill_teachers(self, rows: Sequence[Sequence[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """(B, T, k) ids and log-probabilities; padding has all probability on its id."""
        k = next(ids.shape[1] for row in rows for ids, _ in row)
        ids = np.full((len(rows), self.target, k), self.target_pad, "int32")
        log_probs = np.full((len(rows), self.target, k), -np.inf, "float32")
        log_probs[:, :, 0] = 0
        for i, teachers in enumerate(rows):
            at = 0
            for some_ids, some_log_probs in teachers:
                n = min(len(some_ids), self.target - at)
                ids[i, at : at + n], log_probs[i, at : at + n] = some_ids[:n], some_log_probs[:n]
                at += n
        return ids, log_probs

    def model_inputs(self, sources: Sequence[Any], targets: Sequence[Any]) -> Inputs:
        """The four inputs of the model, from the token ids of each segment of each row."""
        inputs: Inputs = {}
        for side, rows, length, pad in (
            ("encoder", sources, self.source, self.source_pad),
            ("decoder", targets, self.target, self.target_pad),
        ):
            ids, mask = self._fill(rows, length, pad)
            inputs |= {f"{side}_token_ids": ids, f"{side}_padding_mask": mask}
        return inputs

    def _fill(self, rows: Sequence[Any], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(rows), length), pad, "int32")
        mask = np.zeros((len(rows), length), "int32")
        for i, segments in enumerate(rows):
            at = 0
            for number, segment in enumerate(segments, start=1):
                ids[i, at : at + len(segment)] = segment
                mask[i, at : at + len(segment)] = number
                at += len(segment)
        return ids, mask
