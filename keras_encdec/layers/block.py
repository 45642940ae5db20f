"""The Transformer block: the order of sublayers, norms and residuals.

Leaves embeddings, positions and masks to `keras_encdec.layers.stack`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec.layers import cache as caches
from keras_encdec.layers import masks
from keras_encdec.layers.attention import Attention, Part
from keras_encdec.layers.cache import KeysValues
from keras_encdec.layers.experts import MixtureOfExperts
from keras_encdec.layers.feedforward import GatedFeedForward
from keras_encdec.layers.masks import KeyRange, Limits
from keras_encdec.layers.norm import RMSNorm
from keras_encdec.layers.per_layer import PerLayerInput
from keras_encdec.layers.rotary import Positions
from keras_encdec.spec import (
    CrossAttentionSpec,
    InputShape,
    StackSpec,
    Tensor,
)


class Block(keras.layers.Layer):
    """Self-attention, cross-attention where there is a context, feed-forward or experts.

    Each sublayer adds `post_norm(f(pre_norm(x)))` to its input, times the spec's
    `residual_multiplier`; a family may lack one of the norms. The context comes in
    normalised and is not normalised again (gemma/research/t5gemma/modules.py).

    Args:
        spec: `StackSpec` of the stack.
        layer: which of its layers.
        cross_attention: `CrossAttentionSpec` where the block sees a context, or None.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(
        self,
        spec: StackSpec,
        layer: int,
        cross_attention: CrossAttentionSpec | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec, self.layer, self.experts = spec, layer, spec.experts_of(layer)
        attention, rotary = spec.attentions[layer], spec.rotaries[layer]
        policy = {"dtype": self.dtype_policy}
        self.lender = spec.lender_of(layer)
        borrows = self.lender is not None
        self.attention = Attention(attention, rotary, borrows, name="attention", **policy)
        self.merged = cross_attention is not None and cross_attention.merged
        self.cross_attention = self.gate = None
        if cross_attention is not None and not self.merged:
            turns = rotary if cross_attention.rotary else None
            self.cross_attention = Attention(attention, turns, name="cross_attention", **policy)
            if cross_attention.gate:
                self.gate = Gate(name="cross_attention_gate", **policy)
        own = {"activation": spec.activation, "name": "feedforward", **policy}
        self.feedforward: keras.layers.Layer = (
            GatedFeedForward(spec.feedforward_dims[layer], **own)
            if self.experts is None
            else MixtureOfExperts(self.experts, norm=spec.norm, **own)
        )
        self.per_layer = self.scalar = None
        if spec.per_layer_dim is not None:
            self.per_layer = PerLayerInput(spec, name="per_layer", **policy)
        if spec.layer_scalar:
            self.scalar = Scalar(name="layer_scalar", **policy)
        self.dropout = keras.layers.Dropout(spec.dropout, **policy)
        self.norms: dict[str, RMSNorm] = {}

    def build(self, input_shape: InputShape, context_shape: InputShape | None = None) -> None:
        self._build_sublayer(self.attention, input_shape)
        if self.cross_attention is not None:
            self._build_sublayer(self.cross_attention, input_shape, context_shape)
        if self.gate is not None:
            self.gate.build(input_shape)
        self._build_sublayer(self.feedforward, input_shape)
        for own in (self.per_layer, self.scalar):
            if own is not None:
                own.build(input_shape)

    def _build_sublayer(
        self, sublayer: keras.layers.Layer, input_shape: InputShape, *context_shape: Any
    ) -> None:
        for side in self.spec.norm_sides:
            name = f"{side}_{sublayer.name}_norm"
            norm = RMSNorm(self.spec.norm, dtype=self.dtype_policy, name=name)
            norm.build(input_shape)
            self.norms[name] = norm
        sublayer.build(input_shape, *context_shape)

    def call(
        self,
        x: Tensor,
        visible: KeyRange,
        positions: Positions,
        context: Tensor | tuple[Tensor, ...] | None = None,
        context_visible: KeyRange | None = None,
        context_positions: Positions | None = None,
        cache: Part | None = None,
        borrowed: KeysValues | None = None,
        part: Tensor | None = None,
        limits: Limits | None = None,
        path: str = "auto",
        training: bool | None = None,
    ) -> tuple[Tensor, KeysValues, tuple[Tensor, ...]]:
        """Applies the block.

        Args:
            x: (B, T, D).
            visible: of the self-attention.
            positions: (B, T) int, or `rotary.InTexts`.
            context: what the cross-attention reads: (B, S', D') states, or what `read`
                makes of them, of one row for every n of `x`.
            context_visible: of the cross-attention.
            context_positions: (B, S') int of states, where their keys turn.
            cache: of the self-attention, where there are tokens before `x`.
            borrowed: keys and values that another block returned, where this has none.
            part: (B, T, P), the block's own of a `PerLayerEmbedding`, where there is one.
            limits: of the self-attention, that `visible` was made with; None if not known.
            path: of `keras_encdec.layers.attention.attend`.
            training: whether dropout is on.

        Returns:
            `(x, (keys, values), load)`, those of the self-attention, and the load of the
            experts in a tuple, which is empty where there are none.
        """
        also: Sequence[Part] = ()
        if self.merged:
            assert context_visible is not None
            also = [self._merged(x, context, context_visible, context_positions)]
        own = {"also": also, "cache": cache, "borrowed": borrowed, "limits": limits, "path": path}
        y, keys_values = self.attention(self._pre("attention", x), visible, positions, **own)
        x = self._add("attention", x, y, training)
        if self.cross_attention is not None:
            read = {"context": context, "context_positions": context_positions, "path": path}
            y = self._pre("cross_attention", x)
            y, _ = self.cross_attention(y, context_visible, positions, limits=Limits(), **read)
            x = self._add("cross_attention", x, y, training, self.gate)
        y, load = self._pre("feedforward", x), ()
        if self.experts is None:
            y = self.feedforward(y)
        else:
            y, *load = self.feedforward(y, masks.sees_any(visible), x)
        x = self._add("feedforward", x, y, training)
        if self.per_layer is not None:
            x = x + self.dropout(self.per_layer(x, part), training=training)
        return x if self.scalar is None else self.scalar(x), keys_values, tuple(load)

    def read(self, context: Tensor, positions: Positions | None = None) -> tuple[Tensor, ...]:
        """Keys and values of a context (B, S', D') in a cache's order; () if none is seen.

        Args:
            context: states.
            positions: (B, S') int of these, where their keys turn.
        """
        attention = self.attention if self.merged else self.cross_attention
        if attention is None:
            return ()
        return caches.keep(attention.keys_and_values(context, positions))

    def _merged(
        self,
        x: Tensor,
        context: Tensor | tuple[Tensor, ...],
        visible: KeyRange,
        positions: Positions | None,
    ) -> Part:
        """What self-attention sees of the context, with a row for each of `x`."""
        keys, values = context if isinstance(context, tuple) else self.read(context, positions)
        each = x.shape[0] // keys.shape[0] if x.shape[0] and keys.shape[0] else 1
        if each > 1:  # samples or beams share a row
            keys, values, start, end = (
                ops.repeat(y, each if y.shape[0] > 1 else 1, axis=0)
                for y in (keys, values, visible.start, visible.end)
            )
            visible = KeyRange(start, end)
        return keys, values, visible

    def _pre(self, name: str, x: Tensor) -> Tensor:
        return self.norms[f"pre_{name}_norm"](x) if self.spec.pre_norm else x

    def _add(
        self, name: str, x: Tensor, y: Tensor, training: bool | None, gate: "Gate | None" = None
    ) -> Tensor:
        if self.spec.post_norm:
            y = self.norms[f"post_{name}_norm"](y)
        y = y if gate is None else gate(y)
        y = y if self.spec.residual_multiplier == 1 else y * self.spec.residual_multiplier
        return x + self.dropout(y, training=training)


class Scalar(keras.layers.Layer):
    """Times a number that does not train, as Gemma 4's does not."""

    def build(self, input_shape: InputShape) -> None:
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones", trainable=False)

    def call(self, x: Tensor) -> Tensor:
        return x * ops.cast(self.scale, x.dtype)


class Gate(keras.layers.Layer):
    """Times the tanh of a number that starts at 0."""

    def build(self, input_shape: InputShape) -> None:
        self.scale = self.add_weight(name="scale", shape=(), initializer="zeros")

    def call(self, x: Tensor) -> Tensor:
        return x * ops.cast(ops.tanh(self.scale), x.dtype)
