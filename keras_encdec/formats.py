"""Which version wrote what is kept on disk, and whether this one can read it.

Knows the number of each format, which rises when an earlier version could no longer read what
is written. What an earlier version wrote is read for ever: `tests/formats` keeps some of it.
Standard library only.
"""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from keras_encdec import check

KEY = "format"
_NUMBERS = {
    "preset": 1,
    "provenance": 1,
    "tokens": 1,
    "teacher rows": 1,
    "checkpoint": 1,
    "superglue run": 1,
    "claims costs": 1,
    "claims data": 1,
    "claims run": 1,
    "answers": 1,
    "encoded documents": 1,
    "reference log-probabilities": 1,
}
_PACKAGE = "keras-encdec"
_OTHERS = "keras", "keras-hub"


def version_of(package: str = _PACKAGE) -> str:
    """The version of an installed package; `"unknown"` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def versions(backend: str) -> dict[str, str]:
    """Versions of what a model is made by: this package, Keras, KerasHub and the backend."""
    return {name: version_of(name) for name in (_PACKAGE, *_OTHERS, backend)}


def mark(what: str) -> dict[str, Any]:
    """`{"format": {"number": 1, "version": "0.1.0"}}`, for whoever reads it later.

    Args:
        what: is written, such as `"preset"`.
    """
    return {KEY: {"number": _NUMBERS[what], "version": version_of()}}


def check_known(what: str, written: Mapping[str, Any], where: Any) -> None:
    """Refuses what a later version wrote in a way that is not known here.

    Args:
        what: is read, such as `"preset"`.
        written: what holds the mark; without one it is of before there were any.
        where: its file, for the message.

    Raises:
        ValueError: naming the version to install; or if the mark is none.
    """
    found = written.get(KEY, {"number": 1})
    number = found.get("number") if isinstance(found, Mapping) else found
    try:
        number = check.whole("number", number)
    except ValueError as error:
        raise ValueError(
            f"Expected the number of a format in {where}. Received: {number!r}. Download or save "
            "it again."
        ) from error
    if number > _NUMBERS[what]:
        version = found.get("version") if isinstance(found, Mapping) else None
        asked = f'"{_PACKAGE}>={version}"' if isinstance(version, str) else _PACKAGE
        raise ValueError(
            f"Expected a {what} of format {_NUMBERS[what]} or earlier, all that {_PACKAGE} "
            f"{version_of()} can read. Received: {where} of format {number}, written by "
            f"{version or 'a later version'}. Install that version or a later one: "
            f"pip install --upgrade {asked}"
        )
