"""Batches in an order that follows from (seed, epoch, index) alone.

Knows epochs, stages, hosts and where a step stands in the data. Grain does the
shuffling and batching; what an example is, `keras_encdec.objectives` says.
"""

import copy
import dataclasses
from typing import Any

import grain
import keras

from keras_encdec.data.teacher import Teacher
from keras_encdec.data.tokens import Tokens, vocabulary_digest
from keras_encdec.objectives import Example, Objective, Stages
from keras_encdec.objectives.draws import fold
from keras_encdec.objectives.windows import Windows
from keras_encdec.progress import track

# Batches are made in one thread, a few ahead: NumPy holds the interpreter either way.
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)

_SHUFFLE = 1 << 62  # a number that no document has, under an epoch's seed
_STAGE = 1 << 32  # epochs of a stage: stages draw and shuffle apart


class Examples:
    """The examples of one epoch, in the order of the stream: `examples[i]`, `len(examples)`.

    Args:
        tokens: `Tokens`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`; says the objective, lengths and seed.
        epoch: what is left to chance is drawn anew in each.
        objective: in place of the preprocessor's.
        teacher: `Teacher`, whose rows join the examples.
        first: number of the first example in the teacher.
    """

    def __init__(
        self,
        tokens: Tokens,
        preprocessor,
        epoch: int = 0,
        objective: Objective | None = None,
        teacher: Teacher | None = None,
        first: int = 0,
    ):
        self.tokens, self.teacher, self.first = tokens, teacher, first
        self.objective = objective or preprocessor.objective
        self.windows: Windows = preprocessor.cut(tokens.lengths, self.objective, epoch=epoch)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Example:
        try:
            window, example = self.windows.example(index, self.tokens, self.objective)
        except ValueError as error:
            number = self.tokens.document_at(int(self.windows.starts[index]))
            raise ValueError(f"In document {number} of the tokens: {error}") from error
        if self.teacher is None:
            return example
        rows = self.teacher.rows(self.first + index, window, example)
        return dataclasses.replace(example, teacher=rows)


def batches(
    tokens: Tokens,
    preprocessor,
    batch_size: int,
    *,
    epochs: int = 1,
    steps: int | None = None,
    shuffle: bool = True,
    host: tuple[int, int] | None = None,
    teacher: Teacher | None = None,
):
    """Batches for `lm.fit`, by number: `batches(...)[step:]` is what is left after a kill.

    Args:
        tokens: `Tokens`, of `tokenize` or `Tokens.load`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`; says the objective, lengths, seed and
            whether rows are packed.
        batch_size: B, rows of a batch on all hosts together. An epoch's last batch is
            filled with empty rows, which count nothing.
        epochs: passes over the tokens; with `Stages`, over those of its first objective.
        steps: how many batches, in place of `epochs`.
        shuffle: whether examples are shuffled, anew in each epoch.
        host: `(index, count)`; this host's share is every count-th row. By default
            that of the JAX process.
        teacher: `Teacher`, whose rows join the targets: `y` is then a dict of `labels`,
            `teacher_ids` and `teacher_log_probs`.

    Returns:
        `grain.MapDataset` of `(x, y, sample_weight)`, as the preprocessor makes them.

    Raises:
        ValueError: if there is not one example, the hosts cannot share a batch, or the
            tokens are of another tokenizer.
    """
    host = host or _this_host()
    _check(tokens, preprocessor, batch_size, host)
    for name, count in (("epochs", epochs), ("steps", 1 if steps is None else steps)):
        if count < 1:
            raise ValueError(f"Expected {name} of 1 or more. Received: {count}.")
    plan = _Plan(tokens, preprocessor, batch_size, shuffle, host, teacher)
    objective = preprocessor.objective
    if not isinstance(objective, Stages):
        return plan.stage(objective, 0, epochs, steps)
    if teacher is not None:
        raise ValueError("Expected one objective with a teacher. Received: Stages. Fit each alone.")
    total = steps or len(plan.stage(objective.objectives[0], 0, epochs, None))
    stages = zip(objective.objectives, objective.steps(total), strict=True)
    parts = [plan.stage(stage, i, None, count) for i, (stage, count) in enumerate(stages) if count]
    return grain.MapDataset.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What all stages and epochs of a run have in common."""

    tokens: Tokens
    preprocessor: Any
    batch_size: int
    shuffle: bool
    host: tuple[int, int]
    teacher: Teacher | None

    def stage(self, objective, number, epochs, steps):
        """`epochs` passes, or as many as `steps` batches need."""
        parts: list = []
        seen = 0
        while (len(parts) < epochs) if steps is None else (sum(map(len, parts)) < steps):
            epoch = number * _STAGE + len(parts)
            examples = Examples(
                self.tokens, self.preprocessor, epoch, objective, self.teacher, seen
            )
            parts.append(self.epoch(examples, epoch))
            seen += len(examples)
        whole = grain.MapDataset.concatenate(parts)
        return whole if steps is None else whole[:steps]

    def epoch(self, examples, epoch):
        """The batches of one pass over the tokens."""
        seed = fold(fold(self.preprocessor.seed, epoch), _SHUFFLE) >> 32
        if not len(examples):
            raise ValueError(
                "Expected text for at least one example of 2 tokens. "
                f"Received: {len(self.tokens.lengths)} documents without."
            )
        layout = self.preprocessor.rows()
        data = self._shuffled(grain.MapDataset.source(examples), seed)
        if self.preprocessor.packing:
            bare = copy.copy(examples)
            bare.teacher = None
            in_order = self._shuffled(grain.MapDataset.source(bare), seed)
            everything = track((in_order[i] for i in range(len(bare))), "Packing")
            groups = grain.MapDataset.source(layout.plan(everything))
            rows = self._shuffled(groups, seed).map(_Gather(data))
        else:
            rows = data.map(_alone)
        if missing := -len(rows) % self.batch_size:
            empty = grain.MapDataset.source([()] * missing)
            rows = grain.MapDataset.concatenate([rows, empty])
        index, count = self.host
        return rows[index::count].batch(self.batch_size // count, batch_fn=layout.batch)

    def _shuffled(self, data, seed):
        return data.shuffle(seed=seed) if self.shuffle else data


class _Gather:
    """The examples of a row."""

    def __init__(self, examples):
        self.examples = examples

    def __call__(self, indices):
        return [self.examples[i] for i in indices]


def _alone(example):
    return [example]


def _this_host() -> tuple[int, int]:
    """This process' share of the rows: hosts that a model axis joins read the same ones."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.process_index(), jax.process_count()
    count = min(distribution.num_processes, distribution.num_model_replicas)
    return distribution.data_shard_id, count


def _check(tokens, preprocessor, batch_size, host):
    index, count = host
    if not 0 <= index < count:
        raise ValueError(f"Expected host=(index, count), index below count. Received: {host}.")
    if not isinstance(batch_size, int) or batch_size < 1 or batch_size % count:
        raise ValueError(
            f"Expected a batch_size of 1 or more that {count} hosts can share. "
            f"Received: {batch_size!r}."
        )
    known = tokens.vocabulary
    if known is None:
        tokens.check_ids(preprocessor.tokenizer.vocabulary_size())
    elif known != vocabulary_digest(preprocessor.tokenizer):
        raise ValueError(
            "Expected tokens of the preprocessor's tokenizer. Received: tokens of another "
            "vocabulary. Tokenise the texts again."
        )
