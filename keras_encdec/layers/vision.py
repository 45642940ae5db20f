"""Images among the tokens of a text: their states in the places that the text keeps for them.

Knows which tokens stand for images and what is read in their place. Leaves the vision
Transformer to KerasHub, and pixels to who makes model inputs.
"""

import dataclasses
from typing import Any

import keras
import keras_hub
from keras import ops

from keras_encdec.spec import InputShape, Tensor, VisionSpec
from keras_encdec.spec.vision import vision_from_json


@keras.saving.register_keras_serializable(package="keras_encdec")
class Vision(keras.layers.Layer):
    """Puts images among embedded tokens; both stacks of a pair share it.

    The k-th token `image_token_id` of a row gets the k-th state of the row's images, which is
    not scaled as embedded tokens are. The token that ends an image has an embedding of its own,
    which is not scaled either (`T5Gemma2TextScaledWordEmbedding` of transformers 5.23).

    Args:
        spec: `VisionSpec`, or its fields as a dict.
        output_width: D of the stacks.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, spec: VisionSpec | dict[str, Any], output_width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        found = vision_from_json(spec)
        assert found is not None
        self.spec, self.output_width = found, output_width

    def build(self, *input_shapes: InputShape) -> None:
        spec = self.spec
        self.end_of_image = self.add_weight((self.output_width,), "zeros", name="end_of_image")
        self.image_encoder = keras_hub.models.Gemma3VisionEncoder(
            image_size=spec.image_size,
            patch_size=spec.patch_size,
            num_heads=spec.num_heads,
            hidden_dim=spec.width,
            num_layers=spec.num_layers,
            intermediate_dim=spec.feedforward_dim,
            output_dim=self.output_width,
            pool_size=spec.pool_size,
            dtype=self.dtype_policy,
        )

    def call(self, x: Tensor, token_ids: Tensor, images: Tensor | None = None) -> Tensor:
        """Embedded tokens, with what images make of them.

        Args:
            x: (B, T, D) embedded and scaled tokens.
            token_ids: (B, T) int.
            images: (B, N, H, W, 3), pixels from -1 to 1; rows with fewer than N are filled up
                behind their own. None leaves image tokens as they are embedded.
        """
        ends = ops.equal(token_ids, self.spec.end_token_id)[..., None]
        x = ops.where(ends, ops.cast(self.end_of_image, x.dtype), x)
        if images is None:
            return x
        states = ops.cast(self.image_encoder(images), x.dtype)  # (B * N, M, D)
        states = ops.reshape(states, (ops.shape(x)[0], -1, self.output_width))
        here = ops.equal(token_ids, self.spec.image_token_id)
        place = ops.cumsum(ops.cast(here, "int32"), axis=1) - 1
        place = ops.clip(place, 0, ops.shape(states)[1] - 1)[..., None]
        return ops.where(here[..., None], ops.take_along_axis(states, place, axis=1), x)

    def compute_output_spec(self, x: Tensor, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"spec": dataclasses.asdict(self.spec), "output_width": self.output_width}
        return {**super().get_config(), **own}
