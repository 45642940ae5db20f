"""What a hub's no means, and what to do about it.

Knows how the clients of Kaggle and Hugging Face fail: by status, by type, and by what KerasHub
makes of it. Leaves files and handles to `keras_encdec.sharing.hubs`.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from keras_encdec.sharing import catalog
from keras_encdec.sharing.hubs import Hub

_TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # modules of their errors
_UNFIT, _BUSY, _CONFLICTS = 400, 429, (409, 412)
_LONGEST = 200  # characters of a hub's own words


@contextlib.contextmanager
def explained(hub: Hub | None, doing: str = "load", state: str = "") -> Iterator[None]:
    """Makes an error of a hub's client say what happened and what to do.

    Args:
        hub: `keras_encdec.sharing.hubs.Hub`; with None, of a folder, errors are left alone.
        doing: `"load"` or `"upload"`.
        state: a sentence on what is published, for uploads.

    Raises:
        PermissionError: where the hub asks for a token, a right or an accepted licence.
        ValueError: where there is no such model.
        ConnectionError: where it does not answer, is busy or fails, or others were faster.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) and status_of(error) == 404:
            raise  # a file that the model need not have
        found = None if hub is None else explanation(error, hub, doing, state)
        if found is None:
            raise
        raise found from error


def explanation(error: BaseException, hub: Hub, doing: str, state: str = "") -> Exception | None:
    """The error to raise in place of one, or None where it is not the hub's."""
    if str(error).startswith("Expected "):
        return None
    status = status_of(error)
    if status is None and not is_of_transport(error):
        return None
    kind, text = _told(status, hub, doing, error)
    return kind(" ".join(part for part in (text, state) if part))


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error; 401 where a client found no credentials to send."""
    for one in _chain(error):
        code = getattr(_response(one), "status_code", None)
        if type(one).__name__ in ("UnauthenticatedError", "LocalTokenNotFoundError"):
            return 401
        if type(one).__name__ == "BackendError":  # kagglehub's, with the status in its text
            told = re.search(r"status code (\d{3})", str(one))
            code = getattr(one, "error_code", None) or (int(told[1]) if told else _UNFIT)
        if code is not None:
            return int(code)
    return None


def is_of_transport(error: BaseException) -> bool:
    """Whether a connection failed, or a file came that is not the hub's."""
    return any(
        type(one).__module__.partition(".")[0] in _TRANSPORTS
        or isinstance(one, (ConnectionError, TimeoutError))
        or type(one).__name__ in ("LocalEntryNotFoundError", "DataCorruptionError")
        for one in _chain(error)
    )


def is_passing(error: BaseException) -> bool:
    """Whether the same call may do better a little later."""
    status = status_of(error)
    return is_of_transport(error) if status is None else status == _BUSY or status >= 500


def _told(
    status: int | None, hub: Hub, doing: str, error: BaseException
) -> tuple[type[Exception], str]:
    said, right = _words(error), f"Expected the right to {doing} {hub.handle}. Received:"
    near = catalog.nearest_handle(hub.handle)
    if status == 401:
        return PermissionError, (
            f"{right} 401 from {hub.name}, which knows nobody by what was sent ({said}).{near} "
            f"{hub.credentials}"
        )
    if status == 403:
        advice = _to_be_let_in(hub, near) if doing == "load" else _to_be_let_write(hub)
        return PermissionError, f"{right} 403 from {hub.name} ({said}). {advice}"
    if status == 404:
        return ValueError, (
            f"Expected a model on {hub.name}. Received: {hub.handle!r}, which {hub.name} does not "
            f"know ({said}).{near} If it is private: {hub.credentials}"
        )
    if status in _CONFLICTS:
        return ConnectionError, (
            f"Expected {hub.handle} to stay as it was in the meantime. Received: {status} from "
            f"{hub.name}: something else changed it, or has that name ({said}). Look at "
            f"{hub.page}, then call again."
        )
    if status == _BUSY:
        return ConnectionError, (
            f"Expected an answer from {hub.name}. Received: 429, too many requests ({said}). Wait "
            f"{_wait(error)}, then call again."
        )
    if status is not None and status < 500:
        return ValueError, (
            f"Expected what {hub.name} takes. Received: {status} for {hub.handle} ({said}). Mend "
            "what it names, and call again."
        )
    if status is not None:
        return ConnectionError, (
            f"Expected an answer from {hub.name}. Received: {status}, an error on its side "
            f"({said}). Call again later."
        )
    kept = "what had come is kept" if doing == "load" else "what had arrived need not be sent again"
    cached = f" {hub.cached()}" if doing == "load" else ""
    return ConnectionError, (
        f"Expected a connection to {hub.name} for {hub.handle}. Received: none, or one that broke "
        f"({said}).{cached} Connect and call again: {kept}."
    )


def _to_be_let_in(hub: Hub, near: str) -> str:
    return (
        f"If it is gated, open {hub.page} with your account, accept its terms, and call again; "
        f"else it is private, or there is none of that name.{near} {hub.credentials}"
    )


def _to_be_let_write(hub: Hub) -> str:
    return (
        f"Upload under your own name, or have its owner let you write to it. {hub.credentials} The "
        "token must be one that may write."
    )


def _words(error: BaseException) -> str:
    """What the hub, or the client, said first."""
    innermost = next((e for e in _chain(error) if _response(e) is not None), error)
    lines = [line.strip() for line in re.split(r"\n+", str(innermost)) if line.strip()]
    text = " ".join(lines)[:_LONGEST] if lines else type(innermost).__name__
    return text.rstrip(".")


def _wait(error: BaseException) -> str:
    found = next((r for r in map(_response, _chain(error)) if r is not None), None)
    seconds = str(found.headers.get("Retry-After", "")) if found is not None else ""
    return f"{seconds} seconds" if seconds.isdigit() else "a few minutes"


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
