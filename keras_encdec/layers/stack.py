"""The two stacks: tokens in, states out.

Knows embeddings, depth and the last norm. One forward serves training, scoring and
generation: a decoder that is given caches computes the same numbers step by step.
"""

import dataclasses
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.layers import cache as caches
from keras_encdec.layers import masks, remat
from keras_encdec.layers.attention import check_path
from keras_encdec.layers.block import Block
from keras_encdec.layers.norm import RMSNorm
from keras_encdec.spec import cross_attention_from_json, stack_from_json


class Context(NamedTuple):
    """What a decoder's cross-attention reads, while it writes.

    Args:
        keys_values: for each layer `(keys, values)`, each (B, K, S, H); () for one that sees
            nothing of it.
        visible: `masks.Visible`, the keys that there are in each row.
    """

    keys_values: list
    visible: Any


class Stack(keras.layers.Layer):
    """Embedding, blocks and final norm, shared by `Encoder` and `Decoder`.

    Two settings of the run, which change memory and speed and no number, can be set at any
    time: `attention`, the path of `keras_encdec.layers.attention.attend`, and `remat`,
    whether each block is computed again in the backward pass.

    Args:
        spec: `StackSpec`, or its fields as a dict.
        cross_attention: `CrossAttentionSpec` of a decoder, which writes logits; or None.
        embedding: that of another stack to share, or None.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, spec, cross_attention=None, embedding=None, **kwargs):
        super().__init__(**kwargs)
        self.spec = spec = stack_from_json(spec)
        self.attention, self.remat = "auto", False
        policy = {"dtype": self.dtype_policy}
        self.embedding = embedding or keras.layers.ReversibleEmbedding(
            spec.vocabulary_size,
            spec.width,
            tie_weights=spec.tied_output or cross_attention is None,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=spec.width**-0.5),
            logit_soft_cap=spec.final_logit_soft_cap,
            name="embedding",
            **policy,
        )
        sees = [cross_attention and cross_attention.is_in(i) for i in range(spec.num_layers)]
        self.blocks = [
            Block(spec, rotary, cross_attention if sees[i] else None, name=f"block_{i}", **policy)
            for i, rotary in enumerate(spec.rotaries)
        ]
        self.final_norm = RMSNorm(spec.norm, name="final_norm", **policy)
        self.dropout = keras.layers.Dropout(spec.dropout, **policy)

    @property
    def attention(self):
        return self._attention

    @attention.setter
    def attention(self, path):
        check_path(path)
        self._attention = path

    @property
    def remat(self):
        return self._remat

    @remat.setter
    def remat(self, value):
        if not isinstance(value, bool):
            raise ValueError(f"Expected remat to be True or False. Received: {value!r}")
        self._remat = value

    def _build_stack(self, context_shape=None):
        if not self.embedding.built:
            self.embedding.build()
        shape = (None, None, self.spec.width)
        for block in self.blocks:
            block.build(shape, context_shape)
        self.final_norm.build(shape)

    def embed(self, token_ids, training=None):
        """(B, T) token ids to (B, T, D)."""
        x = layout.rows_apart(self.embedding(token_ids))
        if self.spec.scale_embeddings:
            x = x * ops.cast(self.spec.width**0.5, x.dtype)
        return self.dropout(x, training=training)

    def _finish(self, x, training):
        return self.dropout(self.final_norm(x), training=training)

    def _run_block(self, block, *, training, cache=None, index=None, **tensors):
        """A block by the settings; `(x, (keys, values))`."""
        static = {"path": self.attention, "training": training}
        generates = isinstance(tensors.get("context"), tuple)  # and has no backward pass
        if self.remat and not generates:
            return remat.call(block, tensors, **static), None
        return block(**tensors, cache=cache, index=index, **static)

    def _visible_by_window(self, padding_mask, **kwargs):
        return {
            window: masks.self_attention(padding_mask, window=window, **kwargs)
            for window in set(self.spec.windows)
        }

    def get_config(self):
        return {**super().get_config(), "spec": dataclasses.asdict(self.spec)}


@keras.saving.register_keras_serializable(package="keras_encdec")
class Encoder(Stack):
    """Reads a whole input at once.

    Args:
        spec: `StackSpec`, or its fields as a dict.
        causal: hide what comes after each token, as the source model did.
        **kwargs: of `keras.layers.Layer`.

    Example:
        >>> encoder = pair.backbone.encoder
        >>> states = encoder(token_ids, padding_mask)  # (B, S, D)
    """

    def __init__(self, spec, causal=False, **kwargs):
        super().__init__(spec, **kwargs)
        self.causal = causal

    def build(self, *input_shapes):
        self._build_stack()

    def call(self, token_ids, padding_mask, training=None):
        """(B, S) token ids and mask to (B, S, D) normalised states.

        With several examples in a row, the mask holds each one's number.
        """
        return self.all_states(token_ids, padding_mask, training)[-1]

    def all_states(self, token_ids, padding_mask, training=None):
        """The input of each block, then the normalised output: L + 1 of (B, S, D)."""
        visible = self._visible_by_window(padding_mask, causal=self.causal)
        positions = masks.positions(padding_mask)
        states = [self.embed(token_ids, training)]
        for block, window in zip(self.blocks, self.spec.windows, strict=True):
            inputs = {"x": states[-1], "visible": visible[window], "positions": positions}
            states.append(self._run_block(block, **inputs, training=training)[0])
        return [*states[:-1], self._finish(states[-1], training)]

    def compute_output_spec(self, token_ids, padding_mask, training=None):
        return keras.KerasTensor((*token_ids.shape, self.spec.width), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "causal": self.causal}


@keras.saving.register_keras_serializable(package="keras_encdec")
class Decoder(Stack):
    """Writes a target token by token, looking at the encoder's states.

    Args:
        spec: `StackSpec`, or its fields as a dict.
        context_width: D of the encoder, whose states come in.
        cross_attention: `CrossAttentionSpec`, or its fields as a dict; None for the usual one.
        **kwargs: of `keras.layers.Layer`.

    Example:
        >>> decoder = pair.backbone.decoder
        >>> states = decoder(token_ids, padding_mask, encoder_output, encoder_padding_mask)
        >>> logits = decoder.logits(states)  # (B, T, V)
    """

    def __init__(self, spec, context_width, cross_attention=None, **kwargs):
        cross_attention = cross_attention_from_json(cross_attention)
        super().__init__(spec, cross_attention, **kwargs)
        self.cross_attention = cross_attention
        self.context_width = context_width

    def build(self, *input_shapes):
        self._build_stack((None, None, self.context_width))

    def call(self, token_ids, padding_mask, encoder_output, encoder_padding_mask, training=None):
        """Runs over whole targets, as in training and scoring.

        Args:
            token_ids: (B, T) int.
            padding_mask: (B, T), nonzero where there is a token; with several examples
                in a row, each one's number, the same as in `encoder_padding_mask`.
            encoder_output: (B, S, D') states of the encoder.
            encoder_padding_mask: (B, S).
            training: whether dropout is on.

        Returns:
            (B, T, D) normalised states.
        """
        x, _ = self._run(
            token_ids,
            masks.positions(padding_mask),
            self._visible_by_window(padding_mask, causal=True),
            [encoder_output] * len(self.blocks),
            masks.cross_attention(encoder_padding_mask, padding_mask),
            training=training,
        )
        return x

    def context(self, encoder_output, encoder_padding_mask):
        """What the cross-attention reads in each step, computed once.

        Args:
            encoder_output: (B, S, D') states of the encoder.
            encoder_padding_mask: (B, S).
        """
        layers = [block.read(encoder_output) for block in self.blocks]
        return Context(layers, masks.cross_attention(encoder_padding_mask))

    def prefill(self, token_ids, count, context, length):
        """Runs over the tokens that a target begins with.

        Args:
            token_ids: (B, P) int; what is not among the first `count` is not kept.
            count: int.
            context: from `context`.
            length: tokens that the caches get room for.

        Returns:
            `((B, P, D) normalised states, caches)`.
        """
        every_key = ops.ones((1, ops.shape(token_ids)[1]), "bool")
        states, layers = self._run(
            token_ids,
            masks.positions(every_key),
            self._visible_by_window(every_key, causal=True),
            *context,
        )
        sizes = [caches.room(length, window) for window in self.spec.windows]
        filled = [caches.fill(kv, count, size) for kv, size in zip(layers, sizes, strict=True)]
        return states, filled

    def step(self, token_ids, index, cache, context):
        """Runs over one more token of each row.

        Args:
            token_ids: (B * n, 1) int; n rows one after another share a row of the context.
            index: int, how many tokens stand before.
            cache: from `prefill`, `empty_cache` or `step`.
            context: from `context`, of B rows.

        Returns:
            `((B * n, 1, D) normalised states, cache)`.
        """
        index = ops.cast(index, "int32")
        visible = {
            window: caches.visible(index, layer[0].shape[2], window)
            for window, layer in zip(self.spec.windows, cache, strict=True)
        }
        positions = ops.reshape(index, (1, 1))
        keys_values, there = context
        return self._run(
            token_ids, positions, visible, keys_values, there, cache=cache, index=index
        )

    def _run(
        self,
        token_ids,
        positions,
        visible,
        context,
        context_visible,
        cache=None,
        index=None,
        training=None,
    ):
        x = self.embed(token_ids, training)
        old, new = cache or [None] * len(self.blocks), []
        for i, (block, window) in enumerate(zip(self.blocks, self.spec.windows, strict=True)):
            x, layer_cache = self._run_block(
                block,
                x=x,
                visible=visible[window],
                positions=positions,
                context=context[i],
                context_visible=context_visible,
                cache=old[i],
                index=index,
                training=training,
            )
            new.append(layer_cache)
        return self._finish(x, training), new

    def logits(self, states):
        """(B, T, D) states to (B, T, V) logits, soft capped."""
        return self.embedding(states, reverse=True)

    def empty_cache(self, batch_size, length):
        """Caches of no tokens yet, with room for `length`."""
        return caches.empty(self.spec, batch_size, length, self.compute_dtype)

    def compute_output_spec(self, token_ids, *args, **kwargs):
        return keras.KerasTensor((*token_ids.shape, self.spec.width), self.compute_dtype)

    def get_config(self):
        own = {
            "context_width": self.context_width,
            "cross_attention": dataclasses.asdict(self.cross_attention),
        }
        return {**super().get_config(), **own}
