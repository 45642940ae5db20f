"""From data of any kind to the batches of each epoch: one way for all that read batches.

`fit`, its validation, `evaluate` and `predict` ask `batch_source` for a `BatchSource`, which
finds any batch of any epoch again. Leaves the order of rows to `keras_encdec.data.pipeline`
and what is wrong with ready arrays to `keras_encdec.data.ready`.
"""

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from keras_encdec import check
from keras_encdec.data import ready
from keras_encdec.data.conversations import examples_of_conversations
from keras_encdec.data.kinds import (
    Conversations,
    Documents,
    ModelInputs,
    Pairs,
    Source,
    Stream,
    Tokens,
    documents_of,
    joined,
)
from keras_encdec.data.labelled import Classes
from keras_encdec.data.pipeline import Epoch, Order, Passes, epoch_of_examples, this_host
from keras_encdec.data.recognize import READ_AHEAD
from keras_encdec.data.tokenizing import Log, encoded, tokenize
from keras_encdec.objectives import Example, Stages
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.objectives.images import ImageTokens
from keras_encdec.objectives.rows import Batch
from keras_encdec.progress import track

BATCH_SIZE = 32  # as in Keras
LOOK_AHEAD = 256  # texts of a stream that may share a row or a window
_TOGETHER = 512  # pairs given to the tokenizer at once


@dataclasses.dataclass(frozen=True)
class Batching:
    """How batches are made, whatever the data.

    Args:
        batch_size: B on all hosts together; None for 32, or fewer where there are fewer rows.
        shuffle: whether rows in memory are shuffled, anew in each epoch.
        steps: batches of an epoch; None for all the data.
        fill: whether an epoch's last batch is filled up, with rows that count nothing.
        multiple: what devices and parts of a step divide: each batch is filled up to it.
        labels: checks labels of ready arrays; None leaves them as they are.
        last_stage: of `Stages`, the last objective alone, as in evaluation.
        epochs: of the run, which `Stages` divide.
        inputs_only: leaves labels and weights of ready arrays out, as in prediction.
        vocabularies: sizes, which ready ids must be below, of each side.
        classes: which labels a text may have, where it has one for all of it.
        images: how ready images are read; None where none are.

    Raises:
        ValueError: if a number is below 1.
    """

    batch_size: int | None = None
    shuffle: bool = True
    steps: int | None = None
    fill: bool = True
    multiple: int = 1
    labels: ready.Labels | None = None
    last_stage: bool = False
    epochs: int = 1
    inputs_only: bool = False
    vocabularies: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classes: Classes | None = None
    images: ImageTokens | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps"):
            value = getattr(self, name)
            if value is not None:
                check.whole("steps_per_epoch" if name == "steps" else name, value)

    def rows(self, inputs: ModelInputs) -> ready.Rows:
        """The rows of ready arrays."""
        x = ready.checked_ids(inputs.x, self.vocabularies)
        ready.check_images(x, self.images)
        inputs = ModelInputs(x) if self.inputs_only else dataclasses.replace(inputs, x=x)
        inputs = ready.checked(inputs, self.labels)
        return ready.Rows(inputs.x, inputs.y, inputs.weights)

    def order(self, converter: Any, rows: int) -> Order:
        """The order of that many rows, by the seed of a converter, 0 without one."""
        seed = 0 if converter is None else converter.seed
        count = this_host()[1]
        size = self.batch_size or -(-min(BATCH_SIZE, rows) // count) * count
        return Order(size, self.shuffle, seed, this_host(), self.fill, self.multiple)


class BatchSource(abc.ABC):
    """Batches of each epoch, found again by their number.

    Attributes:
        again: whether a batch can be read a second time.
        ahead: whether it may be read before the one before it has been trained on.
        name: of the data's type, where it cannot be read again.
    """

    again = True
    ahead = True
    name = ""

    @abc.abstractmethod
    def steps(self, epoch: int) -> int | None:
        """Batches of an epoch; None where only their end tells."""

    @abc.abstractmethod
    def read(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""


def batch_source(
    source: Source, converter: FeatureConverter | None, batching: Batching
) -> BatchSource:
    """The batches of data.

    Args:
        source: from `keras_encdec.data.as_source`.
        converter: `FeatureConverter`; None where there is no preprocessor.
        batching: `Batching`.

    Raises:
        ValueError: if the data is text and there is no converter, or is not fit to train on.
    """
    if isinstance(source, Stream) and (batching.steps is None or source.is_bounded):
        source = source.collected()
    if isinstance(source, Stream):
        return _Streamed(source, converter, batching)
    if isinstance(source, ModelInputs):
        return _of_arrays(source, converter, batching)
    found = _of_text(source, required(converter), batching)
    if batching.labels is not None and batching.labels.class_weight is not None:
        found = _ByClass(found, batching.labels)
    if batching.steps is None or isinstance(getattr(found, "plain", found), _Staged):
        return found
    return _Stepped(found, batching.steps)


def of_rows(rows: ready.Rows, order: Order, steps: int | None) -> BatchSource:
    """Batches of rows that are ready.

    Args:
        rows: all of them.
        order: `Order`.
        steps: batches of an epoch; None for all the rows.
    """

    def epoch_of(epoch: int) -> Epoch:
        return Epoch(order.shuffled(grain.MapDataset.source(rows), epoch), rows.lay, order)

    found = _Indexed(functools.lru_cache(1)(epoch_of))
    return found if steps is None else _Stepped(found, steps)


def split(source: Source, fraction: float) -> tuple[Source, Source]:
    """The first part to train on and the last part to validate on, as in Keras.

    Raises:
        ValueError: if one of them would be empty, or the data cannot be indexed.
    """
    fraction = check.real("validation_split", fraction, above=0, below=1)
    if isinstance(source, (Stream, Documents)):
        raise ValueError(
            "Expected data in memory for validation_split. Received: a stream. Pass "
            "validation_data."
        )
    count = len(source.lengths) if isinstance(source, Tokens) else len(source)
    kept = math.floor(count * (1 - fraction))
    if not 0 < kept < count:
        raise ValueError(
            f"Expected validation_split to leave rows on both sides. Received: {fraction} of "
            f"{count} rows."
        )
    if isinstance(source, Tokens):
        return source.part(0, kept), source.part(kept, count)
    return source[:kept], source[kept:]


def required(converter: FeatureConverter | None) -> FeatureConverter:
    """The converter, which text needs."""
    if converter is None:
        raise ValueError("Expected token ids, as there is no preprocessor. Received: text.")
    return converter


# Data that is found again by index.


@dataclasses.dataclass(frozen=True)
class _Indexed(BatchSource):
    """Batches of epochs that are made one by one."""

    epoch: Callable[[int], Epoch]

    def steps(self, epoch: int) -> int | None:
        return self.epoch(epoch).steps

    def read(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return self.epoch(epoch).read(start)


@dataclasses.dataclass(frozen=True)
class _Staged(BatchSource):
    """Batches of `Stages`: as many in each epoch as the first stage alone would have."""

    passes: Passes
    stages: Stages
    batching: Batching

    def steps(self, epoch: int) -> int:
        return self._sizes[epoch]

    def read(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        first = sum(self._sizes[:epoch])
        part = self._whole[first + start : first + self.steps(epoch)]
        return iter(part.to_iter_dataset(READ_AHEAD))

    @functools.cached_property
    def _sizes(self) -> list[int]:
        first, given = self.stages.objectives[0], self.batching.steps
        return [given or len(self.passes.epoch(e, first)) for e in range(self.batching.epochs)]

    @functools.cached_property
    def _whole(self) -> grain.MapDataset:
        return self.passes.staged(self.stages, sum(self._sizes))


@dataclasses.dataclass(frozen=True)
class _Stepped(BatchSource):
    """Epochs of a given number of batches, over as many passes as they need."""

    passes: BatchSource
    count: int

    def steps(self, epoch: int) -> int:
        return self.count

    def read(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        skip = epoch * self.count + start
        return itertools.islice(self._from(skip), self.count - start)

    def _from(self, skip: int) -> Iterator[Batch]:
        number = 0
        while (steps := self.passes.steps(number)) is not None and steps <= skip:
            skip, number = skip - steps, number + 1
        for epoch in itertools.count(number):
            yield from self.passes.read(epoch, skip)
            skip = 0


@dataclasses.dataclass(frozen=True)
class _ByClass(BatchSource):
    """Batches whose labels count by their id, too."""

    plain: BatchSource
    labels: ready.Labels

    def steps(self, epoch: int) -> int | None:
        return self.plain.steps(epoch)

    def read(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return map(self.labels.reweighted, self.plain.read(epoch, start))


def _of_arrays(
    inputs: ModelInputs, converter: FeatureConverter | None, batching: Batching
) -> BatchSource:
    rows = batching.rows(inputs)
    return of_rows(rows, batching.order(converter, len(rows)), batching.steps)


def _of_text(source: Source, converter: FeatureConverter, batching: Batching) -> BatchSource:
    if isinstance(source, (Pairs, Conversations)):
        examples = _Kept(examples_of(source, converter))
        order = batching.order(converter, len(examples))
        return _Indexed(lambda epoch: epoch_of_examples(examples, converter, order, epoch))
    tokens, objective = tokens_of(source, converter), converter.bound
    stages = objective if isinstance(objective, Stages) else None
    one: Any = stages.objectives[-1 if batching.last_stage else 0] if stages else objective
    rows = max(1, len(converter.windows(tokens.lengths, one)))
    passes = Passes(tokens, converter, batching.order(converter, rows))
    if stages is None or batching.last_stage:
        return _Indexed(functools.lru_cache(1)(lambda epoch: passes.epoch(epoch, one)))
    return _Staged(passes, stages, batching)


def tokens_of(source: Source, converter: FeatureConverter) -> Tokens:
    """Plain text as tokens."""
    if isinstance(source, Tokens):
        return source
    return tokenize(source, converter.tokenizer, allow_special=converter.allow_special)


class _Kept:
    """Examples that are the same in each epoch."""

    def __init__(self, examples: list[Example]):
        self.examples = examples
        self.teacher = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def examples_of(source: Pairs | Conversations, converter: FeatureConverter) -> list[Example]:
    if isinstance(source, Pairs):
        return _examples_of_pairs(source, converter)
    return examples_of_conversations(source, converter)


def _examples_of_pairs(pairs: Pairs, converter: FeatureConverter) -> list[Example]:
    pairs.targets()  # all of them, before a part
    examples: list[Example] = []
    for at in track(range(0, len(pairs), _TOGETHER), "Tokenising"):
        some = pairs[at : at + _TOGETHER]
        examples += converter.of_pairs(
            some.encoder_text, some.targets(), some.weights, images=some.images
        )
    return examples


# Data that can only be gone through.


class _Streamed(BatchSource):
    """Batches of a stream: ready ones as they come, or texts made into some, in their order.

    With `batching.steps` an epoch goes on where the last one ended, and a stream that ends
    is begun again, if it can be.
    """

    def __init__(
        self, stream: Stream, converter: FeatureConverter | None, batching: Batching
    ) -> None:
        self.stream, self.converter, self.batching = stream, converter, batching
        self.again, self.name = stream.again, stream.name
        self.is_ready = isinstance(stream.first(), ModelInputs)
        self.order = batching.order(converter, BATCH_SIZE)
        self._open: Iterator[Batch] = iter(())
        self._position = 0
        if not self.is_ready:
            required(converter)

    def steps(self, epoch: int) -> int | None:
        if self.batching.steps is not None:
            return self.batching.steps
        length = self.stream.length
        return int(length) if length is not None and length < math.inf else None

    def read(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        count = self.batching.steps
        if count is None:
            return self._pass(epoch, start)
        return itertools.islice(self._from(epoch * count + start), count - start)

    def _from(self, position: int) -> Iterator[Batch]:
        """On from a batch of all passes together."""
        if position != self._position or not position:
            self._open = itertools.islice(self._passes(), position, None)
            self._position = position
        for batch in self._open:
            self._position += 1
            yield batch

    def _passes(self) -> Iterator[Batch]:
        for number in itertools.count():
            batch = None
            for batch in self._pass(number, 0):
                yield batch
            if batch is None or not self.again:
                return

    def _pass(self, epoch: int, start: int) -> Iterator[Batch]:
        if self.is_ready:
            ready_ones = self.stream.begin(start)
            return (self._finished(source) for source in ready_ones)
        return itertools.islice(self._of_texts(epoch), start, None)

    def _finished(self, source: Source) -> Batch:
        if not isinstance(source, ModelInputs):
            raise ValueError("Expected ready batches throughout. Received: text among them.")
        rows = self.batching.rows(source)
        return rows.whole(self.order.divisible(len(rows)))

    def _of_texts(self, epoch: int) -> Iterator[Batch]:
        converter, order = required(self.converter), self.order
        rows = self._rows(converter, epoch)
        (index, count), size = order.host, order.batch_size
        while some := list(itertools.islice(rows, size)):
            some += [[]] * (-len(some) % count)
            mine = some[index::count]
            batch = converter.rows.batch(mine, order.padded(len(mine)))
            yield batch if self.batching.labels is None else self.batching.labels.reweighted(batch)

    def _rows(self, converter: FeatureConverter, epoch: int) -> Iterator[list[Example]]:
        log, number = Log(), 0
        several = converter.packing or converter.cross_documents
        elements = self.stream.begin(0)
        together = LOOK_AHEAD if several else BATCH_SIZE
        while some := list(itertools.islice(elements, together)):
            examples = _examples_of_elements(some, converter, log, number, epoch)
            number += len(some)
            yield from converter.grouped(examples)


def _examples_of_elements(
    elements: list[Source], converter: FeatureConverter, log: Log, first: int, epoch: int
) -> list[Example]:
    """Examples of some elements of a stream, all of them of one kind."""
    if isinstance(elements[0], (Pairs, Conversations)):
        return examples_of(joined(elements), converter)
    documents, before = list(documents_of(elements)), log.read
    numbered = list(encoded(documents, converter.tokenizer, log, converter.allow_special))
    if not numbered:
        return []
    weights: list[Any] = [getattr(source, "weights", None) for source in elements]
    kept: Any = None
    if weights[0] is not None:
        kept = np.concatenate(weights)[[number - before for number, _ in numbered]]
    return converter.of_documents([row for _, row in numbered], first, epoch, kept)
