"""`keras-encdec claims`: the paper's claims, tried again in small."""

import argparse
from pathlib import Path

from rich.console import Console

from keras_encdec.evaluation import claims


def try_claims(args: argparse.Namespace) -> None:
    """Trains what the claims are about and prints the report.

    Args:
        args: the options.

    Raises:
        ValueError: if an option has no such value.
        OSError: if the folder cannot be written, or another process writes to it.
    """
    found = claims(args.output, args.only, args.seeds, args.scale)
    console = Console()
    found.show(console)
    folder = Path(args.output).resolve()
    console.print(f"claims.md, claims.json, claims.png, runs and models are in {folder}.")
