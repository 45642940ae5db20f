"""The two stacks: tokens in, states out.

Knows embeddings, depth and the last norm. One forward serves training, scoring and
generation: a decoder that is given caches computes the same numbers step by step.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.layers import cache as caches
from keras_encdec.layers import depth, masks, remat
from keras_encdec.layers.attention import Part
from keras_encdec.layers.block import Block
from keras_encdec.layers.cache import KeysValues
from keras_encdec.layers.choice import check_path
from keras_encdec.layers.hidden import states_to_read
from keras_encdec.layers.masks import KeyRange, Limits
from keras_encdec.layers.norm import RMSNorm
from keras_encdec.layers.rotary import InTexts, Positions
from keras_encdec.layers.rows import project
from keras_encdec.spec import (
    CrossAttentionSpec,
    InputShape,
    StackSpec,
    Tensor,
    Window,
    cross_attention_from_json,
    stack_from_json,
)


class Context(NamedTuple):
    """What cross-attention reads at each step of generation, computed once.

    Args:
        keys_values: for each layer `(keys, values)`, each (B, K, S, H); () for one that sees
            nothing of it.
        visible: the keys that there are in each row.
    """

    keys_values: list[tuple[Tensor, ...]]
    visible: KeyRange


class Stack(keras.layers.Layer):
    """Embedding, blocks and final norm, shared by `Encoder` and `Decoder`.

    Three settings of the run, which change memory and speed and no number, are the user's:
    `attention`, one of `keras_encdec.layers.choice.PATHS`, by default `"auto"`;
    `remat`, whether each block is computed again in the backward pass; and `scan`, whether
    blocks that are alike are compiled once (`keras_encdec.layers.depth`). What this stack
    cannot do on this backend is a ValueError.

    Args:
        spec: `StackSpec`, or its fields as a dict.
        cross_attention: `CrossAttentionSpec` of a decoder, which writes logits; or None.
        embedding: that of another stack to share, or None.
        causal: whether a token sees none after it.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(
        self,
        spec: StackSpec | dict[str, Any],
        cross_attention: CrossAttentionSpec | None = None,
        embedding: keras.layers.ReversibleEmbedding | None = None,
        causal: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.causal, self._writes = causal, cross_attention is not None
        self.spec = spec = stack_from_json(spec)
        self._attention, self._remat, self._scan = "auto", False, False
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
    def attention(self) -> str:
        return self._attention

    @attention.setter
    def attention(self, path: str) -> None:
        self.check_attention(path)
        self._attention = path

    def check_attention(self, path: str) -> None:
        """Raises ValueError if `attention` cannot be `path` in this stack."""
        merged = any(block.merged for block in self.blocks)
        check_path(path, self.spec.attention.logit_soft_cap, merged)

    @property
    def remat(self) -> bool:
        return self._remat

    @remat.setter
    def remat(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"Expected remat to be True or False. Received: {value!r}")
        self._remat = value

    @property
    def scan(self) -> bool:
        return self._scan

    @scan.setter
    def scan(self, value: bool) -> None:
        depth.check(value)
        self._scan = value

    def _build_stack(self, context_shape: InputShape | None = None) -> None:
        if not self.embedding.built:
            self.embedding.build()
        shape = (None, None, self.spec.width)
        for block in self.blocks:
            block.build(shape, context_shape)
        self.final_norm.build(shape)

    def embed(self, token_ids: Tensor, training: bool | None = None) -> Tensor:
        """(B, T) token ids to (B, T, D)."""
        x = layout.rows_apart(self.embedding(token_ids))
        if self.spec.embedding_scale != 1:
            x = x * ops.cast(self.spec.embedding_scale, x.dtype)
        return self.dropout(x, training=training)

    def _run(
        self,
        token_ids: Tensor,
        positions: Positions,
        visible: Mapping[Window, KeyRange],
        context: Sequence[Any] | None = None,
        context_visible: KeyRange | None = None,
        cache: Sequence[Part] | None = None,
        training: bool | None = None,
        each: Callable[[Tensor, KeysValues | None], None] | None = None,
    ) -> Tensor:
        """Tokens to (B, T, D) normalised states, block after block, of which none is kept.

        Args:
            token_ids: (B, T) int.
            positions: (B, T) int, or `rotary.InTexts`.
            visible: of the self-attention, by window.
            context: for each block, what its cross-attention reads; None in an encoder.
            context_visible: of the cross-attention.
            cache: for each block, of the tokens before these.
            training: whether dropout is on.
            each: called with each block's input and its self-attention's keys and values;
                under `remat` these are None.
        """
        x = self.embed(token_ids, training)

        def run(i: int, x: Tensor) -> tuple[Tensor, KeysValues | None]:
            tensors = {"x": x, "visible": visible[self.spec.windows[i]], "positions": positions}
            if context is not None:
                tensors |= {"context": context[i], "context_visible": context_visible}
            kept = {} if cache is None else {"cache": cache[i]}
            limits = Limits(self.causal, self.spec.windows[i])
            return self._run_block(self.blocks[i], tensors, limits, training, **kept)

        scanned = self.scan and each is None and depth.is_traced(x)
        for stretch in depth.stretches_of(self.blocks, self.spec.windows, scanned):
            if stretch.times > 1:
                x = depth.scan(run, x, self.blocks, stretch)
                continue
            y, keys_values = run(stretch.start, x)
            if each is not None:
                each(x, keys_values)
            x = y
        states = self.dropout(self.final_norm(x), training=training)
        return states_to_read(states, self.spec) if self._writes else states

    def _run_block(
        self,
        block: Block,
        tensors: Mapping[str, Any],
        limits: Limits,
        training: bool | None,
        **kept: Any,
    ) -> tuple[Tensor, KeysValues | None]:
        """A block by the settings; in generation there is no backward pass to remat for."""
        static = {"path": self.attention, "limits": limits, "training": training}
        generates = isinstance(tensors.get("context"), tuple)
        if self.remat and not generates:
            return remat.call(block, tensors, **static), None
        return block(**tensors, **kept, **static)

    def _places(self, padding_mask: Tensor) -> tuple[Positions, dict[Window, KeyRange]]:
        """Positions of whole rows of tokens, and which of them each sees, by window."""
        visible = {
            window: masks.self_attention(padding_mask, causal=self.causal, window=window)
            for window in set(self.spec.windows)
        }
        positions = masks.positions(padding_mask)
        if self.spec.longest_written is not None:
            positions = InTexts(positions, masks.text_lengths(padding_mask))
        return positions, visible

    def get_config(self) -> dict[str, Any]:
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

    def __init__(
        self, spec: StackSpec | dict[str, Any], causal: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(spec, causal=causal, **kwargs)

    def build(self, *input_shapes: InputShape) -> None:
        self._build_stack()

    def call(self, token_ids: Tensor, padding_mask: Tensor, training: bool | None = None) -> Tensor:
        """(B, S) token ids and mask to (B, S, D) normalised states.

        With several examples in a row, the mask holds each one's number.
        """
        return self._run(token_ids, *self._places(padding_mask), training=training)

    def all_states(
        self, token_ids: Tensor, padding_mask: Tensor, training: bool | None = None
    ) -> list[Tensor]:
        """The input of each block, then the normalised output: L + 1 of (B, S, D)."""
        inputs: list[Tensor] = []
        places = self._places(padding_mask)
        output = self._run(
            token_ids, *places, training=training, each=lambda x, _: inputs.append(x)
        )
        return [*inputs, output]

    def compute_output_spec(
        self, token_ids: Tensor, padding_mask: Tensor, training: bool | None = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor((*token_ids.shape, self.spec.width), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "causal": self.causal}


@keras.saving.register_keras_serializable(package="keras_encdec")
class Decoder(Stack):
    """Writes a target token by token, looking at the encoder's states.

    A third setting of the run, `output_screen`, changes the time that greedy generation takes and
    its memory, and no token; see `EncDecBackbone`.

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

    def __init__(
        self,
        spec: StackSpec | dict[str, Any],
        context_width: int,
        cross_attention: CrossAttentionSpec | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        cross_attention = cross_attention_from_json(cross_attention)
        super().__init__(spec, cross_attention, **kwargs)
        self.cross_attention = cross_attention
        self.context_width = context_width
        self._output_screen: bool | str = "auto"

    @property
    def output_screen(self) -> bool | str:
        return self._output_screen

    @output_screen.setter
    def output_screen(self, value: bool | str) -> None:
        if not isinstance(value, bool) and value != "auto":
            raise ValueError(f"Expected output_screen as 'auto' or a bool. Received: {value!r}.")
        if value is True and keras.backend.backend() != "jax":
            raise ValueError(
                "Expected output_screen as 'auto' or False on the backend "
                f"{keras.backend.backend()!r}, as only JAX has a screen. Received: True."
            )
        self._output_screen = value

    def build(self, *input_shapes: InputShape) -> None:
        self._build_stack((None, None, self.context_width))

    def call(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        encoder_output: Tensor,
        encoder_padding_mask: Tensor,
        training: bool | None = None,
    ) -> Tensor:
        """Runs over whole targets, as in training and scoring.

        Args:
            token_ids: (B, T) int; or (B * n, T), n targets one after another of each input.
            padding_mask: (B, T), nonzero where there is a token; with several examples
                in a row, each one's number, the same as in `encoder_padding_mask`. Where
                targets share an input, it has one example.
            encoder_output: (B, S, D') states of the encoder.
            encoder_padding_mask: (B, S).
            training: whether dropout is on.

        Returns:
            (B, T, D) normalised states; or (B * n, T, D).
        """
        shared = token_ids.shape[0] != encoder_output.shape[0]
        read = masks.cross_attention(encoder_padding_mask, None if shared else padding_mask)
        return self._run(
            token_ids,
            *self._places(padding_mask),
            [encoder_output] * len(self.blocks),
            read,
            training=training,
        )

    def context(self, encoder_output: Tensor, encoder_padding_mask: Tensor) -> Context:
        """What the cross-attention reads in each step, computed once.

        Args:
            encoder_output: (B, S, D') states of the encoder.
            encoder_padding_mask: (B, S).
        """
        layers = [block.read(encoder_output) for block in self.blocks]
        return Context(layers, masks.cross_attention(encoder_padding_mask))

    def prefill(
        self, token_ids: Tensor, count: Tensor, context: Context, length: int
    ) -> tuple[Tensor, list[KeysValues]]:
        """Runs over the tokens that a target begins with.

        Args:
            token_ids: (B, P) int; what is not among the first `count` is not kept.
            count: int or (B,).
            context: from `context`.
            length: tokens that the caches get room for.

        Returns:
            `((B, P, D) normalised states, caches)`.
        """
        every_key = ops.ones((1, ops.shape(token_ids)[1]), "bool")
        layers: list[Any] = []
        states = self._run(
            token_ids,
            masks.positions(every_key),
            self._places(every_key)[1],
            *context,
            each=lambda _, keys_values: layers.append(keys_values),
        )
        sizes = [caches.room(length, window) for window in self.spec.windows]
        filled = [caches.fill(kv, count, size) for kv, size in zip(layers, sizes, strict=True)]
        return states, filled

    def step(
        self, token_ids: Tensor, index: Tensor, cache: Sequence[KeysValues], context: Context
    ) -> tuple[Tensor, list[KeysValues]]:
        """Runs over the next tokens of each row; `keep` puts them into the cache.

        Args:
            token_ids: (B * n, T) int; n rows one after another share a row of the context.
            index: int or (B * n,), how many tokens stand before.
            cache: from `prefill`, `empty_cache` or `keep`.
            context: from `context`, of B rows.

        Returns:
            `((B * n, T, D) normalised states, keys and values of these tokens)`.
        """
        index, count = ops.cast(index, "int32"), token_ids.shape[1]
        positions = ops.reshape(index, (-1, 1)) + ops.arange(count, dtype="int32")
        _, own = self._places(ops.ones((1, count), "int32"))
        before = [
            (*layer, caches.visible(index, count, layer[0].shape[2], window))
            for window, layer in zip(self.spec.windows, cache, strict=True)
        ]
        new: list[Any] = []
        states = self._run(
            token_ids,
            positions,
            own,
            *context,
            cache=before,
            each=lambda _, keys_values: new.append(keys_values),
        )
        return states, new

    def keep(
        self,
        cache: Sequence[KeysValues],
        new: Sequence[KeysValues],
        index: Tensor,
        count: Tensor,
    ) -> list[KeysValues]:
        """The cache with the first `count` (B * n,) of the tokens of a `step` from `index` on."""
        layers = zip(cache, new, strict=True)
        return [caches.write(old, own, index, count) for old, own in layers]

    def logits(self, states: Tensor) -> Tensor:
        """(B, T, D) states to (B, T, V) logits, soft capped."""
        return project(self.embedding, states, reverse=True)

    def empty_cache(self, batch_size: int, length: int) -> list[KeysValues]:
        """Caches of no tokens yet, with room for `length`."""
        return caches.empty(self.spec, batch_size, length, self.compute_dtype)

    def compute_output_spec(
        self, token_ids: Tensor, *args: Any, **kwargs: Any
    ) -> keras.KerasTensor:
        return keras.KerasTensor((*token_ids.shape, self.spec.width), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        own = {
            "context_width": self.context_width,
            "cross_attention": dataclasses.asdict(self.cross_attention),
        }
        return {**super().get_config(), **own}
