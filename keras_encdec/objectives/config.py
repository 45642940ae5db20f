"""Objectives as plain data, for the configs of presets."""

import inspect
from collections.abc import Mapping
from typing import Any

from keras_encdec import check
from keras_encdec.objectives.mixture import Mixture, Stages
from keras_encdec.objectives.mntp import MNTP
from keras_encdec.objectives.objective import Objective
from keras_encdec.objectives.prefix_lm import PrefixLM
from keras_encdec.objectives.span_corruption import SpanCorruption
from keras_encdec.objectives.ul2 import MIXTURES, UL2

_CLASSES = {cls.__name__: cls for cls in (PrefixLM, SpanCorruption, UL2, MNTP, Mixture, Stages)}

_NAMES: dict[str, type[Objective]] = {"prefix_lm": PrefixLM, "mntp": MNTP}


def to_config(objective: Objective | Stages) -> dict:
    """The fields of an objective as JSON types, with its class in `"class"`.

    Raises:
        ValueError: if it is not one of this package's.
    """
    if type(objective) not in _CLASSES.values():
        raise ValueError(
            "Expected an objective of keras_encdec.objectives, to save it. "
            f"Received: {objective!r}. "
            "Set `preprocessor.objective = None` before saving."
        )
    names = inspect.signature(type(objective)).parameters
    fields = {name: _plain(getattr(objective, name)) for name in names}
    return {"class": type(objective).__name__} | fields


def from_config(config: Any) -> Objective | Stages:
    """An objective from its config, its name, or itself.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(config, (Objective, Stages)):
        return config
    if isinstance(config, str) and config in MIXTURES:
        return UL2(config)
    if isinstance(config, str) and config in _NAMES:
        return _NAMES[config]()
    if isinstance(config, Mapping) and config.get("class") in _CLASSES:
        fields = {key: _object(value) for key, value in config.items() if key != "class"}
        return _CLASSES[config["class"]](**fields)
    names = [*_NAMES, *MIXTURES]
    raise ValueError(
        f"Expected an objective, its config, or one of {names}. "
        f"Received: {config!r}.{check.nearest(config, names)}"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, (Objective, Stages)):
        return to_config(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _object(value: Any) -> Any:
    if isinstance(value, Mapping) and "class" in value:
        return from_config(value)
    return [_object(item) for item in value] if isinstance(value, list) else value
