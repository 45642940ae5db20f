"""What a family is: names to know it by, rules for its weights, and readers of its configs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from keras_encdec.families.dialect import Rule
from keras_encdec.spec import EncoderSpec, StackSpec

# Fields of a `StackSpec` that Llama and its kin share, in place of Gemma's.
LLAMA: dict[str, Any] = {"activation": "silu", "post_norm": False, "scale_embeddings": False}

Reader = Callable[[Mapping[str, Any]], StackSpec]
Writer = Callable[[EncoderSpec], dict[str, Any]]

# A tie that was stored as a copy, and rotary frequencies.
DROPPED = ("lm_head.weight", "*.inv_freq")


@dataclasses.dataclass(frozen=True)
class Family:
    """Decoder-only models of one kind, in KerasHub's dialect and in transformers'.

    Args:
        backbones: names of their KerasHub backbone classes.
        model_types: what `config.json` of transformers calls them.
        keras_hub: rules for the variables of the backbones.
        transformers: rules for the tensors of a safetensors file.
        from_keras_hub: the spec behind `get_config()` of a backbone; None without backbones.
        from_transformers: the spec behind a `config.json`.
        to_transformers: the `config.json` of an encoder, as near as the family comes to it:
            `keras_encdec.families.encoders` reads it again and refuses what is lost. None where
            encoders are written as another family.
        tied: whether the embedding writes the logits, where a config does not say; each
            of the two readers finds `tie_word_embeddings` in its config.
        dropped: patterns of tensors that may be there and are no weights of the model.
    """

    backbones: tuple[str, ...]
    model_types: tuple[str, ...]
    keras_hub: tuple[Rule, ...]
    transformers: tuple[Rule, ...]
    from_keras_hub: Reader | None
    from_transformers: Reader
    to_transformers: Writer | None
    tied: bool
    dropped: tuple[str, ...] = DROPPED

    def read_keras_hub(self, config: Mapping[str, Any]) -> StackSpec:
        """The spec behind `get_config()` of a backbone.

        Raises:
            ValueError: if a field has a value that a spec cannot express.
        """
        assert self.from_keras_hub is not None  # it is found by the name of a backbone
        return self.from_keras_hub({"tie_word_embeddings": self.tied, **config})

    def read_transformers(self, config: Mapping[str, Any]) -> StackSpec:
        """The spec behind a `config.json`.

        Raises:
            ValueError: if a field has a value that a spec cannot express.
        """
        return self.from_transformers({"tie_word_embeddings": self.tied, **config})
