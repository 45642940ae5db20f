"""An example as people read it: what the encoder sees, what the decoder must write.

Knows colours and layout. Draws in a terminal, and as HTML in a notebook, by rich.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_encdec.objectives.objective import Example, Objective
from keras_encdec.objectives.tokenizer import encode

# Spans take turns in these, so that a span and its place in the input are found together.
COLOURS = ("red", "green", "yellow", "blue", "magenta", "cyan")


def show(
    objective: Objective, text: str, tokenizer: Any, seed: int = 0, console: Any = None
) -> None:
    """Prints the example that an objective makes of a text.

    Args:
        objective: `Objective`.
        text: at least 2 tokens long.
        tokenizer: `keras_hub.tokenizers.Tokenizer`.
        seed: int.
        console: `rich.console.Console`, in place of one for where the code runs.

    Raises:
        ValueError: if the text is too short or holds a sentinel.
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    tokens = np.array(encode(tokenizer, [text])[0], "int32")
    example = objective.bind(tokenizer)(tokens, seed)
    places = Table.grid(padding=(0, 2))
    for sentinel, span, colour in _spans(example, tokenizer):
        places.add_row(sentinel, span, style=colour)
    console = console or Console()
    hidden = np.sum(example.positions()[1] >= 0)
    verb = "write" if example.places is None else "predict"
    title = f"{example.denoiser}: {len(tokens)} tokens, {hidden} to {verb}"
    size = f"encoder reads {len(example.inputs)} tokens"
    console.print(Panel(_input(example, tokenizer), title=title, subtitle=size))
    ending = " and the end" if example.ends else ""
    who = "decoder" if example.places is None else "encoder"
    size = f"{who} {verb}s {len(example.targets)} tokens{ending}"
    console.print(Panel(places, subtitle=size))


def _input(example: Example, tokenizer: Any) -> Any:
    """The encoder's text; each sentinel in the colour of its span."""
    from rich.text import Text

    line, number = Text(), 0
    if example.mode:
        line.append(_text(example.inputs[: example.mode], tokenizer) + " ", "bold")
    for is_sentinel, run in _runs(example.inputs[example.mode :], example.sentinels):
        if is_sentinel:
            line.append(_piece(run[0], tokenizer), f"bold reverse {_colour(number)}")
            number += 1
        else:
            line.append(_text(run, tokenizer))
    return line


def _spans(example: Example, tokenizer: Any) -> Iterator[tuple[Any, Any, str]]:
    """(sentinel, span, colour) of each span; without sentinels, the whole target."""
    from rich.text import Text

    if not len(example.sentinels):
        yield Text(""), Text(_text(example.targets, tokenizer)), COLOURS[1]
        return
    number, sentinel = 0, ""
    for is_sentinel, run in _runs(example.targets, example.sentinels):
        if is_sentinel:
            sentinel = _piece(run[0], tokenizer)
        else:
            yield Text(sentinel), Text(_text(run, tokenizer)), _colour(number)
            number += 1


def _runs(ids: np.ndarray, sentinels: np.ndarray) -> Iterator[tuple[bool, np.ndarray]]:
    """Stretches of tokens, and each sentinel by itself: `(is_sentinel, ids)`."""
    is_sentinel = np.isin(ids, sentinels)
    cuts = np.flatnonzero(is_sentinel[1:] | is_sentinel[:-1]) + 1
    for run in np.split(ids, cuts):
        if len(run):
            yield bool(np.isin(run[0], sentinels)), run


def _text(ids: np.ndarray, tokenizer: Any) -> str:
    return str(tokenizer.detokenize([int(i) for i in ids]))


def _piece(token_id: int, tokenizer: Any) -> str:
    """The token, or the number of an id that the tokenizer has none for."""
    try:
        found = tokenizer.id_to_token(int(token_id))
    except (KeyError, IndexError, ValueError):
        found = None
    return found or f"<{token_id}>"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
