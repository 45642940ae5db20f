"""How many FLOPs XLA counts in the compiled forward pass of a model, beside our own sums.

XLA also counts what `keras_encdec.evaluation.flops` leaves out, an operation for each number and
step of scales, soft caps, masks, softmax, norms, rotation, activations and residual sums (but not
exponentials and the like, which it counts apart). Beside attention that is a share in the inverse
of the head width, beside kernels in that of D: 0.2% more than our sum for Gemma 2 9B at 8,192
tokens, 1.4% for the smallest release, 1 to 2% for the embedded models (LOG.md). It counts the body
of a loop once, so attention is taken by the plain path, which has every pair of a query and a
key: XLA's count is to be held against `"dense"`.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_encdec import check
from keras_encdec.conversion.execute import without_values
from keras_encdec.evaluation.flops import Spec
from keras_encdec.layers.encoder import Encoder
from keras_encdec.layers.hidden import states_to_read
from keras_encdec.models import EncDecBackbone
from keras_encdec.spec import PairSpec, StackSpec, Tensor

Forward = Callable[..., Tensor]


def compiled_flops(spec: Spec, source_length: int, target_length: int) -> int:
    """XLA's count of the same forward pass as `keras_encdec.evaluation.flops.forward_flops`.

    The model is compiled and never run: its weights have no values and take no memory.

    Args:
        spec: `PairSpec`, or the `StackSpec` of a decoder-only model.
        source_length: S, tokens of the input.
        target_length: T, tokens of the target.

    Returns:
        Operations of one row, by `cost_analysis` of the compiled program for this machine.

    Raises:
        ValueError: on another backend than JAX, or if a length is no whole number of at least 1.
    """
    program = traced(spec, source_length, target_length).lower().compile()
    return int(program.cost_analysis()["flops"])


def traced(spec: Spec, source_length: int, target_length: int) -> Any:
    """The forward pass as a `jax.stages.Traced`, from token ids to logits; see `compiled_flops`."""
    source = check.whole("source_length", source_length)
    target = check.whole("target_length", target_length)
    if keras.backend.backend() != "jax":
        raise ValueError(
            "Expected the backend 'jax', whose compiler counts. Received: "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND=jax, or leave XLA's count out."
        )
    import jax

    if isinstance(spec, StackSpec):
        lengths: tuple[int, ...] = (source + target,)
        model, forward = _decoder_only(spec, source, target)
    else:
        lengths = source, target
        model, forward = _pair(spec, source, target)

    def of_values(values: list[Tensor], inputs: Any) -> Tensor:
        with keras.StatelessScope(list(zip(model.weights, values, strict=True))):
            return forward(inputs)

    def abstract(shape: tuple[int, ...], dtype: str) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    weights = [abstract(tuple(v.shape), v.dtype) for v in model.weights]
    tokens = [abstract((1, length), "int32") for length in lengths]
    return jax.jit(of_values).trace(weights, tokens)


def _decoder_only(spec: StackSpec, source: int, target: int) -> tuple[Any, Forward]:
    """The stack as its source model has it: causal, with logits of the target's tokens."""

    def make() -> Encoder:
        stack = Encoder(spec, causal=True)
        stack.build()
        return stack

    stack = without_values(make)
    stack.attention = "plain"

    def forward(tokens: Any) -> Tensor:
        states = stack(tokens[0], np.ones((1, source + target), "int32"))
        states = states_to_read(states, spec)
        return stack.embedding(states[:, source:], reverse=True)

    return stack, forward


def _pair(spec: PairSpec, source: int, target: int) -> tuple[Any, Forward]:
    backbone = without_values(lambda: EncDecBackbone.of(spec))
    backbone.attention = "plain"

    def forward(tokens: Any) -> Tensor:
        masks = [np.ones((1, length), "int32") for length in (source, target)]
        states = backbone.encoder(tokens[0], masks[0])
        return backbone.decoder.logits(backbone.decoder(tokens[1], masks[1], states, masks[0]))

    return backbone, forward
