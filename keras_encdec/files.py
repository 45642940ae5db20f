"""Folders and files that appear whole or not at all, and names that stay inside a folder.

Standard library only.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the name of a new file that takes the name `path` when the block ends well.

    On an error it is removed, and the file that stood at `path` before is still there.
    """
    final = Path(path)
    part = final.with_name(f"{_INCOMPLETE}{os.getpid()}-{final.name}")
    try:
        yield part
        os.replace(part, final)
    except BaseException:
        part.unlink(missing_ok=True)
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


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    try:
        data = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected JSON in {path}. Received: {error}. Download or save it again."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"Expected a JSON object in {path}. Received: {type(data).__name__}.")
    return data


def shard_names(path: str | os.PathLike) -> list[str]:
    """The files that an index (`{"weight_map": ...}`) names, in order, each once.

    Raises:
        FileNotFoundError: if there is no such index.
        ValueError: if it is no index, or a file lies outside its folder.
    """
    groups = read_json(path).get("weight_map")
    if not isinstance(groups, dict):
        raise ValueError(f"Expected a weight_map in {path}. Received: {groups!r}.")
    names = {n for group in groups.values() for n in ([group] if isinstance(group, str) else group)}
    for name in names:
        check_inside(name, str(Path(path).parent))
    return sorted(names)


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
