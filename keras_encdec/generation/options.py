"""What a call may ask of generation, and which numbers and ids can be meant.

Knows each argument's type and range. Leaves what a sampler can do to
`keras_encdec.generation.session`, how long a prompt is to `keras_encdec.generation.generator`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_encdec import check


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """The arguments of `decode`, as Python's own numbers, strings and tuples.

    Raises:
        ValueError: if one is of another type or out of range.
    """

    max_length: Any = None
    stop_token_ids: Any = "auto"
    strip_prompt: bool = False
    stop_strings: Any = ()
    num_samples: Any = None
    temperature: Any = None
    seed: Any = None
    return_scores: bool = False
    draft: Any = "auto"

    def __post_init__(self) -> None:
        normal: dict[str, Any] = {"stop_strings": _texts("stop_strings", self.stop_strings)}
        for name in ("strip_prompt", "return_scores"):
            normal[name] = check.flag(name, getattr(self, name))
        if self.max_length is not None:
            normal["max_length"] = check.whole("max_length", self.max_length)
        if self.num_samples is not None:
            normal["num_samples"] = check.whole("num_samples", self.num_samples)
        if self.seed is not None:
            normal["seed"] = check.whole("seed", self.seed, least=0)
        if self.temperature is not None:
            normal["temperature"] = _temperature(self.temperature)
        if self.draft not in ("auto", None) and not hasattr(self.draft, "make_generate_function"):
            raise ValueError(
                f'Expected draft as "auto", None or a smaller task. Received: {self.draft!r}.'
            )
        if not self.is_auto:
            normal["stop_token_ids"] = _ids("stop_token_ids", self.stop_token_ids)
        for name, value in normal.items():
            object.__setattr__(self, name, value)

    @classmethod
    def asked(cls, **kwargs: Any) -> "DecodingOptions":
        """Of the keywords of a call.

        Raises:
            TypeError: if there is no such keyword, with the nearest one.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        check.keywords("an option of generation", kwargs, known)
        return cls(**kwargs)

    def identity(self) -> dict[str, Any]:
        """What outputs depend on, by name."""
        asked = dataclasses.asdict(dataclasses.replace(self, draft=None))
        del asked["draft"]
        return asked

    @property
    def is_auto(self) -> bool:
        """Whether the tokenizer says which tokens end an output."""
        return isinstance(self.stop_token_ids, str) and self.stop_token_ids == "auto"

    @property
    def samples(self) -> int:
        """n, outputs for each input."""
        return self.num_samples or 1


def _temperature(value: Any) -> float:
    try:
        return check.real("temperature", value, above=0)
    except ValueError as error:
        raise ValueError(f'{error} For the likeliest token, compile(sampler="greedy").') from None


def _ids(name: str, values: Any) -> tuple[int, ...]:
    """One id, several or None as a tuple."""
    array = np.asarray(() if values is None else values)
    if array.size and (array.dtype.kind not in "iu" or array.ndim > 1 or array.min() < 0):
        raise ValueError(
            f'Expected {name} as "auto", None, or token ids of 0 or more. Received: {values!r}.'
        )
    return tuple(int(i) for i in array.reshape(-1))


def _texts(name: str, values: Any) -> tuple[str, ...]:
    several = isinstance(values, Iterable) and not isinstance(values, str)
    texts = tuple(values) if several else ()
    if not (several or values is None) or not all(isinstance(t, str) and t for t in texts):
        raise ValueError(
            f"Expected {name} as a list of texts that are not empty. Received: {values!r}."
        )
    return tuple(str(text) for text in texts)
