"""What a teacher would have written, kept on disk: ids and log-probabilities per target.

Knows which rows of a teacher's output belong to which targets, and how to tell when
they do not. Leaves the loss to training.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encdec import check
from keras_encdec.data.shards import Shards, ShardWriter
from keras_encdec.data.tokens import Tokens, vocabulary_digest
from keras_encdec.files import readable
from keras_encdec.objectives import Example
from keras_encdec.objectives.converter import FeatureConverter, HasConverter, converter_of
from keras_encdec.objectives.draws import fold
from keras_encdec.objectives.windows import Windows
from keras_encdec.progress import track

KIND = "teacher rows"
_CHUNK = 128  # positions whose logits are held at once
_SHARD_BATCHES = 128  # that a shard holds


class Teacher:
    """Reads what `write_teacher` has written.

    Args:
        folder: of `write_teacher`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is unfinished.
    """

    def __init__(self, folder: str | os.PathLike):
        with readable("folder of teacher rows", folder):
            self._shards = Shards(folder, KIND)
            counts = [int(self._shards.facts(i)["examples"]) for i in range(len(self._shards))]
            self._ends, self._end = np.cumsum(counts), int(self._shards.about["end"])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def rows(
        self, index: int, window: np.ndarray, example: Example
    ) -> tuple[np.ndarray, np.ndarray]:
        """The teacher's distribution at each target of example `index`.

        Sentinels and the end token, which no text holds, get all probability.

        Args:
            index: number of the example; after the last it begins again.
            window: 1-D int32, the tokens that the example was made of.
            example: what the decoder must write.

        Returns:
            Ids and log-probabilities, (n, k) each, n = targets and end token. The
            log-probabilities are those among all tokens: they sum to less than 1.

        Raises:
            ValueError: if the rows were written for another example, or are damaged.
        """
        index %= max(1, len(self))
        shard = int(np.searchsorted(self._ends, index, side="right"))
        if shard == len(self._ends):
            raise ValueError(f"Expected a teacher of some examples. Received: {self._where(0)}.")
        index -= int(self._ends[shard - 1]) if shard else 0
        positions = example.positions()[1]
        if self._shards.array(shard, "digests")[index] != _digest(window, positions):
            raise ValueError(
                f"Expected the teacher's rows of this example in {self._where(shard)}, record "
                f"{index}. Received: rows of another: tokens, objective, lengths or seed are not "
                "those it was written with. Write it anew."
            )
        start, stop = (int(i) for i in self._shards.array(shard, "ends")[index : index + 2])
        ending = (0, int(example.ends))
        known = np.pad(positions, ending, constant_values=-1) >= 0
        labels = np.pad(example.targets, ending, constant_values=self._end)
        kept = self._shards.array(shard, "ids")[start:stop]
        ids = np.zeros((len(known), kept.shape[1]), "int32")
        log_probs = np.full(ids.shape, -np.inf, "float32")
        ids[known] = kept
        log_probs[known] = self._shards.array(shard, "log_probs")[start:stop]
        ids[~known, 0], log_probs[~known, 0] = labels[~known], 0
        return ids, log_probs

    def _where(self, shard: int) -> str:
        return f"{self._shards.folder}, shard {shard}"


def write_teacher(
    folder: str | os.PathLike,
    teacher: Any,
    tokens: Tokens,
    preprocessor: FeatureConverter | HasConverter,
    *,
    k: int = 256,
    method: str = "top",
    epochs: int = 1,
    batch_size: int = 8,
    start_token: bool = True,
    dtype: str = "float16",
) -> Teacher:
    """Runs a teacher over the windows of an objective and keeps k logits per target.

    The teacher reads a window behind `<bos>`; the token at position p gets what it says
    after p tokens. So the first target of PrefixLM, which the decoder writes after its
    own `<bos>`, gets the teacher's last word on the prefix. After a kill, the same call
    goes on behind the last whole shard.

    Args:
        folder: new, empty, or begun by the same call.
        teacher: any KerasHub causal LM with the same tokenizer.
        tokens: `Tokens`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`; says the objective, lengths and seed.
        k: logits kept per target: 256 in Gemma 3.
        method: `"top"` for the k largest, or `"sample"` for k different ones drawn by
            the teacher's probabilities (arXiv 2503.19786, section 2.2).
        epochs: passes; 1 is enough for an objective that leaves nothing to chance.
        batch_size: windows that the teacher reads at once.
        start_token: whether the teacher reads `<bos>` first, as it was trained to.
        dtype: of the log-probabilities on disk; `"float32"` for twice the size.

    Returns:
        `Teacher`.

    Raises:
        ValueError: if an argument is out of range, the vocabularies differ, or the
            folder was begun otherwise.
    """
    converter = converter_of(preprocessor)
    check_one_vocabulary(converter)
    check.flag("start_token", start_token)
    size = converter.tokenizer.vocabulary_size()
    _check(teacher, size, k, method, epochs, batch_size, dtype)
    about = {"k": k, "method": method, "batch_size": batch_size, "dtype": dtype}
    about |= _ids_of(converter, start_token)
    with ShardWriter(folder, KIND, about) as writer:
        passes = [converter.windows(tokens.lengths, epoch=epoch) for epoch in range(epochs)]
        run = _Run(teacher, tokens, converter.bound, passes, about, size)
        numbers = range(sum(map(len, passes)))
        begun = sum(facts["examples"] for facts in writer.shards)
        size = _SHARD_BATCHES * batch_size
        for first in track(numbers[begun::size], "Asking the teacher"):
            some = numbers[first : first + size]
            parts = [run.batch(some[i : i + batch_size]) for i in range(0, len(some), batch_size)]
            writer.write(_joined(parts), {"examples": len(some)})
        writer.finish({"examples": len(numbers)})
    return Teacher(folder)


def check_one_vocabulary(converter: FeatureConverter) -> None:
    """Raises ValueError where encoder and decoder have tokens of their own."""
    if converter.encoder_tokenizer is not None:
        raise ValueError(
            "Expected encoder and decoder of one vocabulary for a teacher, who reads input and "
            "target as one text. Received: two tokenizers."
        )


class _Run:
    """The teacher and the windows that it reads, by number, over all passes."""

    def __init__(
        self,
        teacher: Any,
        tokens: Tokens,
        objective: Any,
        passes: list[Windows],
        about: dict[str, Any],
        size: int,
    ):
        self.backbone, self.tokens, self.objective = teacher.backbone, tokens, objective
        self.passes, self.about = passes, about
        self.ends = np.cumsum([len(windows) for windows in passes])
        self.length = max(int(w.lengths.max(initial=0)) for w in passes)
        self.head = _Head(teacher, about["k"], about["method"])
        self.ids_dtype = "uint16" if size <= 2**16 else "int32"

    def batch(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Rows of the examples with these numbers, one after another."""
        pairs = [self._example(number) for number in numbers]
        start = [] if self.about["start"] is None else [self.about["start"]]
        shape = (self.about["batch_size"], self.length + len(start))
        x = {name: np.zeros(shape, "int32") for name in ("token_ids", "padding_mask")}
        for i, (window, _) in enumerate(pairs):
            x["token_ids"][i, : len(window) + len(start)] = [*start, *window]
            x["padding_mask"][i, : len(window) + len(start)] = 1
        states = self.backbone.predict_on_batch(x)
        positions = [example.positions()[1] for _, example in pairs]
        known = [p[p >= 0] for p in positions]
        # State i has read tokens up to i, so token p was written by the state before it.
        rows = [states[i, p + len(start) - 1] for i, p in enumerate(known)]
        ids, log_probs = self.head.rows(np.concatenate(rows), fold(self.about["seed"], numbers[0]))
        digests = [_digest(w, p) for (w, _), p in zip(pairs, positions, strict=True)]
        return {
            "ids": ids.astype(self.ids_dtype),
            "log_probs": log_probs.astype(self.about["dtype"]),
            "counts": np.array([len(p) for p in known]),
            "digests": np.array(digests, "uint64"),
        }

    def _example(self, number: int) -> tuple[np.ndarray, Example]:
        epoch = int(np.searchsorted(self.ends, number, side="right"))
        index = number - (int(self.ends[epoch - 1]) if epoch else 0)
        return self.passes[epoch].example(index, self.tokens, self.objective)


class _Head(keras.Model):
    """States to the k chosen log-probabilities, a chunk of positions at a time."""

    def __init__(self, teacher: Any, k: int, method: str):
        super().__init__(name="teacher_head")
        self.embedding, self.k, self.sample = (
            teacher.backbone.token_embedding,
            k,
            method == "sample",
        )
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, states: Any) -> tuple[Any, Any]:
        logits = ops.cast(self.embedding(states, reverse=True), "float32")
        score = log_probs = ops.log_softmax(logits, axis=-1)
        if self.sample:  # the largest of these are a draw without replacement (Gumbel's trick)
            uniform = keras.random.uniform(ops.shape(score), 1e-20, 1.0, seed=self.seed_generator)
            score = score - ops.log(-ops.log(uniform))
        _, ids = ops.top_k(score, self.k)
        return ids, ops.take_along_axis(log_probs, ids, axis=-1)

    def rows(self, states: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probabilities, (n, k) each, of states (n, D)."""
        self.seed_generator.state.assign(np.array([seed >> 32, seed & 0xFFFFFFFF], "uint32"))
        whole = -(-len(states) // _CHUNK) * _CHUNK
        padded = np.pad(states, ((0, whole - len(states)), (0, 0)))
        parts = [self.predict_on_batch(padded[i : i + _CHUNK]) for i in range(0, whole, _CHUNK)]
        ids, log_probs = (np.concatenate(part)[: len(states)] for part in zip(*parts, strict=True))
        return ids, log_probs


def _ids_of(converter: FeatureConverter, start_token: bool) -> dict[str, Any]:
    tokenizer = converter.tokenizer
    return {
        "start": converter.start_token_id if start_token else None,
        "end": tokenizer.end_token_id,
        "vocabulary": vocabulary_digest(tokenizer),
        "seed": converter.seed,
    }


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    arrays["ends"] = np.concatenate([[0], np.cumsum(arrays.pop("counts"))])
    return arrays


def _digest(window: np.ndarray, positions: np.ndarray) -> int:
    data = np.asarray(window, "int32").tobytes() + np.asarray(positions, "int64").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _check(
    teacher: Any,
    vocabulary_size: int,
    k: int,
    method: str,
    epochs: int,
    batch_size: int,
    dtype: str,
) -> None:
    check.one_of("method", method, ("top", "sample"))
    check.one_of("dtype", dtype, ("float16", "float32"))
    check.whole("k", k, most=vocabulary_size)
    check.whole("batch_size", batch_size)
    check.whole("epochs", epochs)
    embedding = teacher.backbone.token_embedding
    if embedding.input_dim < vocabulary_size:
        raise ValueError(
            f"Expected a teacher of the {vocabulary_size} tokens of the tokenizer. "
            f"Received: one of {embedding.input_dim}."
        )
    x = {name: np.ones((1, 4), "int32") for name in ("token_ids", "padding_mask")}
    ours, theirs = (
        ops.convert_to_numpy(ops.cast(logits, "float32"))
        for logits in (embedding(teacher.backbone(x), reverse=True), teacher(x))
    )
    if not np.allclose(ours, theirs, atol=1e-3):
        raise ValueError(
            "Expected a teacher whose logits are its token embedding applied to its states. "
            f"Received: {type(teacher).__name__}, whose logits differ."
        )
