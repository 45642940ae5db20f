"""Batches in an order that follows from (seed, epoch, index) alone.

Knows epochs, stages, hosts, which examples share a row and where a step stands in the data.
Grain does the shuffling and batching; what an example is, `keras_encdec.objectives` says.
"""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import keras
import numpy as np

from keras_encdec import check
from keras_encdec.data.recognize import READ_AHEAD
from keras_encdec.data.teacher import Teacher
from keras_encdec.data.tokens import Tokens, vocabulary_digest
from keras_encdec.objectives import Example, Objective, Stages
from keras_encdec.objectives.converter import FeatureConverter, HasConverter, converter_of
from keras_encdec.objectives.draws import fold
from keras_encdec.objectives.packing import GROUP
from keras_encdec.objectives.rows import Batch
from keras_encdec.objectives.windows import Windows
from keras_encdec.progress import track

_SHUFFLE = 1 << 62  # a number that no document has, under an epoch's seed
_STAGE = 1 << 32  # epochs of a stage: stages draw and shuffle apart


class Examples:
    """The examples of one epoch, in the order of the stream: `examples[i]`, `len(examples)`.

    Args:
        tokens: `Tokens`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor` or its converter; says the objective,
            lengths and seed.
        epoch: what is left to chance is drawn anew in each.
        objective: in place of the preprocessor's.
        teacher: `Teacher`, whose rows join the examples.
        first: number of the first example in the teacher.
    """

    def __init__(
        self,
        tokens: Tokens,
        preprocessor: FeatureConverter | HasConverter,
        epoch: int = 0,
        objective: Objective | None = None,
        teacher: Teacher | None = None,
        first: int = 0,
    ):
        converter = converter_of(preprocessor)
        if tokens.weights is not None:
            converter.check_weighted()
        self.tokens, self.teacher, self.first = tokens, teacher, first
        self.objective: Any = objective or converter.bound
        self.windows: Windows = converter.windows(tokens.lengths, self.objective, epoch=epoch)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Example:
        try:
            window, example = self.windows.example(index, self.tokens, self.objective)
        except ValueError as error:
            raise ValueError(
                f"In document {self._document(index)} of the tokens: {error}"
            ) from error
        if self.tokens.weights is not None:
            weight = float(self.tokens.weights[self._document(index)])
            example = dataclasses.replace(example, weight=weight)
        if self.teacher is None:
            return example
        rows = self.teacher.rows(self.first + index, window, example)
        return dataclasses.replace(example, teacher=rows)

    def _document(self, index: int) -> int:
        return self.tokens.document_at(int(self.windows.starts[index]))


def batches(
    tokens: Tokens,
    preprocessor: FeatureConverter | HasConverter,
    batch_size: int,
    *,
    epochs: int = 1,
    steps: int | None = None,
    shuffle: bool = True,
    host: tuple[int, int] | None = None,
    teacher: Teacher | None = None,
) -> grain.MapDataset:
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
    if not isinstance(tokens, Tokens):
        raise ValueError(f"Expected Tokens, of tokenize. Received: {type(tokens).__name__}.")
    converter = converter_of(preprocessor)
    order = Order(batch_size, shuffle, converter.seed, host or this_host())
    for name, count in (("epochs", epochs), ("steps", 1 if steps is None else steps)):
        check.whole(name, count)
    passes = Passes(tokens, converter, order, teacher)
    if not isinstance(converter.bound, Stages):
        return passes.stage(converter.bound, 0, epochs, steps)
    if teacher is not None:
        raise ValueError("Expected one objective with a teacher. Received: Stages. Fit each alone.")
    first = converter.bound.objectives[0]
    total = steps or sum(len(passes.epoch(epoch, first)) for epoch in range(epochs))
    return passes.staged(converter.bound, total)


@dataclasses.dataclass(frozen=True)
class Order:
    """How rows are ordered, shared between hosts, and batched.

    Args:
        batch_size: B, rows of a batch on all hosts together.
        shuffle: whether rows are shuffled, anew in each epoch.
        seed: what the order follows from.
        host: `(index, count)`.
        fill: whether an epoch's last batch is filled up, with rows that count nothing.
        multiple: what the rows of each batch are filled up to a multiple of.

    Raises:
        ValueError: if hosts cannot share a batch.
    """

    batch_size: int
    shuffle: bool = True
    seed: int = 0
    host: tuple[int, int] = (0, 1)
    fill: bool = True
    multiple: int = 1

    def __post_init__(self) -> None:
        (index, count), size = self.host, self.batch_size
        if not 0 <= index < count:
            raise ValueError(
                f"Expected host=(index, count), index below count. Received: {self.host}."
            )
        if not isinstance(size, (int, np.integer)) or size < 1 or size % count:
            raise ValueError(
                f"Expected a batch_size of 1 or more that {count} hosts can share. "
                f"Received: {size!r}."
            )

    def shuffled(self, data: grain.MapDataset, epoch: int) -> grain.MapDataset:
        """`data` in the order of an epoch."""
        return data.shuffle(seed=self.seed_of(epoch) >> 32) if self.shuffle else data

    def seed_of(self, epoch: int) -> int:
        """What the order of an epoch follows from, 64 bits."""
        return int(fold(fold(self.seed, epoch), _SHUFFLE))

    def padded(self, rows: int) -> int:
        """Rows that a batch of that many on this host is filled up to."""
        return self.divisible(max(rows, self.batch_size // self.host[1] if self.fill else 0))

    def divisible(self, rows: int) -> int:
        """Rows of this host that `multiple` divides, that many or a few more."""
        each = max(1, self.multiple // self.host[1])
        return -(-rows // each) * each


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The batches of one pass over rows.

    Args:
        rows: `len(rows)` and `rows[i]`, in their order; those of `PackedRows` are counted
            when all of them are planned.
        lay: rows, and to how many they are filled up, to a batch.
        order: `Order`.
    """

    rows: "Sequence[Any] | grain.MapDataset"
    lay: Callable[..., Batch]
    order: Order

    @property
    def steps(self) -> int | None:
        """How many batches; None where rows are still to be packed."""
        return None if isinstance(self.rows, PackedRows) else len(self)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.order.batch_size)

    def numbered(self) -> grain.MapDataset:
        """The batches by number."""
        (index, count), size = self.order.host, self.order.batch_size
        rows = self.rows
        if not isinstance(rows, grain.MapDataset):
            rows = grain.MapDataset.source(rows)
        if missing := -len(rows) % (size if self.order.fill else count):
            rows = grain.MapDataset.concatenate([rows, grain.MapDataset.source([()] * missing)])
        return rows[index::count].batch(size // count, batch_fn=self._laid)

    def read(self, start: int = 0) -> Iterator[Batch]:
        """The batches from number `start` on, read a few ahead."""
        if not isinstance(self.rows, PackedRows):
            return iter(self.numbered()[start:].to_iter_dataset(READ_AHEAD))
        return self._in_order(self.rows, start)

    def _in_order(self, packed: "PackedRows", start: int) -> Iterator[Batch]:
        (index, count), size = self.order.host, self.order.batch_size
        rows = itertools.islice(packed, start * size, None)
        while batch := list(itertools.islice(rows, size)):
            batch += [[]] * (-len(batch) % count)
            yield self._laid(batch[index::count])

    def _laid(self, rows: Sequence[Any]) -> Batch:
        return self.lay(rows, self.order.padded(len(rows)))


class PackedRows:
    """Rows of several examples, found among a few that are looked at together.

    Going through them makes each example once, and none before its turn. `len(rows)` has
    to make all of them.

    Args:
        examples: `grain.MapDataset` of examples in the epoch's order.
        bare: the same without what does not change their lengths.
        converter: says how long a row is.
        seed: of the order of rows that were packed together; None to leave it.
    """

    def __init__(
        self,
        examples: grain.MapDataset,
        bare: grain.MapDataset,
        converter: FeatureConverter,
        seed: int | None,
    ):
        self.examples, self.bare, self.converter, self.seed = examples, bare, converter, seed
        self.groups = range(0, len(examples), GROUP)

    def __iter__(self) -> Iterator[list[Example]]:
        groups = grain.MapDataset.source(self.groups).map(self._packed)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return itertools.chain.from_iterable(groups.to_iter_dataset(ahead))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> list[Example]:
        return [self.examples[i] for i in self._places[index]]

    @functools.cached_property
    def _places(self) -> list[list[int]]:
        """Numbers of each row's examples."""
        places: list[list[int]] = []
        for start in track(self.groups, "Packing"):
            some = [self.bare[i] for i in self._numbers(start)]
            places += [[start + i for i in row] for row in self._plan(some, start)]
        return places

    def _packed(self, start: int) -> list[list[Example]]:
        some = [self.examples[i] for i in self._numbers(start)]
        return [[some[i] for i in row] for row in self._plan(some, start)]

    def _numbers(self, start: int) -> range:
        return range(start, min(start + GROUP, len(self.examples)))

    def _plan(self, examples: list[Example], start: int) -> list[list[int]]:
        rows = self.converter.rows.plan(examples)
        if self.seed is None:
            return rows
        order = np.random.default_rng(fold(self.seed, start)).permutation(len(rows))
        return [rows[i] for i in order]


@dataclasses.dataclass(frozen=True)
class Passes:
    """Passes over tokens: what all stages and epochs of a run have in common.

    Raises:
        ValueError: if the tokens are of another tokenizer.
    """

    tokens: Tokens
    converter: FeatureConverter
    order: Order
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        known, tokenizer = self.tokens.vocabulary, self.converter.tokenizer
        if known is None:
            self.tokens.check_ids(tokenizer.vocabulary_size())
        elif known != vocabulary_digest(tokenizer):
            raise ValueError(
                "Expected tokens of the preprocessor's tokenizer. Received: tokens of another "
                "vocabulary. Tokenise the texts again."
            )

    def epoch(self, epoch: int, objective: Objective | None = None, first: int = 0) -> Epoch:
        """One pass; `first` is the number of its first example in the teacher."""
        examples = Examples(self.tokens, self.converter, epoch, objective, self.teacher, first)
        if not len(examples):
            raise ValueError(
                "Expected text for at least one example of 2 tokens. "
                f"Received: {len(self.tokens.lengths)} documents without."
            )
        return epoch_of_examples(examples, self.converter, self.order, epoch)

    def stage(
        self, objective: Any, number: int, epochs: int | None, steps: int | None
    ) -> grain.MapDataset:
        """`epochs` passes, or as many as `steps` batches need."""
        parts: list[grain.MapDataset] = []
        seen = 0
        while (len(parts) < (epochs or 0)) if steps is None else (sum(map(len, parts)) < steps):
            epoch = self.epoch(number * _STAGE + len(parts), objective, seen)
            parts.append(epoch.numbered())
            seen += self._count(epoch)
        whole = grain.MapDataset.concatenate(parts)
        return whole if steps is None else whole[:steps]

    def _count(self, epoch: Epoch) -> int:
        rows = epoch.rows
        return len(rows.examples) if isinstance(rows, PackedRows) else len(rows)

    def staged(self, stages: Stages, total: int) -> grain.MapDataset:
        """The batches of all stages, one after another."""
        shares = enumerate(zip(stages.objectives, stages.steps(total), strict=True))
        parts = [self.stage(stage, i, None, count) for i, (stage, count) in shares if count]
        return grain.MapDataset.concatenate(parts)


def epoch_of_examples(
    examples: Any, converter: FeatureConverter, order: Order, epoch: int
) -> Epoch:
    """One pass over examples, one or several of them in a row.

    Args:
        examples: `len(examples)` and `examples[i]`.
        converter: `FeatureConverter`.
        order: `Order`.
        epoch: its number.
    """
    data = order.shuffled(grain.MapDataset.source(examples), epoch)
    if not converter.packing:
        return Epoch(data.map(_alone), converter.rows.batch, order)
    bare = copy.copy(examples)
    bare.teacher = None
    in_order = order.shuffled(grain.MapDataset.source(bare), epoch)
    seed = order.seed_of(epoch) if order.shuffle else None
    return Epoch(PackedRows(data, in_order, converter, seed), converter.rows.batch, order)


def _alone(example: Example) -> list[Example]:
    return [example]


def this_host() -> tuple[int, int]:
    """This process' share of the rows: hosts that a model axis joins read the same ones."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.process_index(), jax.process_count()
    count = min(distribution.num_processes, distribution.num_model_replicas)
    return distribution.data_shard_id, count
