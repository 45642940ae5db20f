"""An import after which TensorFlow's native code is silent, and the user's logging as it was.

KerasHub imports TensorFlow on every backend. At its import that tells of GPUs and oneDNN,
whatever TF_CPP_MIN_LOG_LEVEL is, and at its first operation of a GPU that it cannot find. Keras
imports Orbax, by which the root logger gets a handler: the user's own `logging.basicConfig`
would do nothing from then on. Standard library only.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator

_LEVEL_OF_JAX = "1"  # which its import sets where there is none
# A line of absl's, by its level and date, and what absl says before the first of them.
_NATIVE = re.compile(rb"[IWE]\d{4} |WARNING: All log messages before absl::InitializeLog")


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """For the imports in the block; what else they write to standard error comes at its end.

    TF_CPP_MIN_LOG_LEVEL is 3 from then on, unless it is set; with 0 nothing is left out.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", _LEVEL_OF_JAX) == _LEVEL_OF_JAX:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    handlers = list(logging.root.handlers)
    with _native_lines_aside():
        yield
    logging.root.handlers[:] = handlers


@contextlib.contextmanager
def _native_lines_aside() -> Iterator[None]:
    """Shows what the block wrote to file descriptor 2 at its end, without absl's lines.

    All of it if the block fails. Does nothing where TF_CPP_MIN_LOG_LEVEL is 0, or where there is
    no standard error.
    """
    try:
        terminal = None if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0" else os.dup(2)
    except OSError:
        terminal = None
    if terminal is None:
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            kept.seek(0)
            os.write(2, b"".join(line for line in kept if failed or not _NATIVE.match(line)))
