"""Arrays that come ready for the model: what their labels and weights mean, and filling up.

Knows that a label of -100 counts nothing, that padding counts nothing where nobody says
otherwise, and that rows are filled up with rows that count nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.data.kinds import ModelInputs
from keras_encdec.objectives.images import IMAGES, ImageTokens
from keras_encdec.objectives.rows import Batch, Inputs

IGNORED = -100  # as collators of transformers and PyTorch's cross-entropy have it


@dataclasses.dataclass(frozen=True)
class Labels:
    """How labels are checked.

    Args:
        vocabulary_size: V.
        class_weight: what each token counts as a label, by id; 1 for the others.

    Raises:
        ValueError: if `class_weight` is no such mapping.
    """

    vocabulary_size: int
    class_weight: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.class_weight or {}, Mapping):
            raise ValueError(
                f"Expected class_weight as a dict by id. Received: {self.class_weight!r}."
            )
        for token, weight in (self.class_weight or {}).items():
            check.whole("ids of class_weight", token, least=0, most=self.vocabulary_size - 1)
            check.real("weights of class_weight", weight, least=0)

    def reweighted(self, batch: Batch) -> Batch:
        """A batch whose labels count by their id, too."""
        x, y, weight = batch
        labels = y["labels"] if isinstance(y, dict) else y
        return x, y, weight * self.by_class(labels)

    def by_class(self, labels: np.ndarray) -> np.ndarray:
        """What `class_weight` says of each label."""
        factor = np.ones(labels.shape, "float32")
        for token, weight in (self.class_weight or {}).items():
            factor[labels == token] = weight
        return factor


def checked_ids(x: Inputs, vocabularies: Mapping[str, int]) -> Inputs:
    """The four model inputs with int32 ids; those of padding are of no account.

    Args:
        x: model inputs.
        vocabularies: sizes, of `"encoder"` and `"decoder"`.

    Raises:
        ValueError: if ids are no integers, or one that is not padding is outside its vocabulary.
    """
    found = dict(x)
    for side, size in vocabularies.items():
        name = f"{side}_token_ids"
        found[name] = ids_within(name, x[name], x[f"{side}_padding_mask"], size)
    return found


def check_images(x: Inputs, images: ImageTokens | None) -> None:
    """Raises ValueError where ready images are not what a model reads.

    Args:
        x: model inputs.
        images: how it reads them; None where it does not.
    """
    given = x.get(IMAGES)
    if images is not None:
        images.check_inputs(x["encoder_token_ids"], x["encoder_padding_mask"], given)
    elif given is not None:
        raise ValueError(
            "Expected model inputs without images, as the model reads none. Received: images of "
            f"shape {given.shape}."
        )


def ids_within(name: str, ids: Any, padding_mask: Any, size: int) -> np.ndarray:
    """int32 ids of a vocabulary of that size; 0 at padding where they are none of it.

    Raises:
        ValueError: as `checked_ids`.
    """
    ids, mask = np.asarray(ids), np.asarray(padding_mask) != 0
    if ids.dtype.kind not in "iu":
        raise ValueError(f"Expected integers as {name}. Received: {ids.dtype}.")
    wrong = (ids < 0) | (ids >= size)
    if (wrong & mask).any():
        row, *place = np.argwhere(wrong & mask)[0]
        raise ValueError(
            f"Expected {name} from 0 to {size - 1}, the vocabulary. Received: "
            f"{ids[row, *place]} at place {place[-1]} of row {row}."
        )
    return np.where(wrong, 0, ids).astype("int32")


def checked(inputs: ModelInputs, labels: Labels | None) -> ModelInputs:
    """Model inputs with labels that can be looked up, and a weight for each of them.

    Args:
        inputs: `ModelInputs`.
        labels: how; None leaves labels and weights as they are.

    Returns:
        `ModelInputs`; labels that count nothing are 0. Without a sample_weight those that
        stand at padding count nothing; one of (N,) counts for the row's tokens.

    Raises:
        ValueError: if there are no labels, their shape is another, or one that counts is
            none of the vocabulary; the message names its row, place and id.
    """
    if labels is None:
        return inputs
    y = inputs.y.get("labels") if isinstance(inputs.y, dict) else inputs.y
    shape = inputs.x["decoder_token_ids"].shape
    if y is None or y.shape != shape or y.dtype.kind not in "iu":
        raise ValueError(
            f"Expected integer labels of shape {shape}, as decoder_token_ids. Received: "
            f"{'none' if y is None else f'{y.dtype} of shape {y.shape}'}."
        )
    weight = _weights(inputs, shape) * (y != IGNORED)
    wrong = ((y < 0) | (y >= labels.vocabulary_size)) & (weight != 0)
    if wrong.any():
        row, place = (int(i[0]) for i in np.nonzero(wrong))
        raise ValueError(
            f"Expected labels from 0 to {labels.vocabulary_size - 1}, or {IGNORED} for those that "
            f"count nothing. Received: {y[row, place]} in row {row}, place {place}."
        )
    y = np.where(weight != 0, y, 0).astype("int32")
    weight = weight.astype("float32") * labels.by_class(y)
    y = {**inputs.y, "labels": y} if isinstance(inputs.y, dict) else y
    return ModelInputs(inputs.x, y, weight)


def _weights(inputs: ModelInputs, shape: tuple[int, ...]) -> np.ndarray:
    """(N, T) what each label counts."""
    weight = inputs.weights
    there = inputs.x["decoder_padding_mask"] != 0
    if weight is None:
        return there.astype("float32")
    weight = np.asarray(weight, "float32")
    if weight.ndim == 2 and weight.shape[1] == 1 != shape[1]:
        weight = weight[:, 0]
    if weight.shape not in (shape, shape[:1]):
        raise ValueError(
            f"Expected a sample_weight of shape {shape[:1]} or {shape}. "
            f"Received: shape {weight.shape}."
        )
    return weight[:, None] * there if weight.ndim == 1 else weight


class Rows:
    """Rows of model inputs: `rows[i]`, and `rows.lay` to make a batch of some.

    Args:
        x: model inputs, (N, ...) each.
        y: (N, ...), or a dict of such, or None.
        weights: (N, ...) or None.
    """

    def __init__(self, x: Inputs, y: Any = None, weights: np.ndarray | None = None):
        self.parts: Batch = (x, y, weights)  # type: ignore[assignment]
        self._count = len(next(iter(x.values())))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return int(index)

    def lay(self, rows: Sequence[Any], size: int) -> Batch:
        """The rows with these numbers, filled up to `size` with rows that count nothing.

        Args:
            rows: numbers; () for a row that is there to fill.
            size: rows of the batch.
        """
        numbers = [row for row in rows if row != ()]
        return self._filled(lambda array: array[numbers], len(numbers), size)

    def whole(self, size: int) -> Batch:
        """All rows, filled up to `size`."""
        return self._filled(lambda array: array, len(self), size)

    def _filled(self, taken: Any, count: int, size: int) -> Batch:
        x, y, weight = self.parts
        if weight is None and size > count:
            weight = np.ones(len(self), "float32")

        def of(array: np.ndarray) -> np.ndarray:
            some = taken(array)
            return np.concatenate([some, np.zeros((size - count, *some.shape[1:]), some.dtype)])

        def each(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: of(array) for name, array in value.items()}
            return None if value is None else of(value)

        return each(x), each(y), each(weight)
