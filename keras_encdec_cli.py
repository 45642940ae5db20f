"""Starts the `keras-encdec` command with the frameworks' start-up chatter put aside.

It stands outside the package because TensorFlow's native code writes to the standard
error stream as soon as `keras_encdec` is imported, whatever its log level. What is put
aside is shown if the command fails.
"""

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import TextIO


def main() -> int:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _standard_error_aside() as (terminal, log):
        try:
            from keras_encdec.cli.main import main as command

            return command(terminal)
        except Exception:
            log.seek(0)
            terminal.write(log.read())
            traceback.print_exc(file=terminal)
            return 1


@contextlib.contextmanager
def _standard_error_aside() -> Iterator[tuple[TextIO, TextIO]]:
    """Sends file descriptor 2 to a file; yields the real stream and that file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with os.fdopen(kept, "w") as terminal, tempfile.TemporaryFile("w+") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield terminal, log
        finally:
            terminal.flush()
            os.dup2(kept, 2)


if __name__ == "__main__":
    sys.exit(main())
