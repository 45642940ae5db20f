"""`keras-encdec merge`: several fine-tuned presets as one."""

import argparse

from rich.console import Console

import keras_encdec


def merge(args: argparse.Namespace) -> None:
    """Merges presets and says what loads the result.

    Args:
        args: `presets`, `output`, and the options of `keras_encdec.merge`.

    Raises:
        ValueError: as `keras_encdec.merge`.
        OSError: as `keras_encdec.merge`.
    """
    options = {n: getattr(args, n) for n in ("base", "weights", "strength", "density")}
    keras_encdec.merge(args.presets, args.output, args.method, **options)
    Console().print(
        f'keras_encdec.from_preset("{args.output}")', soft_wrap=True, highlight=False, markup=False
    )
