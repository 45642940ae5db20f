"""OLMo 2: norms behind sublayers alone, and one norm of all heads (arXiv 2501.00656, section 3.3)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_encdec.families import transformers
from keras_encdec.families.family import LLAMA, Family
from keras_encdec.families.fields import reading
from keras_encdec.spec import EncoderSpec, StackSpec

# Their norms of queries and keys have all heads in one axis.
_ACROSS = {
    "self_attn.q_norm.weight": "(n h) -> n h",
    "self_attn.k_norm.weight": "(k h) -> k h",
}
TRANSFORMERS = tuple(
    dataclasses.replace(
        rule, layout=_ACROSS.get(rule.theirs.removeprefix("model.layers.{i}."), rule.layout)
    )
    for rule in transformers.rules(post_norm=True)
)


def from_transformers(config: Mapping[str, Any]) -> StackSpec:
    """The spec behind a `config.json` of model type `olmo2`."""
    with reading(config) as field:
        field.only("hidden_act", "silu")
        return transformers.stack(
            field,
            query_key_norm=True,
            attention={"norm_across_heads": True},
            **LLAMA | {"pre_norm": False, "post_norm": True},
        )


def to_transformers(spec: EncoderSpec) -> dict[str, Any]:
    """Of an encoder, as model type `olmo2`."""
    return transformers.config(spec, "Olmo2Model", hidden_act="silu")


FAMILIES = (
    Family(
        (),  # KerasHub 0.32 has none
        ("olmo2",),
        (),
        TRANSFORMERS,
        None,
        from_transformers,
        to_transformers,
        tied=False,
    ),
)
