"""The encoder: a whole input at once, each token seeing all, or what comes before it.

Leaves embeddings and depth to `keras_encdec.layers.stack`.
"""

from typing import Any

import keras

from keras_encdec.layers.stack import Stack
from keras_encdec.spec import InputShape, StackSpec, Tensor


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

    def call(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        training: bool | None = None,
        images: Tensor | None = None,
    ) -> Tensor:
        """(B, S) token ids and mask to (B, S, D) normalised states.

        With several examples in a row, the mask holds each one's number. Images, as of
        `keras_encdec.layers.vision`, are the row's, in the order of their tokens.
        """
        return self._run(token_ids, *self._places(padding_mask), training=training, images=images)

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
        self, token_ids: Tensor, *args: Any, **kwargs: Any
    ) -> keras.KerasTensor:
        return keras.KerasTensor((*token_ids.shape, self.spec.width), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "causal": self.causal}
