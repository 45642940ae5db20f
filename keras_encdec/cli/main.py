"""The `keras-encdec` command: its options, and which file does the work."""

import argparse
import contextlib
from typing import TextIO

from keras_encdec.cli.demo import demo
from keras_encdec.cli.plan import show_plan


def main(errors: TextIO, argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        errors: where a message about wrong use goes.
        argv: options; by default the process's own.

    Returns:
        The exit status.
    """
    with contextlib.redirect_stderr(errors):
        args = _parser().parse_args(argv)
    try:
        if args.command == "demo":
            demo(args.output, minutes=args.minutes, steps=args.steps)
        else:
            show_plan(args.encoder, args.decoder, args.dtype, args.decoder_layers)
    except (ValueError, ImportError, OSError) as error:
        print(f"keras-encdec: {error}", file=errors)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-encdec", description="Decoder-only language models as encoder-decoders."
    )
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
