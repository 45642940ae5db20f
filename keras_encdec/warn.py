"""Warnings that point at the user's line. Standard library only."""

import sys
import warnings


def warn(message: str) -> None:
    """Warns at the line of the user's that led here, however deep it lies below."""
    ours, depth = (__name__.partition(".")[0], "contextlib"), 2
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)
