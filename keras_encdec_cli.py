"""The `keras-encdec` command: its options, and a quiet start of what they ask for.

It stands outside the package, whose import takes seconds and lets TensorFlow's native code
write to the standard error stream, whatever its log level: options are read before that, and
what is written is put aside, and shown if the command fails.
"""

import argparse
import contextlib
import importlib.metadata
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import TextIO


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: options; by default the process's own.

    Returns:
        The exit status.
    """
    args = _parser().parse_args(argv)
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _standard_error_aside() as (terminal, log):
        try:
            from keras_encdec.cli.main import run

            return run(args, terminal)
        except Exception:
            log.seek(0)
            terminal.write(log.read())
            traceback.print_exc(file=terminal)
            return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-encdec", description="Decoder-only language models as encoder-decoders."
    )
    version = importlib.metadata.version("keras-encdec")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="convert, adapt and fine-tune an embedded model, without network"
    )
    demo.add_argument("--output", default="./encdec-demo", help="folder for what it makes")
    demo.add_argument("--minutes", type=float, default=8, help="budget on two cores (default 8)")
    demo.add_argument("--steps", type=int, help="adaptation steps, instead of --minutes")
    plan = commands.add_parser("plan", help="print where each weight of a pair comes from")
    plan.add_argument("encoder", help="a pair such as gemma2_9b_2b, or a decoder-only model")
    plan.add_argument("decoder", nargs="?", help="a decoder-only model; a preset or a folder")
    plan.add_argument("--decoder-layers", help="which it keeps: 13, 0,2,4 or 0:26:2")
    plan.add_argument("--dtype", default="bfloat16", help="dtype to count memory in")
    return parser


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
