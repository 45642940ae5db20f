"""One progress bar for everything that takes long, and one line for what it found.

Knows where a bar can be drawn, and what is printed where it cannot: a log file would show
nothing for minutes.
"""

import operator
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from time import monotonic
from typing import TypeVar

import keras
import rich
from rich.markup import escape
from rich.progress import track as _bar

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 5.0


_open: ContextVar[bool] = ContextVar("a bar is open", default=False)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Goes through `items` and shows how far it is.

    A bar in a terminal or a notebook. Elsewhere a line every few seconds:
    `Tokenising: 1,024 of 20,000 (5%), 12 s`. Nothing after
    `keras.config.disable_interactive_logging()`, nor for what is done inside of another bar.

    Args:
        items: what is gone through; it may not know its length.
        description: what is being done, such as `"Tokenising"`.
        total: their number, where they do not know it.
    """
    if _quiet() or _open.get():
        return iter(items)
    total = operator.length_hint(items) if total is None else total
    console = rich.get_console()
    if console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal):
        return _alone(_bar(items, description, total or None, transient=True))
    return _alone(_lines(items, description, total))


def _alone(items: Iterable[Item]) -> Iterator[Item]:
    """The same, while no other bar is drawn."""
    _open.set(True)
    try:
        yield from items
    finally:
        _open.set(False)


def say(line: str) -> None:
    """Prints a line, unless `keras.config.disable_interactive_logging()`."""
    if not _quiet():
        rich.print(escape(line))


def _lines(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Prints while it goes through `items`; what takes less than a line's time prints nothing."""
    begin = printed = monotonic()
    done, shown = 0, 0
    for item in items:
        yield item
        done += 1
        now = monotonic()
        if now - printed >= SECONDS_BETWEEN_LINES:
            printed, shown = now, done
            print(_line(description, done, total, now - begin), flush=True)
    if 0 < shown < done:
        print(_line(description, done, total, monotonic() - begin), flush=True)


def _line(description: str, done: int, total: int, seconds: float) -> str:
    of = f" of {total:,} ({done / total:.0%})" if total else ""
    return f"{description}: {done:,}{of}, {seconds:.0f} s"


def _quiet() -> bool:
    return not keras.config.is_interactive_logging_enabled()
