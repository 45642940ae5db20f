"""A report: what was found as tables, as JSON and as a picture, in a folder of its own.

Knows how it is kept: whole or not at all, and over nothing but an earlier report of its kind.
Leaves what is found to the modules beside it.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
from rich.table import Table

from keras_encdec import formats
from keras_encdec.evaluation import picture
from keras_encdec.files import atomic_folder
from keras_encdec.provenance import now


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found.

    Args:
        data: JSON types.
        tables: what a person reads.
        draw: puts it on an empty figure.
        size: of the picture, width and height in inches.
        notes: sentences below the tables.
    """

    data: dict[str, Any]
    tables: tuple[Table, ...]
    draw: Callable[[Any], None]
    size: tuple[float, float] = (10, 4)
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def kept(kind: str, folder: str | os.PathLike) -> Iterator[Callable[[Report], None]]:
    """For a block that makes a report; yields what keeps it as `KIND.json` and `KIND.png`.

    What cannot be written is refused before the block begins, which may measure for hours.

    Args:
        kind: of the report, such as `"flops"`.
        folder: new, empty, or of an earlier report of this kind, which is replaced.

    Raises:
        ImportError: without matplotlib.
        ValueError: if the folder holds something else.
        OSError: if nothing may be written there.
    """
    picture.figure()
    names = f"{kind}.json", f"{kind}.png"
    with atomic_folder(folder, also=names, mark=names[0]) as new:
        yield lambda report: _write(report, kind, new)


def _write(report: Report, kind: str, folder: Path) -> None:
    made_by = formats.versions(keras.backend.backend())
    data = {"report": kind, "date": now(), "versions": made_by, **report.data}
    (folder / f"{kind}.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    drawn = picture.figure(*report.size)
    report.draw(drawn)
    picture.save(drawn, folder / f"{kind}.png")
