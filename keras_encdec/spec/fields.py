"""How the dataclasses of `keras_encdec.spec` refuse fields. Leaves what each may hold to them."""

from collections.abc import Callable
from typing import Any


def check_fields(spec: Any, kind: Callable[..., Any], *names: str, **limits: Any) -> None:
    """Refuses fields that are none of a kind; scalars of other libraries become Python's."""
    for name in names:
        value = getattr(spec, name)
        checked = kind(f"{name} of {type(spec).__name__}", value, **limits)
        if type(value) not in (int, float, bool):
            object.__setattr__(spec, name, checked)


def check_given(spec: Any, kind: Callable[..., Any], *names: str, **limits: Any) -> None:
    """As `check_fields`, of fields that are not None."""
    given = [name for name in names if getattr(spec, name) is not None]
    check_fields(spec, kind, *given, **limits)


def require(condition: bool, expected: str, spec: Any) -> None:
    """Raises ValueError, saying what was expected, unless a condition holds."""
    if not condition:
        raise ValueError(f"Expected {expected}. Received: {spec}")
