"""What a model is: frozen dataclasses for a stack, a pair and an encoder.

Knows every number that shapes a model, and from them the name and shape of each weight: in
`stack`, `pair`, and for their parts in `sublayers`, `experts` and `vision`, whose names are here
too. Leaves what is computed to `keras_encdec.layers`, and what other projects call these fields to
`keras_encdec.families`. Standard library only.

Axes, everywhere in this package: B batch, S source length, T target length,
N query heads, K key/value heads, G = N / K, H head width, D model width,
F feed-forward width, V vocabulary, L layers.
"""

import math
from typing import Any

from keras_encdec.spec.experts import MoESpec
from keras_encdec.spec.pair import (
    EncoderAttention,
    EncoderSpec,
    PairSpec,
    pair_from_json,
    spec_from_json,
)
from keras_encdec.spec.stack import (
    Activation,
    StackSpec,
    Window,
    stack_from_json,
    window_lengths,
)
from keras_encdec.spec.sublayers import (
    AdaptorSpec,
    AttentionSpec,
    CrossAttentionSpec,
    NormSpec,
    RotarySpec,
    Shape,
    attention_from_json,
    cross_attention_from_json,
    rotary_from_json,
)
from keras_encdec.spec.vision import VisionSpec

__all__ = [
    "Activation",
    "AdaptorSpec",
    "AttentionSpec",
    "CrossAttentionSpec",
    "EncoderAttention",
    "EncoderSpec",
    "InputShape",
    "MoESpec",
    "NormSpec",
    "PairSpec",
    "RotarySpec",
    "Shape",
    "StackSpec",
    "Tensor",
    "VisionSpec",
    "Window",
    "attention_from_json",
    "count_parameters",
    "cross_attention_from_json",
    "pair_from_json",
    "rotary_from_json",
    "spec_from_json",
    "stack_from_json",
    "window_lengths",
]

Tensor = Any  # of the active backend: JAX, TensorFlow or PyTorch
InputShape = tuple[Any, ...]  # of a layer's input, None where a length is open


def count_parameters(weights: dict[str, Shape]) -> int:
    """The number of parameters in a name-to-shape mapping; nothing is allocated."""
    return sum(math.prod(shape) for shape in weights.values())
