"""The families there are, and which one a model belongs to."""

from collections.abc import Mapping
from typing import Any

from keras_encdec.families import (
    gemma,
    gemma3,
    gemma4,
    gpt_oss,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen,
    qwen2_moe,
    qwen3_moe,
    smollm3,
)
from keras_encdec.families.family import Family
from keras_encdec.spec import StackSpec

# A new family joins by one name here.
FAMILIES: tuple[Family, ...] = (
    *gemma.FAMILIES,
    *gemma3.FAMILIES,
    *gemma4.FAMILIES,
    *llama.FAMILIES,
    *mistral.FAMILIES,
    *mixtral.FAMILIES,
    *qwen.FAMILIES,
    *qwen2_moe.FAMILIES,
    *qwen3_moe.FAMILIES,
    *smollm3.FAMILIES,
    *olmo2.FAMILIES,
    *granite.FAMILIES,
    *phi3.FAMILIES,
    *gpt_oss.FAMILIES,
)


def of_backbone(class_name: str) -> Family:
    """The family of a KerasHub backbone class.

    Raises:
        ValueError: if there is none.
    """
    return _find(class_name, "backbones", "a KerasHub backbone of a known family")


def of_model_type(model_type: str) -> Family:
    """The family of a `config.json` of transformers.

    Raises:
        ValueError: if there is none.
    """
    return _find(model_type, "model_types", "a model_type of a known family")


def spec_of(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a whole `config.json`, of transformers or of KerasHub.

    Raises:
        ValueError: if its family is not known, or a spec cannot express a field.
    """
    if "model_type" in config:
        return of_model_type(config["model_type"]).read_transformers(config)
    return of_backbone(config.get("class_name", "")).read_keras_hub(config["config"])


def _find(name: str, attribute: str, expected: str) -> Family:
    names = {n: family for family in FAMILIES for n in getattr(family, attribute)}
    if isinstance(name, str) and name in names:
        return names[name]
    raise ValueError(
        f"Expected {expected}: one of {sorted(names)}. Received: {name!r}, whose family is not "
        "known. CONTRIBUTING.md says how to add a family."
    )
