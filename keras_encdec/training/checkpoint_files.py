"""Where checkpoints lie, and what an error of Orbax says about the files there.

Knows the texts of TensorStore, which writes the arrays for Orbax and has one type of
error for all that can go wrong. Leaves what is in a checkpoint to
`keras_encdec.training.checkpoint`.
"""

import errno
import glob
import json
import os
import re
from collections.abc import Iterator
from typing import Any

# What someone must mend who owns the disk: room, rights, a fault of the device.
_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
    errno.EIO,
}
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
# TensorStore's status codes of data that is missing, cut short or no longer decodes
# (absl/status/status.h); an invalid number in it has no code.
_DAMAGE = re.compile(
    r"^(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION): |: Error decoding ", re.MULTILINE
)
_DAMAGED_JSON = json.JSONDecodeError, UnicodeDecodeError
_URL = re.compile(r"([a-z][a-z0-9+]+):/")


def orbax() -> Any:
    """`orbax.checkpoint`.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            'Checkpoints need Orbax: pip install "keras-encdec[checkpoint]"'
        ) from error
    return orbax.checkpoint


def location(folder: str | os.PathLike) -> Any:
    """A folder as the `etils.epath.Path` that Orbax writes to.

    Args:
        folder: a local folder, made absolute, or a URL such as `"gs://bucket/run"`.

    Raises:
        ValueError: if it is a URL of a kind that Orbax does not know, or one that
            `pathlib` has cut short, or a name that Orbax takes for a pattern: it would
            write there what it cannot read.
        ImportError: if Orbax is not installed.
    """
    orbax()
    from etils import epath

    if not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"Expected the name of a folder. Received: {folder!r}.")
    text = os.fspath(folder)
    if not _URL.match(text):
        text = os.path.abspath(text)
    if glob.has_magic(text):
        raise ValueError(
            f"Expected a folder without '*', '?' and '[' in its path. Received: {text}. Orbax "
            "looks for its files by patterns: choose another name."
        )
    if not _URL.match(text):
        return epath.Path(text)
    try:
        path = epath.Path(text)
    except (KeyError, ValueError):  # of epath, for a kind of URL that it does not know
        path = None
    if path is None or not path.is_absolute():
        raise ValueError(
            "Expected a local folder, or a URL as text, such as 'gs://bucket/run' or "
            f"'s3://bucket/run'. Received: {folder!r}."
        )
    return path


def is_of_the_disk(error: BaseException) -> bool:
    """Whether there was no room or no right to write, or a device failed."""
    numbers = {getattr(cause, "errno", None) for cause in _causes(error)}
    for cause in _causes(error):
        numbers |= {int(number) for number in _OS_ERROR.findall(str(cause))}
    return bool(numbers & _OF_THE_DISK)


def shows_damage(error: BaseException) -> bool:
    """Whether files are missing, cut short or changed, so that no one can read them."""
    return not is_of_the_disk(error) and any(map(_is_damage, _causes(error)))


def reason(error: BaseException) -> str:
    """What went wrong at first, without TensorStore's settings."""
    *_, first = _causes(error)
    return str(first).partition(" [tensorstore_spec")[0]


def _is_damage(error: BaseException) -> bool:
    if isinstance(error, (*_DAMAGED_JSON, FileNotFoundError, IsADirectoryError)):
        return True
    return isinstance(error, ValueError) and bool(_DAMAGE.search(str(error)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
