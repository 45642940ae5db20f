"""Folders and files that appear whole or not at all, and names that stay inside a folder.

Knows which files are a preset's own. Leaves system calls to `keras_encdec.disk`. Standard
library only.
"""

import contextlib
import fnmatch
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_encdec import disk
from keras_encdec.warn import warn

_INCOMPLETE = ".incomplete-"
KEPT = "README.md", "LICENSE", "NOTICE"  # the user's too, which a save keeps
_NAMED = 5  # files that an error names

# What KerasHub's `save_to_preset` and the layouts of transformers and sentence-transformers write.
OWN = (
    *(
        "config.json",
        "metadata.json",
        "digests.json",
        "provenance.json",
        "task.json",
        "preprocessor.json",
        "tokenizer.json",
    ),
    "encoder_tokenizer.json",
    *("model.weights.h5", "model.weights.json", "model_*.weights.h5", "task.weights.h5"),
    *("assets/tokenizer/*", "assets/encoder_tokenizer/*"),
    *("generation_config.json", "tokenizer.model", "tokenizer_config.json"),
    *("chat_template.jinja", "chat_template.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("[0-9]*_[A-Z]*/config.json", "[0-9]*_[A-Z]*/model.safetensors"),
)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike,
    size: int = 0,
    also: Sequence[str] = (),
    largest: int | None = None,
    mark: str | None = None,
) -> Iterator[Path]:
    """Yields a new folder that takes the name `path` when the block ends well.

    On an error it is removed, and what stood at `path` before is still there. A block
    inside the block for the same folder writes into it directly. README.md, LICENSE and NOTICE
    of the folder that is replaced stay, unless the block wrote new ones.

    Args:
        path: the final name: new, an empty folder, or a preset to replace.
        size: bytes that will be written, asked for before the first of them is.
        also: files, beside those of a preset, that the caller wrote here before.
        largest: bytes of the largest file; all of them if None.
        mark: a JSON file of the caller's with a key `report`: a folder that has it and nothing
            but `also` is replaced like a preset.

    Raises:
        ValueError: if `path` is a file, or a folder with something else in it.
        OSError: if there is no room or no right to write there.
    """
    if Path(path).name.startswith(_INCOMPLETE):
        yield Path(path)
        return
    final = Path(path).resolve()
    _tidy(final)
    _check_replaceable(final, also, mark)
    disk.require_room(next(p for p in final.parents if p.exists()), size, largest)
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_INCOMPLETE}{final.name}-", dir=final.parent))
    try:
        with disk.held(folder):
            yield folder
            folder.chmod(0o755)
            for name in KEPT:
                if (final / name).exists() and not (folder / name).exists():
                    shutil.copy2(final / name, folder / name)
            _check_replaceable(final, also, mark)  # what came while the block ran
            _replace(folder, final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, size: int = 0) -> Iterator[Path]:
    """Yields the name of a new file that takes the name `path` when the block ends well.

    On an error it is removed, and the file that stood at `path` before is still there.

    Args:
        path: of the file.
        size: as of `atomic_folder`.

    Raises:
        OSError: as `atomic_folder`.
    """
    final = Path(path).resolve()
    disk.require_room(final.parent, size)
    part = final.with_name(f"{_INCOMPLETE}{os.getpid()}-{final.name}")
    try:
        yield part
        os.replace(part, final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def final_of(path: str | os.PathLike) -> Path:
    """The name that the folder of a block of `atomic_folder` takes; of any other path its own."""
    whole = Path(path).resolve()
    of_block = re.fullmatch(re.escape(_INCOMPLETE) + "(.*)-[a-z0-9_]{8}", whole.name)
    return whole.with_name(of_block[1]) if of_block else whole


def _check_replaceable(final: Path, also: Sequence[str], mark: str | None) -> None:
    """Raises ValueError unless everything at `final` is ours, or nothing is there."""
    if not final.exists():
        return
    if not final.is_dir():
        raise ValueError(f"Expected the name of a folder. Received: {final}, a file.")
    if names := foreign_names(final, also, mark):
        kind = "a preset" if mark is None else "an earlier report"
        raise ValueError(
            f"Expected a new folder, an empty one or {kind} to replace. Received: {final}, "
            f"which holds something else: {names}. Choose another name, or move these files."
        )


def digest_of(about: Any) -> str:
    """16 digits that change with what JSON types say, whatever the order of keys."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, data: Any) -> None:
    """Writes a file as a person can read it."""
    path.write_text(json.dumps(data, indent=2) + "\n")


def foreign_names(folder: Path, also: Sequence[str] = (), mark: str | None = None) -> str:
    """The first files in a folder that no preset has, for a message; all where it is no preset."""
    foreign = list(itertools.islice(_foreign(folder, also, mark), _NAMED + 1))
    return ", ".join(foreign[:_NAMED]) + (" and more" if len(foreign) > _NAMED else "")


def _foreign(folder: Path, also: Sequence[str], mark: str | None) -> Iterator[str]:
    own: Sequence[str] = KEPT
    if mark is not None:
        own = (*KEPT, *also) if _has_key(folder / mark, {"report"}) else KEPT
    elif _has_key(folder / "config.json", {"registered_name", "model_type"}):
        own = (*OWN, *KEPT, *also)  # a preset of KerasHub or of transformers
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        known = path.is_file() and _is_one_of(name, own)
        if path.is_symlink() or not (known or path.is_dir()):
            yield name


def is_own(name: str) -> bool:
    """Whether a preset has a file of this name in its folder."""
    return _is_one_of(name, OWN)


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _has_key(file: Path, keys: set[str]) -> bool:
    """Whether a JSON file has one of the keys."""
    try:
        return bool(keys & set(read_json(file)))
    except (OSError, ValueError):
        return False


def _replace(folder: Path, final: Path) -> None:
    if not final.exists():
        os.rename(folder, final)
    elif disk.exchange(folder, final):
        shutil.rmtree(folder, ignore_errors=True)  # which now is the old one
    else:
        old = _old(final)
        os.rename(final, old)
        try:
            os.rename(folder, final)
        except BaseException:
            os.rename(old, final)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _old(final: Path) -> Path:
    return final.with_name(f"{_INCOMPLETE}{final.name}-old")


def _tidy(final: Path) -> None:
    """Puts back, or removes, what saves that were killed have left of this name."""
    old = _old(final)
    if old.exists() and not final.exists():
        os.rename(old, final)
        warn(f"Put {final} back, which a save that was stopped had moved to {old}.")
    temporary = re.compile(re.escape(f"{_INCOMPLETE}{final.name}-") + "([a-z0-9_]{8}|old)")
    for rest in final.parent.iterdir() if final.parent.is_dir() else ():
        if temporary.fullmatch(rest.name) and rest.is_dir() and not disk.is_held(rest):
            shutil.rmtree(rest, ignore_errors=True)
            warn(f"Removed {rest}, which a save that was stopped had left.")


@contextlib.contextmanager
def readable(what: str, name: str | os.PathLike) -> Iterator[None]:
    """Makes an error of reading say what cannot be read, and what to do.

    Args:
        what: is read, such as `"preset"`.
        name: of it.

    Raises:
        ValueError: in place of errors of other libraries, which name neither.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # TensorFlow, HDF5, SentencePiece and Rust have types of their own
        if "Expected" in str(error):
            raise
        said = re.sub(r"\{\{.*?\}\}\s*|\[Op:.*", "", str(error)).strip()
        raise ValueError(
            f"Expected a whole {what}. Received: {str(name)!r}, which cannot be read "
            f"({type(error).__name__}: {said}). Download or save it again."
        ) from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    try:
        data = json.loads(Path(path).read_text())
    except (ValueError, IsADirectoryError, RecursionError) as error:  # also of huge numbers
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
