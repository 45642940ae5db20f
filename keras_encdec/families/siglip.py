"""SigLIP with a projector in front of a Gemma 3 encoder, in the layout of transformers.

Sources: transformers 5.23 models/siglip, and models/t5gemma2 for the projector and ids.
"""

from collections.abc import Iterable
from typing import Any

from keras_encdec.families.dialect import Rule, renamed
from keras_encdec.families.fields import Fields, reading
from keras_encdec.spec import Shape, VisionSpec

IMAGE_TOKEN = 256_001  # T5Gemma2Config.image_token_index, if a config is silent

_TOWER, _PROJECTOR = "vision_tower.", "multi_modal_projector."
_OLDER_TOWER = f"{_TOWER}vision_model."  # what the released files call it

# Ours, theirs inside the tower, and how axes move.
_BLOCK = (
    *(
        (f"multi_head_attention/{ours}_proj", f"self_attn.{theirs}_proj", "o i -> i o")
        for ours, theirs in {"query": "q", "key": "k", "value": "v", "out": "out"}.items()
    ),
    ("mlp_dense_1", "mlp.fc1", "o i -> i o"),
    ("mlp_dense_2", "mlp.fc2", "o i -> i o"),
    ("layer_norm_1", "layer_norm1", "d -> d"),
    ("layer_norm_2", "layer_norm2", "d -> d"),
)
_LAYERS = (
    ("encoder_embeddings/embedding_conv", "embeddings.patch_embedding", "d c h w -> h w c d"),
    ("encoder_layer_norm", "post_layernorm", "d -> d"),
    *(
        (f"encoder_block_{{i}}/{ours}", f"encoder.layers.{{i}}.{theirs}", axes)
        for ours, theirs, axes in _BLOCK
    ),
)


def rules(prefix: str) -> list[Rule]:
    """For the weights of a `VisionSpec` in a pair.

    Args:
        prefix: of the names of an encoder's tensors.
    """
    tower, projector = f"{prefix}{_TOWER}", f"{prefix}{_PROJECTOR}"
    output = "vision/vision_output_encoder/vision"
    position = "encoder_embeddings/position_embedding/embeddings"
    found = [
        Rule("vision/end_of_image", f"{prefix}embed_tokens.eoi_embedding", "d -> d"),
        Rule(
            f"vision/image_encoder/{position}",
            f"{tower}embeddings.position_embedding.weight",
            "p d -> p d",
        ),
        Rule(
            f"{output}_soft_embedding_norm/scale", f"{projector}mm_soft_emb_norm.weight", "d -> d"
        ),
        Rule(
            f"{output}_input_projection/kernel",
            f"{projector}mm_input_projection_weight",
            "d e -> d e",
        ),
    ]
    for ours, theirs, axes in _LAYERS:
        weight, bias = ("gamma", "beta") if "norm" in ours else ("kernel", "bias")
        name = f"vision/image_encoder/{ours}"
        found += [
            Rule(f"{name}/{weight}", f"{tower}{theirs}.weight", axes),
            Rule(f"{name}/{bias}", f"{tower}{theirs}.bias", "d -> d"),
        ]
    return found


def as_named(rules: tuple[Rule, ...], names: Iterable[str]) -> tuple[Rule, ...]:
    """Rules for files that may call the tower as transformers did before version 5."""
    is_older = any(_OLDER_TOWER in name for name in names)
    return renamed(rules, {_TOWER: _OLDER_TOWER}) if is_older else rules


def dropped(prefix: str, vision: VisionSpec | None) -> tuple[str, ...]:
    """Patterns of tensors that are read by nobody: a head over all patches, or all of the part."""
    if vision is not None:
        return f"{prefix}{_TOWER}head.*", f"{prefix}{_OLDER_TOWER}head.*"
    return f"{prefix}{_TOWER}*", f"{prefix}{_PROJECTOR}*", f"{prefix}embed_tokens.eoi_embedding"


def from_transformers(encoder: Fields, image: int, vocabulary_size: int) -> VisionSpec | None:
    """The part for images of an encoder's config.

    Args:
        encoder: its fields.
        image: id that stands for images.
        vocabulary_size: of the encoder.

    Returns:
        `VisionSpec`; None where the config has no such part, or no token reaches it.

    Raises:
        ValueError: if a field asks for what a `VisionSpec` cannot express.
    """
    encoder.drop("image_token_index", "image_token_id")  # the pair's is meant
    begin = encoder("boi_token_index", 255_999)  # defaults: T5Gemma2EncoderConfig
    end = encoder("eoi_token_index", 256_000)
    tokens, config = encoder("mm_tokens_per_image", 256), encoder("vision_config", None)
    if config is None or image >= vocabulary_size:
        return None
    with reading(config) as field:  # defaults: SiglipVisionConfig
        field.only("hidden_act", "gelu_pytorch_tanh")
        field.only("layer_norm_eps", 1e-6)  # what KerasHub's has in all blocks
        field.only("num_channels", 3)
        field.only("attention_dropout", 0.0)
        field.drop("vision_use_head")
        return VisionSpec(
            image_size=field("image_size", 224),
            patch_size=field("patch_size", 16),
            width=field("hidden_size", 768),
            feedforward_dim=field("intermediate_size", 3072),
            num_layers=field("num_hidden_layers", 12),
            num_heads=field("num_attention_heads", 12),
            tokens_per_image=tokens,
            begin_token_id=begin,
            image_token_id=image,
            end_token_id=end,
        )


def to_transformers(vision: VisionSpec | None, never: int) -> dict[str, Any]:
    """The fields of an encoder's config.

    Args:
        vision: what to describe; None for a part that is as small as can be.
        never: an id that no text has.
    """
    if vision is None:
        ids = dict.fromkeys(("boi_token_index", "eoi_token_index", "image_token_index"), never)
        return {**ids, "mm_tokens_per_image": 1, "vision_config": _ONE_PIXEL}
    return {
        "boi_token_index": vision.begin_token_id,
        "eoi_token_index": vision.end_token_id,
        "image_token_index": vision.image_token_id,
        "mm_tokens_per_image": vision.tokens_per_image,
        "vision_config": {
            **_SIGLIP,
            "hidden_size": vision.width,
            "intermediate_size": vision.feedforward_dim,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": 3,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
    }


_SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}
_ONE_PIXEL = {
    **{**_SIGLIP, "hidden_size": 1, "intermediate_size": 1},
    **{"num_hidden_layers": 0, "num_attention_heads": 1, "num_channels": 1},
    **{"image_size": 1, "patch_size": 1},
}


def blank(prefix: str, width: int) -> dict[str, Shape]:
    """The tensors of the part that `to_transformers` describes where there is no vision.

    Args:
        prefix: of the names of an encoder's tensors.
        width: of the encoder.
    """
    tower, projector = f"{prefix}{_TOWER}", f"{prefix}{_PROJECTOR}"
    return {
        f"{prefix}embed_tokens.eoi_embedding": (width,),
        f"{projector}mm_input_projection_weight": (1, width),
        f"{projector}mm_soft_emb_norm.weight": (1,),
        f"{tower}embeddings.patch_embedding.weight": (1, 1, 1, 1),
        f"{tower}embeddings.patch_embedding.bias": (1,),
        f"{tower}embeddings.position_embedding.weight": (1, 1),
        f"{tower}post_layernorm.weight": (1,),
        f"{tower}post_layernorm.bias": (1,),
    }
