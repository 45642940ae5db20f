"""Memory for time: what a block computes is computed again in the backward pass, not kept.

Knows how the state of a block's random numbers goes in and comes out, so that both passes
draw the same. Leaves which blocks to `keras_encdec.layers.stack`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_encdec.layers.block import Block
from keras_encdec.layers.cache import KeysValues
from keras_encdec.private import AutocastScope
from keras_encdec.spec import Tensor


def call(
    block: Block, tensors: Mapping[str, Any], **static: Any
) -> tuple[Tensor, KeysValues, tuple[Tensor, ...]]:
    """`block(**tensors, **static)`, of which the backward pass needs `tensors` alone.

    Args:
        block: a built one.
        tensors: its arguments that are tensors, nested too; no None and no cache.
        **static: all others.

    Returns:
        As the block does.
    """
    variables, weights = block.variables, {id(weight) for weight in block.weights}
    seeds = [variable for variable in variables if id(variable) not in weights]

    def run(values: Sequence[Tensor], tensors: Mapping[str, Any]) -> tuple[Any, list[Tensor]]:
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(mapping) as scope:
            output = block(**tensors, **static)
        return output, [scope.get_current_value(seed) for seed in seeds]

    with AutocastScope(None):  # the weights are kept, not copies in the compute dtype
        values = [variable.value for variable in variables]
    output, state = keras.remat(run)(values, tensors)
    for seed, value in zip(seeds, state, strict=True):
        seed.assign(value)
    return output
