"""`keras-encdec eval`: models side by side on tasks of lm-eval, as a table and as JSON."""

import argparse
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from keras_encdec import check
from keras_encdec.files import atomic_file

_WIDEST = 1000  # characters of a line, with many models
_LARGE = 1000  # from where on decimals say nothing


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Asks the models and prints a table.

    Args:
        args: `presets`, `tasks` (names with commas), `include_path`, `limit`, `num_fewshot`,
            `batch_size`, `max_length`, `split`, `chat`, `dtype` and `output`, which is written
            when all is done; until then answers are kept beside it, as `output` with
            `.answers`, from where the same call goes on after a kill.

    Returns:
        By model, as `keras_encdec.evaluation.harness_tasks.evaluate`.

    Raises:
        ImportError: if lm-eval is not installed.
        ValueError: if there is no such task or model, its data is damaged, or `output` is there.
    """
    from keras_encdec.evaluation import harness_tasks as evaluation  # imports lm-eval, an extra

    names = [name for name in args.tasks.split(",") if name]
    output = None if args.output is None else Path(args.output)
    if output is not None and output.exists():
        raise ValueError(
            f"Expected a new file for results. Received: {output}, which is there. Choose another "
            "name or remove it."
        )
    if args.limit is not None:
        check.whole("--limit", args.limit)
    tasks = evaluation.Tasks(names, args.include_path)
    answers = None if output is None else output.with_name(f"{output.name}.answers")
    options = {"batch_size": args.batch_size, "max_length": args.max_length, "split": args.split}
    options |= {"answers": answers, "dtype": args.dtype}
    models = {name: functools.partial(evaluation.LM, name, **options) for name in args.presets}
    found = evaluation.evaluate(
        models, tasks, limit=args.limit, num_fewshot=args.num_fewshot, chat=args.chat
    )
    show(found, evaluation.rows(found))
    if output is not None:
        with atomic_file(output) as new:
            new.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        assert answers is not None
        answers.unlink(missing_ok=True)
    return found


def show(results: Mapping[str, Any], rows: Any) -> None:
    """Prints results as a table with a column for each model, and what was cut."""
    table = Table("task", "metric", "shots", "documents", *map(_name, results), box=None)
    last = None
    for task, metric, shots, count, values in rows:
        same = task == last
        start = ("", metric, "", "") if same else (task, metric, shots, f"{count:,}")
        table.add_row(*start, *(_shown(*value) for value in values))
        last = task
    wide = Console(width=_WIDEST)
    needed = Measurement.get(wide, wide.options, table).maximum
    console = Console(width=max(Console().width, needed))  # a number on two lines is no number
    console.print(table)
    for name, found in results.items():
        if found["cut_contexts"]:
            console.print(
                f"{_name(name)}: {found['cut_contexts']:,} contexts lost their beginning, beyond "
                f"{found['model']['max_length']} tokens (--max-length)."
            )


def _name(preset: str) -> str:
    """Of a folder its last part."""
    return preset if "://" in preset else Path(preset).name


def _shown(value: Any, error: Any) -> str:
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{_number(value)} ± {_number(error)}" if isinstance(error, float) else _number(value)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < _LARGE else f"{value:,.1f}"
