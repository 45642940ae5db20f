"""Whether what a model found is numbers: the error that names the first text where it is not."""

from collections.abc import Sequence

import numpy as np


def check_finite(
    what: str, finite: np.ndarray, texts: Sequence[str] | None, first: int = 0
) -> None:
    """Raises FloatingPointError unless all of (N,) are True, naming the first text that is not.

    Args:
        what: was found, such as `"scores"`.
        finite: of each text.
        texts: where they are at hand, or None.
        first: number of the first of them.
    """
    if finite.all():
        return
    number = int(np.argmin(finite))
    said = "" if texts is None else f": {texts[number][:60]!r}"
    raise FloatingPointError(
        f"Expected finite {what}. Received: NaN or Inf for {(~finite).sum()} of {len(finite)} "
        f"texts, the first of them text {first + number}{said}. Look for weights that are not "
        "finite, or compute in float32 or bfloat16."
    )
