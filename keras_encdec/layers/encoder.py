"""The encoder: a whole input at once, each token seeing all, or what comes before it.

Leaves embeddings and depth to `keras_encdec.layers.stack`, and what an adaptor makes of its
layers to `keras_encdec.layers.adaptor`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from keras_encdec.layers.adaptor import Adaptor
from keras_encdec.layers.stack import Stack
from keras_encdec.spec import AdaptorSpec, InputShape, StackSpec, Tensor
from keras_encdec.spec.sublayers import adaptor_from_json


@keras.saving.register_keras_serializable(package="keras_encdec")
class Encoder(Stack):
    """Reads a whole input at once.

    Args:
        spec: `StackSpec`, or its fields as a dict.
        causal: hide what comes after each token, as the source model did.
        adaptor: `AdaptorSpec` of what comes out, or its fields as a dict; or None.
        **kwargs: of `keras.layers.Layer`.

    Example:
        >>> encoder = pair.backbone.encoder
        >>> states = encoder(token_ids, padding_mask)  # (B, S, D)
    """

    def __init__(
        self,
        spec: StackSpec | dict[str, Any],
        causal: bool = False,
        adaptor: AdaptorSpec | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, causal=causal, **kwargs)
        self.adaptor, self.output_width = None, self.spec.width
        if (adaptor := adaptor_from_json(adaptor)) is not None:
            self.adaptor = Adaptor(adaptor, name="adaptor", dtype=self.dtype_policy)
            self.output_width = adaptor.width or self.spec.width
            self._ends = adaptor.ends(self.spec.num_layers)

    def build(self, *input_shapes: InputShape) -> None:
        self._build_stack()
        if self.adaptor is not None:
            self.adaptor.build((None, None, self.spec.width))

    def call(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        training: bool | None = None,
        images: Tensor | None = None,
    ) -> Tensor:
        """(B, S) token ids and mask to (B, S, D) normalised states, D that of an adaptor's width.

        With several examples in a row, the mask holds each one's number. Images, as of
        `keras_encdec.layers.vision`, are the row's, in the order of their tokens.
        """
        return self._run(token_ids, *self._places(padding_mask), training=training, images=images)

    def all_states(
        self, token_ids: Tensor, padding_mask: Tensor, training: bool | None = None
    ) -> list[Tensor]:
        """The input of each block (B, S, D), then what the encoder gives: L + 1 of them."""
        inputs: list[Tensor] = []
        places = self._places(padding_mask)
        output = self._run(
            token_ids, *places, training=training, each=lambda x, _: inputs.append(x)
        )
        return [*inputs, output]

    def compute_output_spec(
        self, token_ids: Tensor, *args: Any, **kwargs: Any
    ) -> keras.KerasTensor:
        return keras.KerasTensor((*token_ids.shape, self.output_width), self.compute_dtype)

    def _read_out(self, ends: Sequence[Tensor]) -> Tensor:
        if self.adaptor is None:
            return super()._read_out(ends)
        return self.adaptor([self.final_norm(x) for x in ends])

    def get_config(self) -> dict[str, Any]:
        adaptor = self.adaptor and dataclasses.asdict(self.adaptor.spec)
        return {**super().get_config(), "causal": self.causal, "adaptor": adaptor}
