"""One progress bar for everything that takes long. Knows nothing else."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import keras
from rich.progress import track as _track

Item = TypeVar("Item")


def track(items: Sequence[Item], description: str) -> Iterable[Item]:
    """Draws a bar over `items`, unless `keras.config.disable_interactive_logging()`."""
    quiet = not keras.config.is_interactive_logging_enabled()
    return _track(items, description, disable=quiet, transient=True)
