"""Which path an attention takes, and why no faster one.

Knows the names of paths, when fusing pays and what is said of it. Leaves which kernel there is
to `keras_encdec.layers.fused`, and computing to `keras_encdec.layers.attention`.
"""

import dataclasses
import functools
import logging
import math

from keras_encdec import layout
from keras_encdec.layers import fused
from keras_encdec.layers.fused import Problem, Refusals
from keras_encdec.layers.shards import Cut

# "auto", the reference, the fastest kernel that there is, or the one of that name.
PATHS = ("auto", "plain", "fused", *fused.KERNELS)

# Where "auto" turns to fused. A gradient with 4 heads of width 32 on two CPU cores: at
# 256 x 256 in equal memory, at 512 x 512 in half of it and twice as fast.
_FUSED_FROM = 512 * 512


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an attention takes.

    Args:
        path: `"plain"` or the name of a kernel; `"none"` where what was asked for cannot be.
        refused: names of what is faster, each with the reason that it is not taken.
        cut: how the active distribution cuts a kernel's work; None without one. The plain path
            is left to XLA.
    """

    path: str
    refused: Refusals = ()
    cut: Cut | None = None

    def __str__(self) -> str:
        cut = "" if self.cut is None else f", {self.cut}"
        instead = f", not faster ones {fused.said(self.refused)}" if self.refused else ""
        return f"{self.path}{cut}{instead}"


def check_path(
    path: str, soft_cap: float | None = None, merged: bool = False, sinks: bool = False
) -> None:
    """Refuses a path of attention that there is not, or not here whatever the lengths.

    Args:
        path: of `keras_encdec.layers.attention.attend`.
        soft_cap: of the attention.
        merged: whether self-attention sees the encoder's states too.
        sinks: whether the attention has them.

    Raises:
        ValueError: if `path` is none of `PATHS`, or a kernel that cannot be, saying why.
    """
    if path not in PATHS:
        raise ValueError(f"Expected attention to be one of {PATHS}. Received: {path!r}")
    if path in ("auto", "plain"):
        return
    obstacle = "of merged attention, which no kernel takes" if merged else None
    obstacle = obstacle or fused.obstacle(path, soft_cap, sinks)
    if obstacle is not None:
        raise _impossible(path, obstacle)


def _impossible(path: str, reason: str) -> ValueError:
    return ValueError(
        f"Expected attention that can be fused. Received: {path!r} {reason}. Set it to "
        "'auto', which fuses what can be, or to 'plain'."
    )


def choose(path: str, problem: Problem) -> Choice:
    """What an attention takes on this path; what `"auto"` takes is logged, each choice once.

    Raises:
        ValueError: if `path` is none of `PATHS`, or a kernel that cannot be, saying why.
    """
    check_path(path, problem.soft_cap, sinks=problem.sinks)
    choice = find(path, problem)
    if choice.path == "none":
        refused = choice.refused
        reason = f"finds no kernel {fused.said(refused)}" if path == "fused" else refused[0][1]
        raise _impossible(path, reason)
    if path == "auto":
        slow = choice.path == "xla_chunked" and layout.platform() != "cpu"
        _log(logging.WARNING if slow else logging.INFO, f"Attention by 'auto': {choice}.")
    return choice


@functools.cache
def _log(level: int, message: str) -> None:
    logging.getLogger("keras_encdec").log(level, message)


def find(path: str, problem: Problem, merged: bool = False) -> Choice:
    """As `choose`, which says `"none"` rather than raises."""
    if path == "plain":
        return Choice("plain")
    if merged:
        merges: Refusals = (("fused", "takes no merged attention"),)
        return Choice("plain" if path == "auto" else "none", merges)
    if path == "auto" and not _is_large(problem):
        return Choice("plain", (("fused", f"pays from {_FUSED_FROM} pairs of query and key on"),))
    kernel, refused = fused.choose("fused" if path == "auto" else path, problem)
    if kernel is None:
        return Choice("plain" if path == "auto" else "none", refused)
    return Choice(kernel, refused, fused.cut(problem))


def _is_large(problem: Problem) -> bool:
    """Whether T * S is known and large; under a TensorFlow graph it may be unknown."""
    lengths = problem.query[1], problem.key[1]
    return None not in lengths and math.prod(lengths) >= _FUSED_FROM
