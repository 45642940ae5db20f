"""What each kind of attention of an encoder and a decoder takes, as data that prints as a table.

Knows the kinds that there are. Leaves what they take to `keras_encdec.layers.choice`.
"""

import collections
import dataclasses
from collections.abc import Iterator

from keras_encdec.layers.choice import Choice, find
from keras_encdec.layers.decoder import Decoder
from keras_encdec.layers.encoder import Encoder
from keras_encdec.layers.fused import Problem
from keras_encdec.layers.masks import Limits
from keras_encdec.layers.stack import Stack
from keras_encdec.spec import AttentionSpec, Window

_TITLES = (
    "attention",
    "layers",
    "queries x keys",
    "takes",
    "faster ones, and why not they",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of attention.

    Args:
        kind: such as `"encoder, window 4096"`.
        layers: how many have it.
        queries: T.
        keys: S.
        choice: what it takes.
    """

    kind: str
    layers: int
    queries: int
    keys: int
    choice: Choice

    def cells(self) -> tuple[str, ...]:
        cut = "" if self.choice.cut is None else f" ({self.choice.cut})"
        refused = "; ".join(f"{name} {reason}" for name, reason in self.choice.refused)
        lengths = f"{self.queries} x {self.keys}"
        return self.kind, str(self.layers), lengths, f"{self.choice.path}{cut}", refused or "-"


@dataclasses.dataclass(frozen=True)
class AttentionReport:
    """What each kind of attention takes in a step, and why nothing faster; `str` is a table.

    Args:
        rows: `Row` of each kind.
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        cells = [_TITLES, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
        return "\n".join(lines)


def report(
    encoder: Encoder, decoder: Decoder, batch_size: int, source: int, target: int
) -> AttentionReport:
    """What a training step takes, or a pass over whole rows.

    Args:
        encoder: with its setting of `attention`.
        decoder: likewise.
        batch_size: B.
        source: S.
        target: T.
    """
    rows = [
        *_own(encoder, "encoder", batch_size, source),
        *_own(decoder, "decoder", batch_size, target),
    ]
    seen = [block.cross_attention.spec for block in decoder.blocks if block.cross_attention]
    for spec, layers in collections.Counter(seen).items():
        choice = _choice(decoder, spec, batch_size, target, source, Limits())
        kind = ", ".join(["decoder to encoder", *_shape(decoder, spec)])
        rows.append(Row(kind, layers, target, source, choice))
    return AttentionReport(tuple(rows))


def _own(stack: Stack, name: str, batch_size: int, length: int) -> Iterator[Row]:
    """Of a stack's self-attention, by window, heads and whether it sees the encoder too."""
    windows = zip(stack.spec.windows, stack.blocks, strict=True)
    kinds = [(window, b.merged, b.attention.spec) for window, b in windows]
    for (window, merged, spec), layers in collections.Counter(kinds).items():
        kind = ", ".join([name, *_kind(window, merged), *_shape(stack, spec)])
        limits = Limits(stack.causal, window)
        choice = _choice(stack, spec, batch_size, length, length, limits, merged)
        yield Row(kind, layers, length, length, choice)


def _kind(window: Window, merged: bool) -> Iterator[str]:
    yield "all tokens" if window is None else f"window {window}"
    if merged:
        yield "merged with the encoder's"


def _shape(stack: Stack, spec: AttentionSpec) -> Iterator[str]:
    if isinstance(stack.spec.attention, tuple):
        yield f"{spec.num_heads} heads of {spec.head_dim}"


def _choice(
    stack: Stack,
    spec: AttentionSpec,
    batch_size: int,
    queries: int,
    keys: int,
    limits: Limits,
    merged: bool = False,
) -> Choice:
    problem = Problem(
        query=(batch_size, queries, spec.num_heads, spec.head_dim),
        key=(batch_size, keys, spec.num_kv_heads, spec.head_dim),
        dtype=stack.compute_dtype,
        scale=spec.query_scale,
        soft_cap=spec.logit_soft_cap,
        limits=limits,
        sinks=spec.sinks,
    )
    return find(stack.attention, problem, merged)
