"""One progress bar for everything that takes long, and one line for what it found."""

from collections.abc import Iterable
from typing import TypeVar

import keras
import rich
from rich.markup import escape
from rich.progress import track as _track

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str) -> Iterable[Item]:
    """Draws a bar over `items`, unless `keras.config.disable_interactive_logging()`."""
    return _track(items, description, disable=_quiet(), transient=True)


def say(line: str) -> None:
    """Prints a line, unless `keras.config.disable_interactive_logging()`."""
    if not _quiet():
        rich.print(escape(line))


def _quiet() -> bool:
    return not keras.config.is_interactive_logging_enabled()
