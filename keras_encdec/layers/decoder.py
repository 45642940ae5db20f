"""The decoder: a target at once, or token by token with what is kept of those before.

Knows caches and what cross-attention reads; given caches it computes the same numbers step by
step. Leaves embeddings and depth to `keras_encdec.layers.stack`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_encdec.layers import cache as caches
from keras_encdec.layers import masks
from keras_encdec.layers.cache import Kept, KeysValues
from keras_encdec.layers.masks import KeyRange
from keras_encdec.layers.rotary import Positions
from keras_encdec.layers.rows import project
from keras_encdec.layers.stack import Stack
from keras_encdec.spec import (
    CrossAttentionSpec,
    InputShape,
    StackSpec,
    Tensor,
    cross_attention_from_json,
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
        positions, visible = self._places(padding_mask)
        return self._run(
            token_ids,
            self._behind(read, positions, token_ids.shape[0]),
            visible,
            [encoder_output] * len(self.blocks),
            read,
            self._context_positions(encoder_padding_mask),
            training=training,
        )

    def _context_positions(self, encoder_padding_mask: Tensor) -> Tensor | None:
        """(B, S) of an input's tokens; None where its keys do not turn."""
        continuous = self.cross_attention.rotary == "continuous"
        return masks.positions(encoder_padding_mask) if continuous else None

    def _behind(self, read: KeyRange, positions: Positions, rows: int | None) -> Positions:
        """Positions of targets: where they are continuous, behind those of their inputs.

        Self-attention, which knows differences alone, has the same numbers by both.

        Args:
            read: what cross-attention sees, of B rows.
            positions: (B * n or 1, T) from 0 in each target.
            rows: B * n, of targets, or None where it is not known.
        """
        if self.cross_attention.rotary is None:
            return positions
        assert read.segments is not None
        inputs = masks.key_counts(read.segments)
        each = rows // inputs.shape[0] if rows and inputs.shape[0] else 1
        return positions + ops.repeat(inputs, each, axis=0)

    def context(self, encoder_output: Tensor, encoder_padding_mask: Tensor) -> Context:
        """What the cross-attention reads in each step, computed once.

        Args:
            encoder_output: (B, S, D') states of the encoder.
            encoder_padding_mask: (B, S).
        """
        positions = self._context_positions(encoder_padding_mask)
        layers = [block.read(encoder_output, positions) for block in self.blocks]
        return Context(layers, masks.cross_attention(encoder_padding_mask))

    def prefill(
        self, token_ids: Tensor, count: Tensor, context: Context, length: int
    ) -> tuple[Tensor, list[Kept]]:
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
        layers: list[KeysValues] = []
        states = self._run(
            token_ids,
            self._behind(context.visible, masks.positions(every_key), token_ids.shape[0]),
            self._visible(every_key),
            *context,
            each=lambda _, keys_values: layers.append(keys_values),
        )
        filled: list[Kept] = []
        for i, window in enumerate(self.spec.windows):
            own = self.blocks[i].lender is None
            filled.append(caches.fill(layers[i], count, caches.room(length, window)) if own else ())
        return states, filled

    def step(
        self, token_ids: Tensor, index: Tensor, cache: Sequence[Kept], context: Context
    ) -> tuple[Tensor, list[Kept]]:
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
        positions = self._behind(context.visible, positions, token_ids.shape[0])
        own = self._visible(ops.ones((1, count), "int32"))
        before: list[Any] = []
        for i, window in enumerate(self.spec.windows):
            lender = self.blocks[i].lender
            keys, values = cache[i if lender is None else lender]
            seen = caches.visible(index, count, keys.shape[2], window)
            before.append((keys, values, seen))
        new: list[KeysValues] = []
        states = self._run(
            token_ids,
            positions,
            own,
            *context,
            cache=before,
            each=lambda _, keys_values: new.append(keys_values),
        )
        return states, [kv if own else () for kv, own in zip(new, cache, strict=True)]

    def keep(
        self,
        cache: Sequence[Kept],
        new: Sequence[Kept],
        index: Tensor,
        count: Tensor,
    ) -> list[Kept]:
        """The cache with the first `count` (B * n,) of the tokens of a `step` from `index` on."""
        layers = zip(cache, new, strict=True)
        return [caches.write(old, own, index, count) if old else () for old, own in layers]

    def logits(self, states: Tensor) -> Tensor:
        """(B, T, D) states to (B, T, V) logits, soft capped."""
        return project(self.embedding, states, reverse=True)

    def empty_cache(self, batch_size: int, length: int) -> list[Kept]:
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
