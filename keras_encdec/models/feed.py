"""What `fit` takes: text of any kind, on its way to batches.

Knows the kinds of datasets. Leaves order to `keras_encdec.data`, examples to the
preprocessor.
"""

import functools
import itertools

import grain
import keras
import numpy as np

from keras_encdec.data.pipeline import READ_AHEAD, batches
from keras_encdec.data.read import Documents
from keras_encdec.data.tokens import Tokens, tokenize
from keras_encdec.models.preprocessor import PACKED_TOGETHER
from keras_encdec.models.text import is_text
from keras_encdec.objectives import Stages
from keras_encdec.training.run import Feed

BATCH_SIZE = 32  # as in Keras


def feed(x, preprocessor, batch_size, epochs) -> Feed | None:
    """Batches from an `x` that Keras does not take as it is.

    Args:
        x: texts (a list, an array, `keras_encdec.data.read(...)`, a Hugging Face dataset),
            `keras_encdec.data.Tokens`, a tf.data dataset of strings, or a Grain
            dataset of strings, of pairs or of ready batches.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`.
        batch_size: B, or None.
        epochs: passes.

    Returns:
        `Feed`, or None where `x` is something else.
    """
    if isinstance(x, (grain.MapDataset, grain.IterDataset)):
        return _grain(x, preprocessor, batch_size or BATCH_SIZE, epochs)
    if is_text(x) and hasattr(x, "element_spec"):
        return again(required(preprocessor).dataset(x, batch_size or BATCH_SIZE))
    if is_text(x) or isinstance(x, Documents) or hasattr(x, "column_names"):
        x = tokenize(x, required(preprocessor).tokenizer)
    if not isinstance(x, Tokens):
        return None
    batch_size = batch_size or min(BATCH_SIZE, _examples(x, required(preprocessor)))
    data = batches(x, required(preprocessor), batch_size, epochs=epochs)
    return _numbered(data, len(data) // epochs)


def arrays(x, y, weight, batch_size, preprocessor) -> Feed:
    """Model inputs or pairs in memory, in an order that follows from the preprocessor's seed.

    Args:
        x: dict of arrays or lists, N rows each.
        y: labels, or None for pairs of texts.
        weight: of the labels, or None.
        batch_size: B, or None.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`, or None: the seed is 0.
    """
    if isinstance(x, dict) and "encoder_text" in x:
        x, y, weight = required(preprocessor)(x)
    given = tuple(part for part in (x, y, weight) if part is not None)
    parts = tuple(
        {key: np.asarray(rows) for key, rows in part.items()}
        if isinstance(part, dict)
        else np.asarray(part)
        for part in given
    )
    count, batch_size = len(keras.tree.flatten(parts)[0]), batch_size or BATCH_SIZE
    steps = -(-count // batch_size)
    seed = preprocessor.seed if preprocessor is not None else 0

    def at(epoch, batch):
        for number in itertools.count(epoch):
            order = np.random.default_rng((seed, number)).permutation(count)
            for i in range(batch, steps):
                some = order[i * batch_size : (i + 1) * batch_size]
                yield keras.tree.map_structure(lambda rows, some=some: rows[some], parts)
            batch = 0

    return Feed(at, steps)


def again(data) -> Feed:
    """Batches in an order of their own: what is behind is gone through once more."""

    def at(epoch, batch):
        return _skipped(data, batch) if batch else data

    return Feed(at)


def _skipped(data, count):
    yield from itertools.islice(data, count, None)


def _numbered(data, steps) -> Feed:
    return Feed(
        lambda epoch, batch: data[epoch * steps + batch :].to_iter_dataset(READ_AHEAD), steps
    )


def pairs(x):
    """A Hugging Face dataset of pairs as the dict that `fit` takes; other `x` as they are."""
    names = getattr(x, "column_names", None)
    if names is None or not {"encoder_text", "decoder_text"} <= set(names):
        return x
    return {name: list(x[name]) for name in ("encoder_text", "decoder_text")}


def _grain(data, preprocessor, batch_size, epochs):
    is_map = isinstance(data, grain.MapDataset)
    element = data[0] if is_map else next(iter(data))
    if not is_text(element) and not isinstance(element, dict):
        return _numbered(data.repeat(epochs), len(data)) if is_map else again(data)
    return again(stream(data, required(preprocessor), batch_size))


def stream(data, preprocessor, batch_size):
    """Texts or pairs, as they come, to batches; the iterator's state is its position.

    Args:
        data: `grain.MapDataset` or `grain.IterDataset` of strings, or of dicts with
            `encoder_text` and `decoder_text`.
        preprocessor: `EncDecSeq2SeqLMPreprocessor`.
        batch_size: B.

    Returns:
        `grain.IterDataset` of `(x, y, sample_weight)`.
    """
    several = preprocessor.packing or preprocessor.cross_documents
    together = data.batch(PACKED_TOGETHER if several else 1, batch_fn=_columns)
    rows = _Rows(preprocessor, PACKED_TOGETHER if several else 1)
    if isinstance(data, grain.MapDataset):
        made = together.map_with_index(rows.numbered).to_iter_dataset(READ_AHEAD)
    else:
        made = together.random_map(rows.drawn, seed=preprocessor.seed)
    flat = grain.experimental.FlatMapIterDataset(made, _Flat())
    layout = preprocessor.rows()
    return flat.batch(batch_size, batch_fn=functools.partial(layout.batch, size=batch_size))


class _Rows:
    """Texts to the examples of each row."""

    def __init__(self, preprocessor, together):
        self.preprocessor, self.together = preprocessor, together

    def numbered(self, index, texts):
        return self._grouped(texts, first=index * self.together)

    def drawn(self, texts, rng):
        return self._grouped(texts, first=int(rng.integers(1 << 62)))

    def _grouped(self, texts, **number):
        examples = self.preprocessor.examples(texts, **number)
        return self.preprocessor.grouped(examples, self.preprocessor.rows())


class _Flat(grain.experimental.FlatMapTransform):
    max_fan_out = 1 << 30

    def flat_map(self, element):
        return element


def _columns(elements):
    """Texts as a list, or dicts of texts as a dict of lists."""
    if not isinstance(elements[0], dict):
        return list(elements)
    return {key: [element[key] for element in elements] for key in elements[0]}


def _examples(tokens, preprocessor):
    objective = preprocessor.objective
    if isinstance(objective, Stages):
        objective = objective.objectives[0]
    return max(1, len(preprocessor.cut(tokens.lengths, objective)))


def required(preprocessor):
    """The preprocessor, which text needs."""
    if preprocessor is None:
        raise ValueError("Expected token ids, as there is no preprocessor. Received: text.")
    return preprocessor
