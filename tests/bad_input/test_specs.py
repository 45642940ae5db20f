"""Specs that no model can have, each refused by the name of its field."""

import dataclasses
import re

import numpy as np
import pytest

from keras_encdec.spec import (
    AdaptorSpec,
    AttentionSpec,
    CrossAttentionSpec,
    MoESpec,
    NormSpec,
    PairSpec,
    RotarySpec,
    StackSpec,
)
from keras_encdec.testing.specs import tiny_encoder, tiny_pair

NAN, INF = float("nan"), float("inf")
SIZES = (0, -1, 1.5, "8", True, None, NAN)
POSITIVE = (0, -1.0, NAN, INF, "1", True)
FLAGS = ("no", 0, 1, None)

WHOLE = {
    AttentionSpec: dict.fromkeys(("num_heads", "num_kv_heads", "head_dim"), SIZES),
    StackSpec: dict.fromkeys(("vocabulary_size", "width", "feedforward_dim"), SIZES),
    RotarySpec: {"original_length": (0, 1.5, "8")},
    MoESpec: {
        **dict.fromkeys(("num_experts", "top_k", "expert_dim"), SIZES),
        "shared_dim": (0, -1, 1.5, "8", True, NAN),
    },
    AdaptorSpec: {"groups": SIZES, "width": (0, -1, 1.5, "8", True, NAN)},
}
REAL = {
    AttentionSpec: {
        "query_pre_attn_scalar": (*POSITIVE, None),
        **dict.fromkeys(("logit_soft_cap", "value_norm"), POSITIVE),
    },
    StackSpec: {"final_logit_soft_cap": POSITIVE, "dropout": (-0.1, 1, NAN, "0", True, None)},
    RotarySpec: dict.fromkeys(("base", "factor", "low_frequency_factor"), POSITIVE),
    NormSpec: {"epsilon": (*POSITIVE, None)},
    MoESpec: {"balance_weight": (-0.1, NAN, INF, "1", True, None), "router_norm": POSITIVE},
}
FLAG = {
    AttentionSpec: dict.fromkeys(("bias", "output_bias", "sinks", "values_are_keys"), FLAGS),
    RotarySpec: dict.fromkeys(("proportional", "yarn", "truncate"), FLAGS),
    StackSpec: dict.fromkeys(
        ("post_norm", "scale_embeddings", "tied_output", "layer_scalar"), FLAGS
    ),
    NormSpec: {"zero_centered": FLAGS},
    MoESpec: {
        **dict.fromkeys(("renormalize", "router_bias", "expert_bias", "expert_scale"), FLAGS),
        **dict.fromkeys(("shared_gate", "separate_norms"), (*FLAGS, True)),  # without a shared_dim
    },
    CrossAttentionSpec: dict.fromkeys(("merged", "gate"), FLAGS),
    PairSpec: {"tied_embeddings": FLAGS},
}
OTHER = {
    StackSpec: {
        "windows": ((), (0,), (-1,), (1.5,), ("8",), (True,), ((8, 0),), ((1.5, 8),)),
        "activation": ("relu", None, "Silu"),
        "rotary": ((None, RotarySpec(), None),),
        "feedforward_dim": ((80,), (80, 80, 80, 0)),
        "borrowing_layers": (-1, 1.5, "1", True, None, 4),
        "per_layer_dim": (0, -1, 1.5, "8", True),
        "experts": (MoESpec(4, 2, 8, layers=(4,)), MoESpec(4, 2, 8, layers=())),
    },
    MoESpec: {"top_k": (5,), "layers": ((-1,), (0.5,), ("1",))},
    RotarySpec: {"yarn": (True,)},
    AttentionSpec: {"num_kv_heads": (3,), "head_dim": (13,)},
    CrossAttentionSpec: {"layers": ((-1,), (0.5,), ("1",)), "rotary": ("own", True, 1)},
    PairSpec: {"encoder_attention": ("both", None, "Causal")},
}
MODELS = {
    AttentionSpec: tiny_encoder().attention,
    StackSpec: tiny_encoder(),
    RotarySpec: RotarySpec(),
    NormSpec: NormSpec(),
    MoESpec: MoESpec(4, 2, 8),
    CrossAttentionSpec: CrossAttentionSpec(),
    AdaptorSpec: AdaptorSpec(2, 8),
    PairSpec: tiny_pair(),
}
CASES = [
    pytest.param(cls, field, value, id=f"{cls.__name__}-{field}-{value!r}")
    for table in (WHOLE, REAL, FLAG, OTHER)
    for cls, fields in table.items()
    for field, values in fields.items()
    for value in values
]


@pytest.mark.parametrize(("cls", "field", "value"), CASES)
def test_bad_fields(cls, field, value):
    with pytest.raises(ValueError, match=f"(?s)Expected .*{field}.*Received: ") as error:
        make(cls, field, value)
    assert len(str(error.value)) < 1200


def make(cls, field, value):
    changed = dataclasses.replace(MODELS[cls], **{field: value})
    if cls is AttentionSpec:  # an odd width is wrong where positions turn it
        tiny_encoder(attention=changed)


def test_numbers_of_numpy_are_numbers():
    plain = tiny_encoder()
    spec = tiny_encoder(
        vocabulary_size=np.int64(96),
        width=np.array(48),
        windows=(np.int32(8), None, 8, None),
        dropout=np.float32(0.0),
    )
    assert spec == plain
    fields = dataclasses.asdict(spec)
    assert {type(fields[n]) for n in ("vocabulary_size", "width", "dropout")} == {int, float}


def test_the_error_names_the_field_first():
    with pytest.raises(ValueError, match=re.escape("num_heads of AttentionSpec of at least 1")):
        dataclasses.replace(tiny_encoder().attention, num_heads=0)


def test_there_are_many():
    assert len(CASES) > 120
