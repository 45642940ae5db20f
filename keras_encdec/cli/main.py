"""What the `keras-encdec` command does, once `keras_encdec_cli` has read its options."""

import argparse
from typing import TextIO

from keras_encdec.cli.claims import try_claims
from keras_encdec.cli.demo import demo
from keras_encdec.cli.evaluate import evaluate
from keras_encdec.cli.merge import merge
from keras_encdec.cli.plan import show_plan
from keras_encdec.cli.report import report
from keras_encdec.cli.superglue import fine_tune


def run(args: argparse.Namespace, errors: TextIO) -> int:
    """Does what was asked for.

    Args:
        args: the options.
        errors: where a message about wrong use goes.

    Returns:
        The exit status.
    """
    try:
        if args.command == "demo":
            demo(args.output, minutes=args.minutes, steps=args.steps)
        elif args.command == "report":
            report(args)
        elif args.command == "superglue":
            fine_tune(args)
        elif args.command == "eval":
            evaluate(args)
        elif args.command == "merge":
            merge(args)
        elif args.command == "claims":
            try_claims(args)
        else:
            show_plan(args.encoder, args.decoder, args.dtype, args.decoder_layers)
    except (ValueError, ImportError, OSError) as error:
        print(f"keras-encdec: {error}", file=errors)
        return 2
    return 0
