"""Images in front of an encoder: a vision Transformer whose states stand among those of tokens.

Knows the numbers that shape it, which ids stand for images, and from them the name and shape of
each weight. Leaves what is computed to `keras_encdec.layers.vision`. Standard library only.
"""

import dataclasses
import math
from typing import Any

from keras_encdec import check
from keras_encdec.spec.fields import check_fields, require


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """SigLIP (arXiv 2303.15343) with a projector, as Gemma 3 and T5Gemma 2 read images.

    An image is cut into square patches, whose states are averaged over squares to
    `tokens_per_image` and projected to the width of the encoder (arXiv 2503.19786, section 2.2;
    arXiv 2512.14856, section 2). They take the places of as many tokens `image_token_id`.

    Args:
        image_size: pixels of an image's side.
        patch_size: pixels of a patch's side.
        width: of the vision Transformer.
        feedforward_dim: hidden width of its feed-forward.
        num_layers: its depth.
        num_heads: of its attention.
        tokens_per_image: places that an image takes among the encoder's tokens, M.
        begin_token_id: of the token before an image, embedded as any other.
        image_token_id: of the tokens that an image's states replace.
        end_token_id: of the token behind an image, whose embedding is a weight of its own.
    """

    image_size: int
    patch_size: int
    width: int
    feedforward_dim: int
    num_layers: int
    num_heads: int
    tokens_per_image: int
    begin_token_id: int
    image_token_id: int
    end_token_id: int

    def __post_init__(self) -> None:
        sizes = "image_size", "patch_size", "width", "feedforward_dim", "num_layers", "num_heads"
        check_fields(self, check.whole, *sizes, "tokens_per_image")
        check_fields(self, check.whole, *self._ids, least=0)
        different = len({getattr(self, name) for name in self._ids}) == len(self._ids)
        require(different, "three different ids around and for images", self)
        require(self.width % self.num_heads == 0, "a width that num_heads divide", self)
        require(self.image_size % self.patch_size == 0, "patches that fill an image", self)
        side = math.isqrt(self.tokens_per_image)
        fits = side**2 == self.tokens_per_image and self.patches_per_side % side == 0
        require(fits, "tokens_per_image that stand for squares of as many patches each", self)

    @property
    def _ids(self) -> tuple[str, str, str]:
        return "begin_token_id", "image_token_id", "end_token_id"

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def pool_size(self) -> int:
        """Patches along each side of the square that becomes one token."""
        return self.patches_per_side // math.isqrt(self.tokens_per_image)

    @property
    def largest_id(self) -> int:
        """That the vocabulary must have."""
        return max(getattr(self, name) for name in self._ids)

    def weights(self, output_width: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight, as `keras_hub.models.Gemma3VisionEncoder` names them.

        Args:
            output_width: of the encoder that reads the image.
        """
        d, f, patch = self.width, self.feedforward_dim, self.patch_size
        norm = {"gamma": (d,), "beta": (d,)}
        heads = {f"multi_head_attention/{name}_proj": (d, d) for name in _PROJECTIONS}
        dense = {**heads, "mlp_dense_1": (d, f), "mlp_dense_2": (f, d)}
        block: dict[str, tuple[int, ...]] = {}
        for name, shape in dense.items():
            block |= {f"{name}/kernel": shape, f"{name}/bias": shape[1:]}
        block |= {f"layer_norm_{i}/{key}": shape for i in (1, 2) for key, shape in norm.items()}
        weights: dict[str, tuple[int, ...]] = {
            "encoder_embeddings/embedding_conv/kernel": (patch, patch, 3, d),
            "encoder_embeddings/embedding_conv/bias": (d,),
            "encoder_embeddings/position_embedding/embeddings": (self.patches_per_side**2, d),
            **{f"encoder_layer_norm/{key}": shape for key, shape in norm.items()},
        }
        for i in range(self.num_layers):
            weights |= {f"encoder_block_{i}/{name}": shape for name, shape in block.items()}
        return {
            "end_of_image": (output_width,),
            **{f"image_encoder/{name}": shape for name, shape in weights.items()},
            "vision_output_encoder/vision_soft_embedding_norm/scale": (d,),
            "vision_output_encoder/vision_input_projection/kernel": (d, output_width),
        }


_PROJECTIONS = "query", "key", "value", "out"


def vision_from_json(data: VisionSpec | dict[str, Any] | None) -> VisionSpec | None:
    """As `keras_encdec.spec.stack_from_json`, of a `VisionSpec`; None for none."""
    return VisionSpec(**data) if isinstance(data, dict) else data
