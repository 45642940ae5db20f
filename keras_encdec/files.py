"""Folders that appear whole or not at all, and names that stay inside them.

Standard library only.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_INCOMPLETE = ".incomplete-"


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a new folder that takes the name `path` when the block ends well.

    On an error it is removed, and what stood at `path` before is still there. A block
    inside the block for the same folder writes into it directly.

    Args:
        path: the final name: new, an empty folder, or a preset to replace.

    Raises:
        ValueError: if `path` is a file or a folder with something else in it.
    """
    final = Path(path)
    if final.name.startswith(_INCOMPLETE):
        yield final
        return
    final = final.absolute()
    _check_replaceable(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_INCOMPLETE}{final.name}-", dir=final.parent))
    try:
        yield folder
        folder.chmod(0o755)
        _replace(folder, final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_replaceable(final: Path) -> None:
    holds_preset = (final / "config.json").exists()
    if final.exists() and (final.is_file() or (any(final.iterdir()) and not holds_preset)):
        raise ValueError(
            f"Expected a new folder, an empty one or a preset to replace. Received: {final}, "
            "which holds something else. Choose another name."
        )


def _replace(folder: Path, final: Path) -> None:
    if not final.exists():
        os.rename(folder, final)
        return
    old = Path(tempfile.mkdtemp(prefix=f"{_INCOMPLETE}old-", dir=final.parent))
    os.rename(final, old / final.name)
    try:
        os.rename(folder, final)
    except BaseException:
        os.rename(old / final.name, final)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def check_inside(name: str, folder: str) -> None:
    """Refuses a file name that would leave its folder.

    Raises:
        ValueError: if `name` is absolute or climbs with `..`.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(
            f"Expected a file name inside {folder}. Received: {name!r}, which leads out of it. "
            "Do not use this preset."
        )
