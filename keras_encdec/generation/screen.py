"""The likeliest token from a quarter of the bytes: a projection in int8 that bounds every logit.

Knows a table of the output matrix in int8, how far a logit can be from what the table says of
it, and when a token is certain to be the one that the whole projection would choose; where it
is not, the whole projection is asked, so no token differs. JAX alone. Leaves the whole
projection, and when a table pays, to whoever calls.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from keras_encdec.spec import Tensor

_BLOCK = 8  # words V / 8 apart that are computed again together, if any can be the best
_TAKEN = 64  # blocks computed again for each row
_PART = 4096  # rows of the matrix that are in work at once when a table is made
_UNIT = 2.0**-24  # float32 rounds by at most this share
_TINY = 2.0**-100  # below this, products leave float32's normal range


class Table(NamedTuple):
    """What is kept of a (V, D) matrix: `words * scale[:, None]` is close to it.

    Args:
        words: (V, D) int8.
        scale: (V,) float32.
        norm: (V,) float32, at least the length of each row and of its int8 version.
        missed: (V,) float32, at least the length of what is missing in each row, and of what
            sums in float32 lose, for states of length 1.
    """

    words: Any
    scale: Any
    norm: Any
    missed: Any

    @property
    def nbytes(self) -> int:
        """Memory of it."""
        return sum(array.nbytes for array in self)


def table_of(matrix: Tensor) -> Table:
    """`Table` of a (V, D) matrix of floats, as the projection reads it."""
    import jax

    rows, width = matrix.shape
    # A part at a time, as XLA on CPU sums squares fast only where they lie in memory.
    part = max(n for n in range(1, min(rows, _PART) + 1) if rows % n == 0)
    parts = jax.lax.map(_part_of_table, matrix.reshape(-1, part, width))
    return Table(*(x.reshape(rows, *x.shape[2:]) for x in parts))


def _part_of_table(matrix: Tensor) -> Table:
    import jax.numpy as jnp

    x, width = matrix.astype("float32"), matrix.shape[1]
    largest = jnp.max(jnp.abs(x), axis=1)
    small = ~(largest >= _TINY)
    scale = jnp.where(small, 0.0, largest / 127)
    steps = x / jnp.where(small, 1.0, scale)[:, None]
    words = jnp.where(small[:, None], 0.0, jnp.clip(jnp.round(steps), -127, 127))
    # Lengths in steps, so that no square leaves float32's range.
    norm = jnp.where(small, width**0.5 * jnp.maximum(largest, _TINY), scale * _length(steps))
    missed = jnp.where(small, norm, scale * _length(steps - words))
    norm = norm + missed
    return Table(words.astype("int8"), scale, norm, missed + _lost(width) * norm)


def certain(
    states: Tensor, table: Table, matrix: Tensor, soft_cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, and whether they surely are.

    A logit is w . h, with q, s, r the word's int8 row, scale and what is missing, and h = d + e
    the state, of which two int8 digits are d: w . h = s q . d + (w - r) . e + r . h, where
    the first part is the table's and the others are at most |w - r| |e| + |r| |h|. Words
    that so can have the largest logit stand in blocks, which are computed again; the best of
    them is certain where it leads all others by more than any order of summing, rounding
    and the soft cap can change.

    Args:
        states: (M, D) in the compute dtype, float32 or bfloat16.
        table: of `matrix`, in the compute dtype.
        matrix: (V, D), cast to the compute dtype where it is read.
        soft_cap: of the logits.

    Returns:
        `(ids, is_certain)`, (M,) int32 and bool. Never certain where the logits may not be
        finite, or two words are equally likely.
    """
    import jax
    import jax.numpy as jnp

    h, rows = states.astype("float32"), states.shape[0]
    upper, length = _upper(h, table)
    reach, chosen = jax.lax.top_k(upper, min(_TAKEN, upper.shape[1]))
    words = chosen[:, :, None] + upper.shape[1] * jnp.arange(_BLOCK)
    words = words.reshape(rows, -1)
    exists = words < len(matrix)
    words = jnp.where(exists, words, 0)
    again = jnp.einsum(
        "mwd,md->mw",
        matrix[words].astype(states.dtype).astype("float32"),
        h,
        precision=jax.lax.Precision.HIGHEST,
    )
    off = _lost(h.shape[1]) * table.norm[words] * length + _TINY
    best = jnp.argmax(jnp.where(exists, again, -jnp.inf), axis=1)[:, None]
    is_best = jnp.arange(words.shape[1]) == best
    others = jnp.where(exists & ~is_best, again + off, -jnp.inf)
    rival = jnp.max(others, axis=1)
    if upper.shape[1] > _TAKEN:
        rival = jnp.maximum(rival, jnp.min(reach, axis=1))  # what was not taken is below
    least = jnp.take_along_axis(again - off, best, axis=1)[:, 0]
    (least, below), (rival, above) = (_written(x, states.dtype, soft_cap) for x in (least, rival))
    # As the loop does: finite is what has a finite sum.
    finite = jnp.max(table.norm) * length[:, 0] * len(matrix) < jnp.finfo("float32").max
    ids = jnp.take_along_axis(words, best, axis=1)[:, 0].astype("int32")
    leads = least - below > rival + above
    return ids, finite & leads & (jnp.max(jnp.abs(h), axis=1) >= _TINY)


def argmax(
    states: Tensor,
    table: Table,
    matrix: Tensor,
    soft_cap: float | None,
    whole: Callable[[], Tensor],
) -> Tensor:
    """(M,) int32, the ids that `whole` gives, which is asked only where they are not certain.

    Args:
        states: as of `certain`, the next three too.
        table: of `matrix`.
        matrix: (V, D).
        soft_cap: of the logits.
        whole: the whole projection and its argmax, (M,) int32.
    """
    import jax
    import jax.numpy as jnp

    ids, known = certain(states, table, matrix, soft_cap)
    return jax.lax.cond(jnp.all(known), lambda: ids, lambda: whole().astype("int32"))


def _upper(h: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """(M, V / 8) the most that a logit of each block can be, and (M, 1) at least |h|."""
    import jax
    import jax.numpy as jnp

    rows = h.shape[0]
    largest = jnp.max(jnp.abs(h), axis=1, keepdims=True)
    step = largest / 127
    scaled = h / jnp.where(largest > 0, step, 1.0)
    first = jnp.clip(jnp.round(scaled), -127, 127)
    second = jnp.clip(jnp.round((scaled - first) * 254), -127, 127)
    length = step * _length(scaled)[:, None]
    rest = step * _length(scaled - first - second / 254)[:, None] + 8 * _UNIT * length
    # Two rows and more: XLA on CPU writes the table out in int32 for a single one.
    digits = jnp.concatenate([first, second]).astype("int8")
    sums = jax.lax.dot_general(
        digits, table.words, (((1,), (1,)), ((), ())), preferred_element_type="int32"
    )

    def reached(start: int) -> Tensor:
        some = slice(start, start + blocks)
        scale, norm, missed = (x[some] for x in (table.scale, table.norm, table.missed))
        one, two = (x[:, some].astype("float32") for x in (sums[:rows], sums[rows:]))
        found = (one + two / 254) * step * scale + length * missed + rest * norm + _TINY
        return jnp.pad(found, [(0, 0), (0, blocks - len(scale))], constant_values=-jnp.inf)

    blocks = -(-len(table.scale) // _BLOCK)
    parts = [reached(start) for start in range(0, len(table.scale), blocks)]
    return functools.reduce(jnp.maximum, parts), length


def _length(x: Tensor) -> Tensor:
    """At least the length of each row, whatever order its squares are summed in."""
    import jax.numpy as jnp

    return jnp.sqrt(jnp.einsum("vd,vd->v", x, x)) * (1 + (x.shape[1] + 8) * _UNIT)


def _lost(width: int) -> float:
    """What a float32 sum of D products can be off, as a share of |w| |h|.

    D units in any order of summing (Higham, Accuracy and Stability of Numerical Algorithms,
    equation 3.5); twice that for two such sums, and some for the steps around them.
    """
    return (2 * width + 64) * _UNIT


def _written(x: Tensor, dtype: Any, soft_cap: float | None) -> tuple[Tensor, Tensor]:
    """Sums as the projection gives them out, soft capped, and how far off its rounding may be.

    bfloat16 rounds by 2**-9 at most: the sum, the quotient, the hyperbolic tangent and the
    product. In float32 the tangent of XLA is off by less than 2**-20, near 1 too.
    """
    import jax.numpy as jnp

    low = dtype == jnp.bfloat16
    if soft_cap is None:
        return x, jnp.abs(x) * (2**-8 if low else 0.0)
    x = soft_cap * jnp.tanh(x / soft_cap)
    return x, jnp.abs(x) * 2**-6 if low else jnp.full_like(x, soft_cap * 2**-18)
