"""Depth as a loop: blocks that are alike are traced and compiled once, on JAX.

Knows which blocks are alike, and how the weights of each, which stay variables of their own,
go into `jax.lax.scan`. Leaves what a block is given to `keras_encdec.layers.stack`.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import keras

from keras_encdec import layout
from keras_encdec.check import flag as check_flag
from keras_encdec.layers.block import Block
from keras_encdec.private import AutocastScope
from keras_encdec.spec import Tensor, Window


def check(value: Any) -> None:
    """Raises ValueError if `scan` cannot be `value` here."""
    if check_flag("scan", value) and keras.backend.backend() != "jax":
        raise ValueError(
            "Expected scan=False on a backend that compiles block by block. Received: True on "
            f"{keras.backend.backend()}. Blocks are scanned on JAX."
        )


class Stretch(NamedTuple):
    """A row of blocks in which a pattern comes again and again.

    Args:
        start: number of its first block.
        period: blocks of the pattern, such as 2 where local and global attention take turns.
        times: how often it comes; 1 where nothing repeats, with a period of 1.
    """

    start: int
    period: int
    times: int

    @property
    def end(self) -> int:
        """Number behind its last block."""
        return self.start + self.period * self.times


def stretches(kinds: Sequence[Hashable]) -> list[Stretch]:
    """Cuts blocks into stretches: from the left, the longest that repeats something.

    Args:
        kinds: of each block, equal for blocks that are alike.

    Example:
        >>> stretches("aabaabaa")
        [Stretch(start=0, period=3, times=2), Stretch(start=6, period=1, times=2)]
    """
    found, start = [], 0
    while start < len(kinds):
        rest = kinds[start:]
        ways = [(p, _times(rest, p)) for p in range(1, len(rest) // 2 + 1)]
        ways = [(p, n) for p, n in ways if n > 1] or [(1, 1)]
        period, times = max(ways, key=lambda way: (way[0] * way[1], -way[0]))
        found.append(Stretch(start, period, times))
        start += period * times
    return found


def stretches_of(
    blocks: Sequence[Block], windows: Sequence[Window], scanned: bool, ends: Sequence[int]
) -> list[Stretch]:
    """Blocks with their windows, one by one or, scanned, those that are alike together.

    One ends at each of `ends`, numbers behind a block whose output is asked for.
    """
    if not scanned:
        return [Stretch(i, 1, 1) for i in range(len(blocks))]
    groups = [sum(i >= end for end in ends) for i in range(len(blocks))]
    return stretches(list(zip(map(kind, blocks), windows, groups, strict=True)))


def _times(kinds: Sequence[Hashable], period: int) -> int:
    """How often the first `period` kinds come one after another."""
    times = 1
    while kinds[times * period : (times + 1) * period] == kinds[:period]:
        times += 1
    return times


def kind(block: Block) -> Hashable:
    """Equal for two blocks that compute the same of their weights, which may differ in value.

    A block that hands keys and values on, or is told more than the states, is like no other.
    """
    own, spec = len(block.path) + 1, block.spec
    hands_on = spec.borrowing_layers or spec.per_layer_dim is not None
    return (
        block.layer if hands_on else None,
        block.attention.rotary,
        block.attention.spec,
        block.merged,
        len(_seeds(block)),
        *((v.path[own:], tuple(v.shape), v.dtype, v.trainable) for v in block.weights),
        *(_settings(layer) for layer in block._flatten_layers(include_self=False)),
    )


def _settings(layer: keras.layers.Layer) -> Hashable:
    """What `quantize` and `enable_lora` leave in a layer beside its variables."""
    names = "lora_rank", "lora_alpha", "quantization_mode"
    policy = layer.dtype_policy
    given = (getattr(layer, name, None) for name in names)
    return type(layer), policy.name, str(policy.get_config()), *given


def is_traced(x: Any) -> bool:
    """Whether `x` stands for an array in a program that JAX is making.

    Outside of one each call of `jax.lax.scan` would be compiled anew.
    """
    import jax

    return isinstance(x, jax.core.Tracer)


def scan(
    run: Callable[[int, Tensor], tuple[Tensor, Any, tuple[Tensor, ...]]],
    x: Tensor,
    blocks: Sequence[Block],
    stretch: Stretch,
) -> tuple[Tensor, list[Tensor]]:
    """`x, _, load = run(i, x)` for each block of a stretch in turn, of which few are traced.

    Args:
        run: calls block i; asked for the first period alone, with the weights of all in turn.
        x: (B, T, D).
        blocks: all of the stack.
        stretch: which of them.

    Returns:
        (B, T, D), and the loads (n, 2, E) of n blocks that have experts, each.
    """
    import jax

    start, period, _ = stretch
    numbers = range(start, start + period)
    members = [blocks[i : stretch.end : period] for i in numbers]

    def body(x: Tensor, stacked: list[list[Tensor]]) -> tuple[Tensor, tuple[list, list]]:
        after: list[Any] = []
        loads: list[Tensor] = []
        for i, values in zip(numbers, stacked, strict=True):
            mapping = list(zip(blocks[i].variables, values, strict=True))
            with keras.StatelessScope(mapping) as scope:
                x, _, load = run(i, x)
            loads += load
            after.append([scope.get_current_value(seed) for seed in _seeds(blocks[i])])
        return x, (after, loads)

    x, (after, loads) = jax.lax.scan(body, x, [_stacked(alike) for alike in members])
    for alike, states in zip(members, after, strict=True):
        for i, block in enumerate(alike):
            for seed, state in zip(_seeds(block), states, strict=True):
                seed.assign(state[i])
    return x, loads


def _seeds(block: Block) -> list[keras.Variable]:
    """State of the random numbers that a block draws, as many in blocks that are alike."""
    weights = {id(weight) for weight in block.weights}
    return [variable for variable in block.variables if id(variable) not in weights]


def _stacked(blocks: Sequence[Block]) -> list[Tensor]:
    """Each variable of blocks that are alike, (times, ...), a device holding its own part."""
    with AutocastScope(None):  # the weights are kept, not copies in the compute dtype
        return [
            layout.stacked([v.value for v in alike], alike[0])
            for alike in zip(*(block.variables for block in blocks), strict=True)
        ]
