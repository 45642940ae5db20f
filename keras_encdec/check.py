"""What an argument may be: whole and real numbers in a range, flags, names out of a list.

Every public signature and every spec asks here, so that the same value is refused or taken
everywhere, with a message that names the argument, what was expected and what came. Python's
numbers, scalars of NumPy and arrays of no axes of any backend count; `True` is no number and
`"no"` is no flag. Where two configs differ is found here too. Standard library only.
"""

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_INT31 = 2**31 - 1  # lengths and counts are int32 on all backends


def whole(name: str, value: Any, least: int = 1, most: int = _INT31) -> int:
    """`value` as an int.

    Raises:
        ValueError: if it is no whole number from `least` to `most`.
    """
    number = _number(value, operator.index)
    if number is None or not least <= number <= most:
        end = "below 2**31" if most == _INT31 else f"of at most {most}"
        raise ValueError(
            f"Expected {name} of at least {least}, a whole number {end}. Received: {value!r}."
        )
    return int(number)


def real(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """`value` as a float.

    Raises:
        ValueError: if it is no finite number from `least` to `most`, or not above `above` and
            below `below`.
    """
    number = _number(value, float)
    fits = number is not None and math.isfinite(number)
    if not fits or not (least <= number <= most and above < number < below):
        limits = {"of at least": least, "above": above, "of at most": most, "below": below}
        said = [f"{text} {limit:g}" for text, limit in limits.items() if math.isfinite(limit)]
        raise ValueError(
            f"Expected {name} as a finite number{' ' if said else ''}{' and '.join(said)}. "
            f"Received: {value!r}."
        )
    return number


def flag(name: str, value: Any) -> bool:
    """`value` as a bool.

    Raises:
        ValueError: if it is neither True nor False.
    """
    if not _is_bool(value):
        raise ValueError(f"Expected {name} True or False. Received: {value!r}.")
    return bool(value)


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """`value`, which is one of `allowed`.

    Raises:
        ValueError: if it is none of them, with the nearest one.
    """
    if not any(type(value) is type(one) and value == one for one in allowed):
        *first, last = map(repr, allowed)
        raise ValueError(
            f"Expected {name} {', '.join(first)}{' or ' if first else ''}{last}. "
            f"Received: {value!r}.{nearest(value, allowed)}"
        )
    return value


def keywords(expected: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuses keywords that a function does not take.

    Args:
        expected: what one is, such as `"a keyword of adapt()"`.
        given: names.
        known: names.

    Raises:
        TypeError: naming the first that is not known, and the nearest one.
    """
    for name in given:
        if name not in known:
            hint = nearest(name, known) or f" There are {', '.join(known)}."
            raise TypeError(f"Expected {expected}. Received: {name!r}.{hint}")


def text(place: str, value: Any) -> str:
    """`value` as a string that can be written.

    Args:
        place: where it is from, for the message.
        value: a string, or UTF-8 as bytes.

    Raises:
        ValueError: if it is something else, or holds half a character of UTF-16.
    """
    try:
        found = value.decode("utf-8") if isinstance(value, bytes) else value
        if isinstance(found, str):
            found.encode("utf-8")
            return found
    except UnicodeError as error:
        raise ValueError(
            f"Expected text in UTF-8 in {place}. Received: {error}. Decode it with "
            "errors='replace', or leave it out."
        ) from error
    raise ValueError(
        f"Expected text (str) in {place}. Received: {value!r} of type {type(value).__name__}. "
        "Convert it to a string or leave it out."
    )


def nearest(value: Any, known: Iterable[Any], most: int = 1, cutoff: float = 0.5) -> str:
    """`" Did you mean 'prefix_lm'?"`, or nothing where no name is near.

    Args:
        value: what was given.
        known: names; what is none is passed over.
        most: names that are told.
        cutoff: how like they are, from 0 to 1 (`difflib.get_close_matches`).
    """
    names = [name for name in known if isinstance(name, str)]
    near = difflib.get_close_matches(value, names, most, cutoff) if isinstance(value, str) else []
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def settings(given: Iterable[str], preprocessor: bool) -> None:
    """Raises ValueError if settings come beside a preprocessor, which has its own."""
    if preprocessor and (names := list(given)):
        raise ValueError(
            f"Expected {' and '.join(names)}, or a preprocessor. Received: both. Set them on the "
            "preprocessor."
        )


def difference(one: Any, other: Any, path: str = "") -> tuple[str, Any, Any]:
    """Where two values of JSON's types, which are not equal, first differ.

    Returns:
        The names that lead there, such as `"pair, encoder, width"`, and what each has there:
        an element of lists of one length.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(n for n in {**one, **other} if one.get(n) != other.get(n))
        return difference(one.get(name), other.get(name), f"{path}, {name}" if path else str(name))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = next((a, b) for a, b in zip(one, other, strict=True) if a != b)
    return path, one, other


def _number(value: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(value, (str, bytes)) or _is_bool(value) or not _is_single(value):
        return None
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or (
        "bool" in str(getattr(value, "dtype", "")) and _is_single(value)
    )


def _is_single(value: Any) -> bool:
    return tuple(getattr(value, "shape", ())) == ()
