"""Inputs with answers that people judged: a better and a worse one, or one with a label.

Knows which columns hold them, and lays them into arrays. Leaves what an input and an answer may be
to `keras_encdec.data.recognize`, and tokens to `keras_encdec.objectives.converter`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, get_args

import numpy as np

from keras_encdec.data.batching import examples_of
from keras_encdec.data.conversations import Conversations
from keras_encdec.data.images import of_source, refuse_images
from keras_encdec.data.kinds import Pairs, Source, joined
from keras_encdec.data.labelled import columns_of, elements, names_of_fields, numbers_of, together
from keras_encdec.data.recognize import (
    as_source,
    listed,
    refuse_beside,
    stream_of,
    weights_of,
)
from keras_encdec.objectives import Example
from keras_encdec.objectives.converter import FeatureConverter
from keras_encdec.objectives.rows import Inputs
from keras_encdec.warn import warn

Told = Pairs | Conversations
_COMPARED = "chosen", "rejected"
_MARGIN = "margin"


@dataclasses.dataclass(frozen=True)
class Preferred:
    """Inputs, each with a better and a worse answer; or with one, and whether it is wanted.

    Args:
        better: inputs and answers.
        worse: the same inputs with other answers; None where there are labels.
        labels: (n,) 1 where the answer is wanted, 0 where not; None where two are compared.
        margins: (n,) by how much the better answer is better; or None.
        weights: (n,) what each row counts, or None.

    Raises:
        ValueError: if there are not as many of each, or both answers are the same everywhere.
    """

    better: Told
    worse: Told | None = None
    labels: np.ndarray | None = None
    margins: np.ndarray | None = None
    weights: np.ndarray | None = None
    kind: ClassVar[str] = "preferences"

    def __post_init__(self) -> None:
        some = {"rejected": self.worse, "label": self.labels, "margin": self.margins}
        for name, column in some.items():
            if column is not None and len(column) != len(self):
                raise ValueError(
                    f"Expected a {name} for each of {len(self)} rows. Received: {len(column)}."
                )
        if self.weights is not None and self.weights.shape != (len(self),):
            raise ValueError(
                f"Expected one sample_weight for each of {len(self)} rows. Received: shape "
                f"{self.weights.shape}."
            )

    @property
    def compares(self) -> bool:
        """Whether each row has two answers."""
        return self.worse is not None

    def __len__(self) -> int:
        return len(self.better)

    def __getitem__(self, part: slice) -> "Preferred":
        given: tuple[Any, ...] = self.worse, self.labels, self.margins, self.weights
        return Preferred(self.better[part], *(None if x is None else x[part] for x in given))


def as_preferred(x: Any, y: Any = None, sample_weight: Any = None) -> Preferred | Source:
    """What `x`, with weights if there are any, is; of all other data, what `as_source` says.

    Args:
        x: a dict, frame, dataset or rows with the columns `prompt`, `chosen` and `rejected`, and
            `margin` where there is one; or `prompt`, `completion` and `label`. Prompts are texts
            or conversations that end with the user, answers texts or the assistant's messages;
            without `prompt` both answers are whole conversations, alike but for their last
            message. Or a dataset, loader or generator of these, which must have an end.
        y: None, or labels where `x` has none.
        sample_weight: what each row counts in the loss.

    Raises:
        ValueError: if columns are missing, or do not belong together.
    """
    if isinstance(x, Preferred):
        refuse_beside(x, y=y, sample_weight=sample_weight)
        return x
    if isinstance(x, get_args(Source)):
        return as_source(x, y, sample_weight)
    names = names_of_fields(x)
    if names is not None:
        if not _are_known(names, y):
            return as_source(x, y, sample_weight)
        refuse_images(names)
        return _of_columns(columns_of(x, names), y, sample_weight)
    stream = None if y is not None else stream_of(x, as_preferred)
    if stream is None or not isinstance(stream.first(), Preferred):
        return as_source(x if stream is None else stream, y, sample_weight)
    refuse_beside(x, sample_weight=sample_weight)
    return _joined(elements(stream))


def _are_known(names: Sequence[str], y: Any) -> bool:
    """Whether columns of these names hold preferences."""
    return bool({*_COMPARED} & {*names}) or (
        {"prompt", "completion"} <= {*names} and ("label" in names or y is not None)
    )


def _of_columns(columns: Mapping[str, Any], y: Any, weight: Any) -> Preferred:
    one = _is_one(columns)
    columns = {name: [value] if one else listed(value) for name, value in columns.items()}
    if {*_COMPARED} & {*columns}:
        return _compared(columns, y, weight)
    if "label" in columns and y is not None:
        raise ValueError("Expected labels in label or in y. Received: both.")
    labels = _numbers("label", columns.get("label", y))
    if (wrong := np.flatnonzero(~np.isin(labels, (0, 1)))).size:
        raise ValueError(
            f"Expected labels True or False, 1 or 0. Received: {labels[wrong[0]]:g} in row "
            f"{wrong[0]}, and {wrong.size - 1} others."
        )
    told = _told(columns["prompt"], columns["completion"], "completion")
    return Preferred(told, labels=labels, weights=weights_of(weight, len(told)))


def _is_one(columns: Mapping[str, Any]) -> bool:
    """Whether they are the fields of one row, as a stream has them, rather than columns."""
    answer = columns.get("chosen", columns.get("completion"))
    return isinstance(answer, (str, bytes)) or _is_conversation(answer)


def _is_conversation(x: Any) -> bool:
    return not isinstance(x, (str, bytes)) and len(x) > 0 and isinstance(x[0], Mapping)


def _compared(columns: Mapping[str, Any], y: Any, weight: Any) -> Preferred:
    if missing := {*_COMPARED} - {*columns}:
        raise ValueError(
            f"Expected columns prompt, chosen and rejected. Received: {sorted(columns)}, without "
            f"{sorted(missing)}."
        )
    refuse_beside("columns chosen and rejected", y=y)
    chosen, rejected = (columns[name] for name in _COMPARED)
    if len(chosen) != len(rejected):
        raise ValueError(
            f"Expected as many chosen as rejected. Received: {len(chosen)} and {len(rejected)}."
        )
    if "prompt" in columns:
        prompts = columns["prompt"]
    else:
        prompts, chosen, rejected = _without_prompt(chosen, rejected)
    _tell_of_equals(chosen, rejected)
    better, worse = (
        _told(prompts, answers, name)
        for name, answers in zip(_COMPARED, (chosen, rejected), strict=True)
    )
    margins = _numbers(_MARGIN, columns[_MARGIN]) if _MARGIN in columns else None
    return Preferred(better, worse, None, margins, weights_of(weight, len(better)))


def _without_prompt(chosen: Sequence[Any], rejected: Sequence[Any]) -> tuple[list, list, list]:
    """Whole conversations as what was said before, and both last messages."""
    prompts, better, worse = [], [], []
    for number, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        if not _is_conversation(one) or not _is_conversation(other):
            raise ValueError(
                "Expected a column prompt, or conversations as chosen and rejected. Received: "
                f"neither in row {number}."
            )
        one, other = list(one), list(other)
        if one[:-1] != other[:-1]:
            raise ValueError(
                "Expected chosen and rejected to differ in their last message alone. Received: "
                f"other messages before it in row {number}."
            )
        prompts.append(one[:-1])
        better.append(one[-1:])
        worse.append(other[-1:])
    return prompts, better, worse


def _tell_of_equals(chosen: Sequence[Any], rejected: Sequence[Any]) -> None:
    """Rows that teach nothing are counted; if all are such, they are refused."""
    equal = [i for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if _same(a, b)]
    if len(equal) == len(chosen):
        raise ValueError("Expected chosen and rejected to differ. Received: the same in all rows.")
    if equal:
        warn(
            f"chosen and rejected are the same in {len(equal)} of {len(chosen)} rows (the first: "
            f"{equal[0]}). They teach nothing; leave them out."
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (str, bytes)) or isinstance(other, (str, bytes)):
        return one == other
    return list(one) == list(other)


def _told(prompts: Sequence[Any], answers: Sequence[Any], name: str) -> Told:
    """Prompts with their answers: pairs of texts, or conversations."""
    if len(prompts) != len(answers):
        raise ValueError(
            f"Expected as many {name} as prompts. Received: {len(answers)} and {len(prompts)}."
        )
    if not len(prompts):
        raise ValueError("Expected at least one prompt. Received: none.")
    for column, texts in (("prompt", prompts), (name, answers)):
        for number, text in enumerate(texts):
            if isinstance(text, str) and not text.strip():
                raise ValueError(
                    f"Expected text as {column} of row {number}. Received: an empty one. Leave "
                    "such rows out."
                )
    if _is_conversation(prompts[0]) and isinstance(answers[0], str):
        answers = [[{"role": "assistant", "content": text}] for text in answers]
    found: Any = as_source({"prompt": list(prompts), "completion": list(answers)})
    refuse_images(of_source(found))
    return found


def _numbers(name: str, column: Any) -> np.ndarray:
    array = numbers_of(name, column)
    if (wrong := np.flatnonzero(~np.isfinite(array))).size:
        raise ValueError(
            f"Expected a number as the {name} of each row. Received: {array[wrong[0]]} in row "
            f"{wrong[0]}, and {wrong.size - 1} others."
        )
    return array


def _joined(parts: Iterable[Any]) -> Preferred:
    every: list[Preferred] = list(parts)
    for number, part in enumerate(every):
        if not isinstance(part, Preferred) or part.compares != every[0].compares:
            raise ValueError(
                f"Expected preferences of one kind throughout. Received: other data in element "
                f"{number}."
            )
    worse: Any = joined([part.worse for part in every]) if every[0].compares else None  # type: ignore[misc]
    return Preferred(
        joined([part.better for part in every]),  # type: ignore[arg-type]
        worse,
        together([part.labels for part in every], "a label"),
        together([part.margins for part in every], "a margin"),
        together([part.weights for part in every], "a sample_weight"),
    )


def preferred_inputs(
    source: Preferred, converter: FeatureConverter
) -> tuple[Inputs, np.ndarray, np.ndarray]:
    """Inputs and both answers as arrays; each input stands once for both.

    Where answers have labels, the second one is that of the row behind, for the estimate of
    `keras_encdec.training.KTO`.

    Returns:
        Model inputs, of the encoder (n, S) and of the decoder (n, 2, T); labels (n, 2, T); and
        (n,) float32 weights.

    Raises:
        ValueError: if answers have labels and there is one row alone.
    """
    first, second = _both(source, converter)
    _tell_of_cuts(first, second, converter.decoder_sequence_length, source.compares)
    x, y, _ = converter.rows.batch([(example,) for example in first])
    other, labels, _ = converter.rows.batch(
        [(dataclasses.replace(a, targets=b.targets),) for a, b in zip(first, second, strict=True)]
    )
    for name in ("decoder_token_ids", "decoder_padding_mask"):
        x[name] = np.stack([x[name], other[name]], axis=1)
    return x, np.stack([y, labels], axis=1), _weights(source)


def read_inputs(source: Preferred, converter: FeatureConverter) -> tuple[Inputs, np.ndarray]:
    """Inputs with their answers as one text for the encoder: (n, 2, S), and weights (n,)."""
    first, second = (together_inputs(some, converter) for some in _both(source, converter))
    x = {name: np.stack([first[name], second[name]], axis=1) for name in first}
    return x, _weights(source)


def together_inputs(examples: Sequence[Example], converter: FeatureConverter) -> Inputs:
    """The encoder's ids and mask (n, S) of inputs with their answers behind them.

    Where both do not fit, the input loses its beginning.
    """
    room, rows, cut = converter.encoder_sequence_length, [], 0
    for example in examples:
        whole = np.concatenate([example.inputs, example.targets])
        cut += len(whole) > room
        rows.append([whole[max(0, len(whole) - room) :]])
    if cut:
        warn(
            f"{cut} of {len(rows)} inputs with their answers were longer than "
            f"encoder_sequence_length = {room} tokens and lost their beginning."
        )
    laid = converter.rows.model_inputs(rows, [[[]]] * len(rows))
    return {name: array for name, array in laid.items() if name.startswith("encoder")}


def _both(source: Preferred, converter: FeatureConverter) -> tuple[list[Example], list[Example]]:
    first = examples_of(source.better, converter)
    if source.worse is not None:
        return first, examples_of(source.worse, converter)
    if len(first) < 2:
        raise ValueError(
            "Expected at least two rows with labels: each is compared with the answer to "
            "another. Received: one."
        )
    return first, [*first[1:], first[0]]


def _weights(source: Preferred) -> np.ndarray:
    return np.ones(len(source), "float32") if source.weights is None else source.weights


def _tell_of_cuts(
    first: Sequence[Example], second: Sequence[Example], room: int, compares: bool
) -> None:
    """Answers that are longer than a row, and rows of which nothing is left to compare.

    Raises:
        ValueError: if that is so of all rows.
    """
    sizes = [len(example.targets) for example in [*first, *second]]
    cut = sum(size > room for size in sizes)
    if not cut:
        return
    pairs = zip(first, second, strict=True)
    alike = sum(np.array_equal(a.targets[:room], b.targets[:room]) for a, b in pairs) * compares
    told = (
        f"{cut} of {len(sizes)} answers are longer than decoder_sequence_length = {room} tokens; "
        f"the longest has {max(sizes)}."
    )
    if alike == len(first):
        raise ValueError(
            f"Expected answers that differ in their first {room} tokens. Received: {told} Cut so, "
            "chosen and rejected are the same in all rows. Raise preprocessor."
            "decoder_sequence_length."
        )
    same = f" {alike} rows have the same answer twice then, and teach nothing." if alike else ""
    warn(f"{told} They were cut, and their end is not learnt.{same}")
