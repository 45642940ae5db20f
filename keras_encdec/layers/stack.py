"""What both stacks are: tokens in, states out.

Knows embeddings, depth and the last norm. One forward serves training, scoring and
generation. Leaves what each side reads beside its tokens to `keras_encdec.layers.encoder` and
`keras_encdec.layers.decoder`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_encdec import layout
from keras_encdec.layers import depth, masks, remat
from keras_encdec.layers.attention import Part
from keras_encdec.layers.block import Block
from keras_encdec.layers.cache import KeysValues
from keras_encdec.layers.choice import check_path
from keras_encdec.layers.experts import busiest, unevenness
from keras_encdec.layers.hidden import states_to_read
from keras_encdec.layers.masks import KeyRange, Limits
from keras_encdec.layers.norm import RMSNorm
from keras_encdec.layers.per_layer import PerLayerEmbedding
from keras_encdec.layers.rotary import InTexts, Positions
from keras_encdec.layers.vision import Vision
from keras_encdec.spec import (
    CrossAttentionSpec,
    InputShape,
    StackSpec,
    Tensor,
    Window,
    stack_from_json,
)


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
        vision: of images among the tokens, shared by the stacks of a pair; or None.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(
        self,
        spec: StackSpec | dict[str, Any],
        cross_attention: CrossAttentionSpec | None = None,
        embedding: keras.layers.ReversibleEmbedding | None = None,
        causal: bool = True,
        vision: Vision | None = None,
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
            Block(spec, i, cross_attention if sees[i] else None, name=f"block_{i}", **policy)
            for i in range(spec.num_layers)
        ]
        self._lenders = {block.lender for block in self.blocks}
        self.per_layer = None
        if spec.per_layer_dim is not None:
            self.per_layer = PerLayerEmbedding(spec, name="per_layer", **policy)
        self._expert_load: Tensor | None = None
        self._ends: Sequence[int] = (spec.num_layers,)  # numbers behind blocks that are read out
        self.final_norm = RMSNorm(spec.norm, name="final_norm", **policy)
        self.dropout = keras.layers.Dropout(spec.dropout, **policy)
        self.vision = vision

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
        for attention in set(self.spec.attentions):
            check_path(path, attention.logit_soft_cap, merged, attention.sinks)

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
        if self.per_layer is not None:
            self.per_layer.build(shape)
        for block in self.blocks:
            block.build(shape, context_shape)
        self.final_norm.build(shape)

    def embed(
        self, token_ids: Tensor, training: bool | None = None, images: Tensor | None = None
    ) -> Tensor:
        """(B, T) token ids, and images as of `keras_encdec.layers.vision`, to (B, T, D)."""
        x = layout.rows_apart(self.embedding(token_ids))
        if self.spec.embedding_scale != 1:
            x = x * ops.cast(self.spec.embedding_scale, x.dtype)
        if self.vision is not None:
            x = self.vision(x, token_ids, images)
        return self.dropout(x, training=training)

    def _run(
        self,
        token_ids: Tensor,
        positions: Positions,
        visible: Mapping[Window, KeyRange],
        context: Sequence[Any] | None = None,
        context_visible: KeyRange | None = None,
        context_positions: Positions | None = None,
        cache: Sequence[Part] | None = None,
        training: bool | None = None,
        each: Callable[[Tensor, KeysValues], None] | None = None,
        images: Tensor | None = None,
    ) -> Tensor:
        """Tokens to (B, T, D) normalised states, block after block, of which none is kept.

        Args:
            token_ids: (B, T) int.
            positions: (B, T) int, or `rotary.InTexts`.
            visible: of the self-attention, by window.
            context: for each block, what its cross-attention reads; None in an encoder.
            context_visible: of the cross-attention.
            context_positions: (B, S) int of states that are read, where their keys turn.
            cache: for each block, of the tokens before these.
            training: whether dropout is on.
            each: called with each block's input and its self-attention's keys and values.
            images: as of `embed`.
        """
        x = self.embed(token_ids, training, images)
        parts = None if self.per_layer is None else self.per_layer(token_ids, x)
        of_blocks = {"context": context, "part": parts, "cache": cache}
        read = {"context_visible": context_visible, "context_positions": context_positions}
        all_blocks = {k: v for k, v in {"positions": positions, **read}.items() if v is not None}
        lent: dict[int, KeysValues] = {}

        def run(i: int, x: Tensor) -> tuple[Tensor, KeysValues, tuple[Tensor, ...]]:
            tensors = {"x": x, "visible": visible[self.spec.windows[i]], **all_blocks}
            tensors |= {name: own[i] for name, own in of_blocks.items() if own is not None}
            lender = self.blocks[i].lender
            if lender is not None:
                tensors["borrowed"] = lent[lender]
            limits = Limits(self.causal, self.spec.windows[i])
            return self._run_block(self.blocks[i], tensors, limits, training)

        loads, ends = [], []
        scanned = self.scan and each is None and depth.is_traced(x)
        for stretch in depth.stretches_of(self.blocks, self.spec.windows, scanned, self._ends):
            if stretch.times > 1:
                x, some = depth.scan(run, x, self.blocks, stretch)
                loads += some
            else:
                y, keys_values, load = run(stretch.start, x)
                loads += [one[None] for one in load]
                if stretch.start in self._lenders:
                    lent[stretch.start] = keys_values
                if each is not None:
                    each(x, keys_values)
                x = y
            ends += [x] if stretch.end in self._ends else []
        self._balance(loads, training)
        states = self.dropout(self._read_out(ends), training=training)
        return states_to_read(states, self.spec) if self._writes else states

    def _read_out(self, ends: Sequence[Tensor]) -> Tensor:
        """States (B, T, D) behind the blocks of `_ends` to what is read of them."""
        return self.final_norm(ends[-1])

    def busiest_expert(self) -> Tensor:
        """Of the last call in training: see `keras_encdec.layers.experts.busiest`.

        A scalar of the program that the call is part of, where alone it can be asked for, once.
        """
        load, self._expert_load = self._expert_load, None
        assert load is not None
        return busiest(load)

    def _balance(self, loads: Sequence[Tensor], training: bool | None) -> None:
        """In training: adds the loss of uneven experts, keeps their load for `busiest_expert`."""
        if not (training and loads):
            return
        assert self.spec.experts is not None
        load = ops.concatenate(loads)
        self._expert_load = ops.stop_gradient(load)
        if self.spec.experts.balance_weight:
            uneven = unevenness(load, self.spec.experts)
            self.add_loss(self.spec.experts.balance_weight * uneven)

    def _run_block(
        self,
        block: Block,
        tensors: Mapping[str, Any],
        limits: Limits,
        training: bool | None,
    ) -> tuple[Tensor, KeysValues, tuple[Tensor, ...]]:
        """A block by the settings; in generation there is no backward pass to remat for."""
        static = {"path": self.attention, "limits": limits, "training": training}
        generates = isinstance(tensors.get("context"), tuple)
        if self.remat and not generates:
            return remat.call(block, tensors, **static)
        return block(**tensors, **static)

    def _places(self, padding_mask: Tensor) -> tuple[Positions, dict[Window, KeyRange]]:
        """Positions of whole rows of tokens, and which of them each sees, by window."""
        positions = masks.positions(padding_mask)
        if self.spec.longest_written is not None:
            positions = InTexts(positions, masks.text_lengths(padding_mask))
        return positions, self._visible(padding_mask)

    def _visible(self, padding_mask: Tensor) -> dict[Window, KeyRange]:
        """Which tokens of whole rows each sees, by window."""
        return {
            window: masks.self_attention(padding_mask, causal=self.causal, window=window)
            for window in set(self.spec.windows)
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "spec": dataclasses.asdict(self.spec)}
