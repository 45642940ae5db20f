"""The Transformer block: the order of sublayers, norms and residuals.

Leaves embeddings, positions and masks to `keras_encdec.layers.stack`.
"""

import keras

from keras_encdec.layers.attention import Attention
from keras_encdec.layers.feedforward import GatedFeedForward
from keras_encdec.layers.norm import RMSNorm


class Block(keras.layers.Layer):
    """Self-attention, cross-attention where there is a context, feed-forward.

    Each sublayer adds `post_norm(f(pre_norm(x)))` to its input, or `f(pre_norm(x))`
    in a family without post norms. The context comes in normalised and is not
    normalised again (gemma/research/t5gemma/modules.py).

    Args:
        spec: `StackSpec` of the stack.
        cross_attention: `AttentionSpec` of the cross-attention, or None.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, spec, cross_attention=None, **kwargs):
        super().__init__(**kwargs)
        self.spec = spec
        self.attention = Attention(spec.attention, dtype=self.dtype_policy, name="attention")
        self.cross_attention = cross_attention and Attention(
            cross_attention, dtype=self.dtype_policy, name="cross_attention"
        )
        self.feedforward = GatedFeedForward(
            spec.feedforward_dim, dtype=self.dtype_policy, name="feedforward"
        )
        self.dropout = keras.layers.Dropout(spec.dropout, dtype=self.dtype_policy)
        self.norms = {}

    def build(self, input_shape, context_shape=None):
        self._build_sublayer(self.attention, input_shape)
        if self.cross_attention is not None:
            self._build_sublayer(self.cross_attention, input_shape, context_shape)
        self._build_sublayer(self.feedforward, input_shape)

    def _build_sublayer(self, sublayer, input_shape, *context_shape):
        for side in ("pre", "post") if self.spec.post_norm else ("pre",):
            name = f"{side}_{sublayer.name}_norm"
            norm = RMSNorm(self.spec.norm_epsilon, dtype=self.dtype_policy, name=name)
            norm.build(input_shape)
            self.norms[name] = norm
        sublayer.build(input_shape, *context_shape)

    def call(
        self,
        x,
        visible,
        positions,
        context=None,
        context_visible=None,
        cache=None,
        index=None,
        path="auto",
        training=None,
    ):
        """Applies the block.

        Args:
            x: (B, T, D).
            visible: `masks.Visible` of the self-attention.
            positions: (B, T) int.
            context: what the cross-attention reads: (B, S', D') states, or their
                `(keys, values)` as they are kept, each (B, K, S', H).
            context_visible: `masks.Visible` of the cross-attention.
            cache: of the self-attention, where `x` is a single token.
            index: int, the number of that token.
            path: of `keras_encdec.layers.attention.attend`.
            training: whether dropout is on.

        Returns:
            `(x, (keys, values))`, those of the self-attention: the cache, or of `x`.
        """
        y, keys_values = self.attention(
            self._pre("attention", x), visible, positions, cache=cache, index=index, path=path
        )
        x = self._add("attention", x, y, training)
        if self.cross_attention is not None:
            y, _ = self.cross_attention(
                self._pre("cross_attention", x), context_visible, context=context, path=path
            )
            x = self._add("cross_attention", x, y, training)
        y = self.feedforward(self._pre("feedforward", x))
        return self._add("feedforward", x, y, training), keys_values

    def _pre(self, name, x):
        return self.norms[f"pre_{name}_norm"](x)

    def _add(self, name, x, y, training):
        if self.spec.post_norm:
            y = self.norms[f"post_{name}_norm"](y)
        return x + self.dropout(y, training=training)
