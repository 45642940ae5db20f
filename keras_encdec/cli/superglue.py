"""`keras-encdec superglue`: encoders fine-tuned on SuperGLUE, side by side."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from keras_encdec.evaluation import superglue, write_stand_in

_ATTENTION = "causal", "bidirectional"


def fine_tune(args: argparse.Namespace) -> None:
    """Runs it and prints its tables.

    Args:
        args: the options.

    Raises:
        ValueError: if an option has no such value, or a file is not SuperGLUE's.
        OSError: if a file is missing or cannot be written.
    """
    models = dict(_model(text, args.dtype) for text in args.models)
    if len(models) < len(args.models):
        raise ValueError(
            f"Expected different models, or names for them: NAME=PRESET. Received: {args.models}."
        )
    if args.stand_in is not None and not Path(args.folder).exists():
        write_stand_in(args.folder, args.stand_in)
    grid = {
        "learning_rate": args.learning_rates,
        "batch_size": args.batch_sizes,
        "dropout": args.dropouts,
    }
    results = superglue(
        models,
        args.folder,
        args.tasks,
        {name: values for name, values in grid.items() if values is not None},
        args.seeds,
        args.epochs,
        output=args.output,
        patience=args.patience,
        metric=args.metric,
        sequence_length=args.sequence_length,
    )
    console = Console()
    results.show(console)
    console.print(f"Runs, superglue.json and superglue.png are in {Path(args.output).resolve()}.")


def _model(text: str, dtype: str | None) -> tuple[str, Any]:
    """`"source=gemma2_2b_en:causal"` as a name with preset and options."""
    name, named, said = text.rpartition("=")
    preset, _, attention = said.rpartition(":")
    options = {} if dtype is None else {"dtype": dtype}
    if attention not in _ATTENTION:
        return (name if named else said), (said, options)
    return (name if named else said), (preset, {**options, "encoder_attention": attention})
