"""What is asked of the operating system about a disk: room, an exchange of names, locks.

Knows system calls, and that not every system has them: what cannot be asked is taken as
granted. Leaves what is written to `keras_encdec.files`. Standard library only.
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LIBRARY: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
_NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


def exchange(one: Path, other: Path) -> bool:
    """Swaps what two names stand for, in one step; False where this system cannot."""
    if not hasattr(_LIBRARY, "renameat2"):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return _LIBRARY.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0


def require_room(folder: Path, size: int, largest: int | None = None) -> None:
    """Asks for room before a byte is written: HDF5 ends the process where a disk fills up.

    Args:
        folder: one that exists.
        size: bytes.
        largest: bytes of the largest file; all of them if None.

    Raises:
        OSError: if there is less, a quota or a limit of the process forbids it, or nothing
            may be written there.
    """
    free = shutil.disk_usage(folder).free
    if free < size or not _reservable(folder, size, largest or size):
        raise OSError(
            errno.ENOSPC,
            f"Expected room for {size / 1e9:,.3f} GB in {folder}. Received: {free / 1e9:,.3f} GB, "
            "or a quota or limit below that. Nothing was written: make room, or choose "
            "another folder",
        )


def _reservable(folder: Path, size: int, largest: int) -> bool:
    with contextlib.ExitStack() as files:
        for begin in range(0, size, max(1, largest)):
            file = files.enter_context(tempfile.TemporaryFile(dir=folder))
            if not hasattr(_LIBRARY, "fallocate"):
                return True
            length = ctypes.c_long(min(largest, size - begin))
            if _LIBRARY.fallocate(file.fileno(), 0, ctypes.c_long(0), length) != 0:
                return ctypes.get_errno() not in _NO_ROOM
    return True


def append(path: Path, text: str) -> None:
    """Adds to the end of a file, as UTF-8; when it returns, the text outlives a kill."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Others see, by `is_held`, that a process is at work in this folder until it ends."""
    number = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        _lock(number)
        yield
    finally:
        if number is not None:
            os.close(number)


def is_held(folder: Path) -> bool:
    """Whether a process that still runs is in `held(folder)`; True where none can tell."""
    if fcntl is None:
        return True
    number = os.open(folder, os.O_RDONLY)
    try:
        return not _lock(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Keeps others from writing to a file or in a folder; a lock whose owner is gone is no lock.

    Raises:
        BlockingIOError: if another process, or a thread of this one, writes there, with the
            name of the process.
    """
    lock = path / ".lock" if path.is_dir() else path.with_name(f"{path.name}.lock")
    with open(lock, "a+") as file:
        if not _lock(file.fileno() if fcntl is not None else None) or not _is_at(file, lock):
            file.seek(0)
            raise BlockingIOError(
                f"Expected {path} for this call alone. Received: one that {_owner(file.read())} "
                "writes to. Wait for its end, or choose another name."
            )
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": platform.node()}))
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _is_at(file: IO, path: Path) -> bool:
    """Whether an open file still has this name: its last owner may just have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _lock(number: int | None) -> bool:
    """Whether this open file or folder is ours now; True where the system cannot lock it."""
    if number is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
