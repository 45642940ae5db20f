"""`keras-encdec report`: the paper's figures, each as tables, a JSON file and a picture."""

import argparse
from pathlib import Path

from rich.console import Console

from keras_encdec.cli import report_correlation, report_curves, report_flops, report_latency
from keras_encdec.evaluation import reports

_MAKERS = {
    "flops": report_flops.make,
    "latency": report_latency.make,
    "curves": report_curves.make,
    "correlation": report_correlation.make,
}
_WIDTH = 110  # of tables in a file, which has no width of its own


def report(args: argparse.Namespace) -> None:
    """Makes a report, keeps it in a folder and prints its tables.

    Args:
        args: options; `report` is its kind and `output` the folder.

    Raises:
        ValueError: if an option cannot be, or the folder holds something else.
        ImportError: without matplotlib.
        OSError: if a file is not there, or nothing may be written.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    with reports.kept(args.report, args.output) as keep:
        made = _MAKERS[args.report](args)
        keep(made)
    for table in made.tables:
        console.print(table)
        console.print()
    for note in made.notes:
        console.print(note, highlight=False, markup=False)
    folder = Path(args.output).resolve()
    console.print(
        f"{args.report}.json has every number, {args.report}.png the picture, in {folder}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
