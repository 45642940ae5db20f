"""What a family is: names to know it by, rules for its weights, and readers of its configs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from keras_encdec.families.dialect import Rule
from keras_encdec.spec import StackSpec

# Fields of a `StackSpec` that Llama and its kin share, in place of Gemma's.
LLAMA: dict[str, Any] = {"activation": "silu", "post_norm": False, "scale_embeddings": False}

Reader = Callable[[Mapping[str, Any]], StackSpec]


@dataclasses.dataclass(frozen=True)
class Family:
    """Decoder-only models of one kind, in KerasHub's dialect and in transformers'.

    Args:
        backbones: names of their KerasHub backbone classes.
        model_types: what `config.json` of transformers calls them.
        keras_hub: rules for the variables of the backbones.
        transformers: rules for the tensors of a safetensors file.
        from_keras_hub: the spec behind `get_config()` of a backbone, to which
            `tie_word_embeddings` is added if it is not there.
        from_transformers: the spec behind a `config.json`.
        dropped: patterns of tensors that may be there and are no weights of the model.
    """

    backbones: tuple[str, ...]
    model_types: tuple[str, ...]
    keras_hub: tuple[Rule, ...]
    transformers: tuple[Rule, ...]
    from_keras_hub: Reader
    from_transformers: Reader
    # A tie that was stored as a copy, and rotary frequencies.
    dropped: tuple[str, ...] = ("lm_head.weight", "*.inv_freq")
