"""A layout of transformers as something to write: config, names, and what it would lose.

Leaves which layouts there are to `keras_encdec.families.encoders` and
`keras_encdec.families.pairs`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from keras_encdec.families.dialect import Rule
from keras_encdec.spec import Shape


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model is written.

    Args:
        config: its `config.json`.
        rules: for the weights of its spec.
        blank: tensors, all zeros, of parts that the layout has and the model lacks.
    """

    config: dict[str, Any]
    rules: tuple[Rule, ...]
    blank: Mapping[str, Shape] = dataclasses.field(default_factory=dict)


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """Fields of a spec that another has otherwise, with their values there."""
    for field in dataclasses.fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if mine == other:
            continue
        if dataclasses.is_dataclass(mine) and type(mine) is type(other):
            yield from differences(mine, other, f"{where}{field.name}.")
        else:
            yield f"{where}{field.name}={mine!r} (only {other!r})"
