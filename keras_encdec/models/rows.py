"""Examples to padded model inputs.

Knows start and end tokens, padding and the numbers of segments. NumPy only.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_encdec.objectives import Example
from keras_encdec.objectives.packing import pack


@dataclasses.dataclass(frozen=True)
class Rows:
    """How examples are laid into rows.

    Args:
        source: S, tokens of an encoder row.
        target: T, tokens of a decoder row.
        start: id that the decoder reads first.
        end: id that it writes where a target ends.
        pad: id that fills a row.
    """

    source: int
    target: int
    start: int
    end: int
    pad: int

    def sides(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """What encoder and decoder read and write: `inputs`, and `<bos> targets <eos>`.

        Both are cut to their room, the second to one token more, since it is read
        without its last token and written without its first.
        """
        end = [self.end] if example.ends else []
        decoder = np.concatenate([[self.start], example.targets, end]).astype("int32")
        return np.asarray(example.inputs, "int32")[: self.source], decoder[: self.target + 1]

    def plan(self, examples: Sequence[Example]) -> list[list[int]]:
        """Which examples share a row; see `keras_encdec.objectives.packing`."""
        sizes = [[len(source), len(target) - 1] for source, target in map(self.sides, examples)]
        return list(pack(np.array(sizes).reshape(-1, 2), (self.source, self.target)))

    def batch(self, rows: Sequence[Sequence[Example]]):
        """Lays each row's examples side by side.

        Returns:
            `(x, y, sample_weight)` as `EncDecSeq2SeqLMPreprocessor.call`. The padding
            masks hold 1 for a row's first example, 2 for its second, and so on.
        """
        sources, targets, labels = [], [], []
        for row in rows:
            encoder, decoder = zip(*map(self.sides, row), strict=True)
            sources.append(encoder)
            targets.append([sequence[:-1] for sequence in decoder])
            labels.append([sequence[1:] for sequence in decoder])
        x = self.model_inputs(sources, targets)
        y, _ = self._fill(labels, self.target)
        return x, y, (x["decoder_padding_mask"] > 0).astype("float32")

    def model_inputs(self, sources, targets) -> dict[str, np.ndarray]:
        """The four inputs of the model, from the token ids of each segment of each row."""
        inputs: dict[str, np.ndarray] = {}
        for side, rows, length in (
            ("encoder", sources, self.source),
            ("decoder", targets, self.target),
        ):
            ids, mask = self._fill(rows, length)
            inputs |= {f"{side}_token_ids": ids, f"{side}_padding_mask": mask}
        return inputs

    def _fill(self, rows, length):
        ids = np.full((len(rows), length), self.pad, "int32")
        mask = np.zeros((len(rows), length), "int32")
        for i, segments in enumerate(rows):
            at = 0
            for number, segment in enumerate(segments, start=1):
                ids[i, at : at + len(segment)] = segment
                mask[i, at : at + len(segment)] = number
                at += len(segment)
        return ids, mask
