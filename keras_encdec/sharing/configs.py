"""What a config.json says of a finished model: one of ours, or one in a released layout.

Leaves configs of decoder-only models to `keras_encdec.families`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_encdec.families import encoders, t5gemma, t5gemma2
from keras_encdec.spec import EncoderSpec, PairSpec, spec_from_json

PAIR, ENCODER = "keras_encdec>EncDecBackbone", "keras_encdec>EncoderBackbone"  # registered_name
RELEASED: dict[str, Any] = {"t5gemma": t5gemma, "t5gemma2": t5gemma2}  # by model_type


def spec_of_config(config: Mapping[str, Any]) -> PairSpec | EncoderSpec | None:
    """The spec of a pair or of an encoder; None where the config is of something else."""
    if encoder := encoders.from_transformers(config):
        return encoder
    if config.get("model_type") in tuple(RELEASED):  # whatever type it has
        return RELEASED[config["model_type"]].from_transformers(dict(config))
    name, said = config.get("registered_name"), config.get("config", {})
    if name not in (PAIR, ENCODER):
        return None
    fields = [field.name for field in dataclasses.fields(PairSpec if name == PAIR else EncoderSpec)]
    return spec_from_json({name: said[name] for name in fields if name in said})
