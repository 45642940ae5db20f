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
from typing import Any, TextIO


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
    _add_reports(commands)
    _add_superglue(commands)
    _add_eval(commands)
    _add_merge(commands)
    _add_claims(commands)
    return parser


def _add_reports(commands: Any) -> None:
    """The paper's figures, each with a folder for its JSON and PNG."""
    report = commands.add_parser("report", help="the paper's figures: tables, JSON and PNG")
    kinds = report.add_subparsers(dest="report", required=True)

    def add(kind: str, text: str) -> argparse.ArgumentParser:
        parser = kinds.add_parser(kind, help=text, description=text)
        output = f"./encdec-{kind}"
        parser.add_argument("--output", default=output, help=f"its folder (default {output})")
        return parser

    flops = add("flops", "figure 3: forward FLOPs of pairs beside their decoder-only sources")
    flops.add_argument(
        "models", nargs="*", help="pairs or decoder-only models; the paper's if none"
    )
    flops.add_argument("--source-length", type=int, default=4096, help="tokens of the input")
    flops.add_argument("--target-length", type=int, default=4096, help="tokens of the target")
    flops.add_argument("--counting", default="dense", help="dense (default) or masked attention")
    flops.add_argument("--xla", action="store_true", help="also XLA's own count, by compiling")
    latency = add("latency", "figure 4: seconds per query of a pair beside its decoder-only source")
    latency.add_argument(
        "pairs", nargs="*", default=["gemma2_tiny_tiny"], help="such as gemma2_9b_9b gemma2_9b_2b"
    )
    latency.add_argument("--queries", type=int, default=200, help="prompts (default 200)")
    latency.add_argument("--source-length", type=int, default=256, help="tokens of each prompt")
    latency.add_argument("--new", type=int, default=64, help="tokens to write for each")
    latency.add_argument("--texts", nargs="+", help=".txt or .jsonl files; docstrings if none")
    latency.add_argument("--dtype", help="dtype or policy of all models; Keras' default if none")
    latency.add_argument("--keras-hub", action="store_true", help="time pairs in KerasHub, too")
    latency.add_argument("--drafts", action="store_true", help="let ours copy drafts from prompts")
    curves = add("curves", "figure 2: quality over tokens, from what runs of fit have kept")
    curves.add_argument(
        "runs", nargs="+", help="history.json, CSVLogger's .csv, Checkpoint folders, saved models"
    )
    curves.add_argument("--metric", help="a log, such as val_loss (default) or accuracy")
    curves.add_argument(
        "--level", action="append", default=[], dest="levels", help="a line, such as source=2.93"
    )
    correlation = add("correlation", "figure 6: Spearman's coefficients, over all and within sizes")
    correlation.add_argument(
        "table", nargs="?", help="JSON of models and scores; the paper's if none"
    )
    correlation.add_argument(
        "--scores", nargs="+", help="the first is held against each other one; all if none"
    )


def _add_superglue(commands: Any) -> None:
    parser = commands.add_parser(
        "superglue", help="fine-tune encoders on SuperGLUE, side by side, and compare them"
    )
    parser.add_argument("folder", help="where SuperGLUE's official archives were unpacked")
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        help="presets or folders, as NAME=PRESET for a name in the table; with :causal or "
        ":bidirectional behind a decoder-only model; the first is what others are compared with",
    )
    parser.add_argument("--tasks", nargs="+", help="such as BoolQ CB; all seven if none")
    parser.add_argument("--learning-rates", nargs="+", type=float, help="of the grid")
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="of the grid")
    parser.add_argument("--dropouts", nargs="+", type=float, help="of the grid, before the head")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--epochs", type=int, default=10, help="at most (10)")
    parser.add_argument("--patience", type=int, default=3, help="epochs without progress (3)")
    parser.add_argument("--metric", default="score", help="that decides; score if none")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens at most (512)")
    parser.add_argument("--dtype", help="policy of the models, such as mixed_bfloat16")
    parser.add_argument(
        "--stand-in",
        type=int,
        metavar="SIZE",
        help="first make the folder, if it is not there, of docstrings of installed packages, "
        "with so many lines to train on for each task",
    )
    parser.add_argument(
        "--output",
        default="./encdec-superglue",
        help="folder for runs, table and picture; after a kill, the same call goes on",
    )


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser("eval", help="ask models the tasks of lm-eval")
    parser.add_argument(
        "presets", nargs="+", help="pairs, or decoder-only models beside them; names or folders"
    )
    parser.add_argument("--tasks", required=True, help="names with commas, such as arc_easy,boolq")
    parser.add_argument("--include-path", help="folder with YAML of tasks of your own")
    parser.add_argument("--limit", type=int, help="documents of each task")
    parser.add_argument("--num-fewshot", type=int, help="examples in front of each document")
    parser.add_argument(
        "--split",
        default="context",
        help="what a pair's encoder reads: context (all of it), or prefix_lm (its first half)",
    )
    parser.add_argument("--max-length", type=int, help="tokens of a context at most")
    parser.add_argument("--batch-size", type=int, default=32, help="requests at a time (32)")
    parser.add_argument("--chat", action="store_true", help="frame prompts as turns")
    parser.add_argument("--dtype", help="dtype of the models, such as bfloat16")
    parser.add_argument(
        "--output", help="JSON file for results; after a kill, the same call goes on"
    )


def _add_merge(commands: Any) -> None:
    parser = commands.add_parser("merge", help="make one model of several fine-tuned ones")
    parser.add_argument("presets", nargs="+", help="folders of save_to_preset, two or more")
    parser.add_argument("--output", required=True, help="folder of the result")
    parser.add_argument("--method", default="average", help="average (default), slerp, ties or sum")
    parser.add_argument("--base", help="folder of the model that training began from")
    parser.add_argument("--weights", nargs="+", type=float, help="of each preset; equal if none")
    parser.add_argument("--strength", type=float, help="from 0, the base, to 1 (default)")
    parser.add_argument("--density", type=float, help="for ties: the share that stays (0.2)")


def _add_claims(commands: Any) -> None:
    parser = commands.add_parser("claims", help="try the paper's claims again, in small")
    parser.add_argument("--output", default="./encdec-claims", help="folder for report and models")
    parser.add_argument("--only", nargs="+", help="such as C1 C9; all of them if none")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of each arm")
    parser.add_argument("--scale", default="embedded", help="embedded (default), or smollm2 on GPU")


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
