"""Prompts without answers, which the model is to write, with what rewards need to judge them.

Leaves what a text or a conversation may be to `keras_encdec.data.recognize` and
`keras_encdec.objectives.chat`, and tokens to `keras_encdec.objectives.converter`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_encdec.data.kinds import Stream
from keras_encdec.data.labelled import columns_of, elements, names_of_fields, together
from keras_encdec.data.recognize import (
    is_texts,
    listed,
    refuse_beside,
    stream_of,
    strings,
    weights_of,
)
from keras_encdec.objectives.converter import FeatureConverter, Prompt

PROMPT = "prompt"


@dataclasses.dataclass(frozen=True)
class Prompted:
    """Prompts, and the other columns of their rows.

    Args:
        prompts: n texts, or n conversations that end with the user.
        records: n values of each column, by name.
        weights: (n,) what each prompt counts, or None.

    Raises:
        ValueError: if there are none, one is empty, or there are not as many of each.
    """

    prompts: Sequence[Any]
    records: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    weights: np.ndarray | None = None
    kind: ClassVar[str] = "prompts"

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise ValueError("Expected at least one prompt. Received: none.")
        for number, prompt in enumerate(self.prompts):
            if not len(prompt) or (isinstance(prompt, str) and not prompt.strip()):
                raise ValueError(
                    f"Expected text as prompt of row {number}. Received: {prompt!r}, which is "
                    "empty. Leave such rows out."
                )
        for name, column in self.records.items():
            if len(column) != len(self):
                raise ValueError(
                    f"Expected a {name} for each of {len(self)} prompts. Received: {len(column)}."
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, part: slice) -> "Prompted":
        records = {name: column[part] for name, column in self.records.items()}
        return Prompted(
            self.prompts[part], records, None if self.weights is None else self.weights[part]
        )

    def tokens(self, converter: FeatureConverter) -> list[Prompt]:
        """What encoder and decoder begin with, for each; cut texts are told of once."""
        if isinstance(self.prompts[0], str):
            return converter.of_prompts(self.prompts)
        return [converter.of_chat(messages) for messages in self.prompts]


def as_prompted(x: Any, y: Any = None, sample_weight: Any = None) -> Prompted:
    """What `x` is, where a loss is to draw answers.

    Args:
        x: texts; or a dict, frame, dataset or rows with the column `prompt`, of texts or of
            conversations, beside any others; or a dataset or generator of these that has an end.
        y: None.
        sample_weight: what each prompt counts in the loss.

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(x, Prompted):
        refuse_beside(x, y=y, sample_weight=sample_weight)
        return x
    if y is not None:
        raise ValueError(
            "Expected prompts alone: answers are drawn. Received: y beside them. What rewards "
            'need goes into columns, such as {"prompt": [...], "answer": [...]}.'
        )
    names = names_of_fields(x)
    if names is not None:
        return _of_columns(columns_of(x, names), sample_weight)
    if is_texts(x):
        prompts = strings(x, PROMPT)
        return Prompted(prompts, {}, weights_of(sample_weight, len(prompts)))
    stream = stream_of(x, as_prompted)
    if stream is None:
        raise ValueError(
            "Expected prompts: texts, or a dict, frame, dataset or rows with the column prompt. "
            f"Received: {type(x).__name__}."
        )
    refuse_beside(x, sample_weight=sample_weight)
    return _joined(stream)


def _of_columns(columns: Mapping[str, Any], weight: Any) -> Prompted:
    if PROMPT not in columns:
        raise ValueError(
            f"Expected the column prompt, as answers are drawn. Received: {sorted(columns)}."
        )
    prompt = columns[PROMPT]
    one = isinstance(prompt, (str, bytes)) or (len(prompt) > 0 and isinstance(prompt[0], Mapping))
    every = {name: [value] if one else listed(value) for name, value in columns.items()}
    prompts = every.pop(PROMPT)
    if len(prompts) and not isinstance(prompts[0], (list, tuple, np.ndarray)):
        prompts = strings(prompts, PROMPT)
    return Prompted(prompts, every, weights_of(weight, len(prompts)))


def _joined(stream: Stream) -> Prompted:
    parts: list[Prompted] = list(elements(stream))
    names = [list(part.records) for part in parts]
    if any(some != names[0] for some in names):
        raise ValueError(f"Expected the same columns throughout. Received: {names[:3]}.")
    records = {n: [value for part in parts for value in part.records[n]] for n in names[0]}
    prompts = [prompt for part in parts for prompt in part.prompts]
    return Prompted(prompts, records, together([p.weights for p in parts], "a sample_weight"))
