"""Documents as an encoder left them, kept on disk: pooled states, some documents a shard.

Knows how states of documents of different lengths share a file. Leaves what made them to the
caller, who says so in `about`.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_encdec.data.shards import Shards, ShardWriter
from keras_encdec.files import readable
from keras_encdec.progress import track

KIND = "encoded documents"
_BFLOAT16 = np.dtype("uint16")  # its bits: .npy files have no name for it


class EncodedDocuments:
    """Reads what `EncDecReranker.encode_documents` has written; states stay on disk.

    Args:
        folder: of `encode_documents`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is unfinished, or something else.

    Example:
        >>> store = keras_encdec.data.EncodedDocuments("./documents")
        >>> reranker.rank("Who?", store, top=10)
    """

    def __init__(self, folder: str | os.PathLike):
        with readable("folder of encoded documents", folder):
            self._shards = Shards(folder, KIND)
            counts = [int(self._shards.facts(i)["documents"]) for i in range(len(self._shards))]
            self._starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def about(self) -> dict[str, Any]:
        """What made them, as JSON types; a copy."""
        return dict(self._shards.about)

    @property
    def folder(self) -> os.PathLike:
        """Where they are."""
        return self._shards.folder

    @property
    def shards(self) -> list[range]:
        """Numbers of the documents of each shard."""
        return [range(*ends) for ends in zip(self._starts[:-1], self._starts[1:], strict=True)]

    def sizes(self, shard: int) -> np.ndarray:
        """(n,) states of each document of a shard."""
        return np.diff(self._shards.array(shard, "ends"))

    def states(self, shard: int, numbers: Sequence[int]) -> list[np.ndarray]:
        """(g, D) of each of these documents, counted from the first of their shard.

        Raises:
            ValueError: if a file is missing or not as it was written.
        """
        every, ends = self._shards.array(shard, "states"), self._shards.array(shard, "ends")
        found = [np.asarray(every[ends[i] : ends[i + 1]]) for i in numbers]
        return [x.view("bfloat16") if x.dtype == _BFLOAT16 else x for x in found]


def write_encoded(
    folder: str | os.PathLike,
    about: dict[str, Any],
    count: int,
    encode: Callable[[range], Sequence[np.ndarray]],
    shard_size: int,
) -> EncodedDocuments:
    """Writes the states of documents; after a kill, the same call goes on behind the last shard.

    Args:
        folder: new, empty, or begun by the same call.
        about: JSON types; all that the states depend on.
        count: of documents.
        encode: numbers of some documents to their states, (g, D) each.
        shard_size: documents of a shard.

    Raises:
        ValueError: if the folder holds something else, or is finished and whole.
        BlockingIOError: if another process writes there.
    """
    with ShardWriter(folder, KIND, about) as writer:
        begun = sum(facts["documents"] for facts in writer.shards)
        for first in track(range(begun, count, shard_size), "Encoding"):
            numbers = range(first, min(first + shard_size, count))
            found = encode(numbers)
            states = np.concatenate(found)
            states = states.view(_BFLOAT16) if str(states.dtype) == "bfloat16" else states
            ends = np.cumsum([0, *map(len, found)])
            writer.write({"states": states, "ends": ends}, {"documents": len(numbers)})
        writer.finish({"documents": count})
    return EncodedDocuments(folder)
