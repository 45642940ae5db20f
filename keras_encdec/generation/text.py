"""Text while it grows: what of it is certain, and where it stops."""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # bytes that are no character yet


def cut(text: str, stops: Sequence[str]) -> str:
    """Up to the first of the stop strings, or all of it."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found, default=len(text))]


def certain(text: str, stops: Sequence[str]) -> str:
    """What more tokens cannot take back: no half character, no beginning of a stop string."""
    text = cut(text, stops).rstrip(_UNFINISHED)
    tails = (k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k]))
    return text[: len(text) - max(tails, default=0)]


def completed_at(text: Callable[[int], str], count: int, stops: Sequence[str]) -> int:
    """How many tokens there are when the first of the stop strings is complete.

    Args:
        text: what a number of tokens say.
        count: of the tokens.
        stops: stop strings.

    Returns:
        The number of tokens up to and with the one that completes it; `count` if none does.
    """
    few, many = 0, count  # the first many hold a stop, or are all there are
    while few < many:
        middle = (few + many) // 2
        if cut(text(middle), stops) != text(middle):
            many = middle
        else:
            few = middle + 1
    return min(few, count)
