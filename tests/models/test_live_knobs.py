"""Each field of each spec changes the parameters or the output, or is named here as exempt."""

import dataclasses
import functools

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
from keras_encdec.testing.models import SIDES, make_inputs, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

# For each field the values to try, each as a function of the value it has.
CHANGES = {
    AttentionSpec: {
        "num_heads": [lambda old: 2 * old],
        "num_kv_heads": [lambda old: old // 2],
        "head_dim": [lambda old: old // 2],
        "query_pre_attn_scalar": [lambda old: 2 * old],
        "logit_soft_cap": [lambda old: 2 * old, lambda old: None],
        "bias": [lambda old: True],
        "query_key_norm": [lambda old: NormSpec()],
        "norm_across_heads": [lambda old: True],
        "values_are_keys": [lambda old: True],
        "value_norm": [lambda old: 0.1],
        "output_bias": [lambda old: True],
        "sinks": [lambda old: True],
    },
    RotarySpec: {
        "base": [lambda old: 30.0],
        "factor": [lambda old: 2.0],
        "low_frequency_factor": [lambda old: 0.3],
        "high_frequency_factor": [lambda old: 8.0],
        "original_length": [lambda old: 32],
        "fraction": [lambda old: 0.5],
        "proportional": [lambda old: True],
        "yarn": [lambda old: True],
        "truncate": [lambda old: False],
        "attention_factor": [lambda old: 1.5],
        "short_factors": [lambda old: tuple(2 * x for x in old)],
        "long_factors": [lambda old: tuple(2 * x for x in old)],
    },
    NormSpec: {"epsilon": [lambda old: 0.1], "zero_centered": [lambda old: False]},
    StackSpec: {
        "vocabulary_size": [lambda old: old + 8],
        "width": [lambda old: old + 8],
        "feedforward_dim": [lambda old: old + 8, lambda old: (old, *[old + 8] * 10)],
        "windows": [lambda old: tuple(w and w + 1 for w in old), lambda old: (*old, None)],
        "rotary": [lambda old: None, lambda old: (None, *[RotarySpec()] * 10)],
        "activation": [lambda old: "silu", lambda old: "clamped_swiglu"],
        "post_norm": [lambda old: not old],
        "scale_embeddings": [lambda old: not old],
        "tied_output": [lambda old: not old],
        "final_logit_soft_cap": [lambda old: 2 * old, lambda old: None],
        "dropout": [lambda old: 0.5],
        "pre_norm": [lambda old: not old],
        "embedding_multiplier": [lambda old: 2.0],
        "residual_multiplier": [lambda old: 0.5],
        "logits_scaling": [lambda old: 2.0],
        "experts": [lambda old: EXPERTS],
        "layer_scalar": [lambda old: True],
        "borrowing_layers": [lambda old: 1],
        "per_layer_dim": [lambda old: 6],
    },
    MoESpec: {
        "num_experts": [lambda old: old + 1],
        "top_k": [lambda old: old - 1],
        "expert_dim": [lambda old: old + 8],
        "renormalize": [lambda old: not old],
        "layers": [lambda old: (1,)],
        "router_bias": [lambda old: True],
        "expert_bias": [lambda old: True],
        "shared_dim": [lambda old: 28],
        "shared_gate": [lambda old: True],
        "separate_norms": [lambda old: True],
        "router_norm": [lambda old: 30.0, lambda old: None],
        "expert_scale": [lambda old: True],
    },
    CrossAttentionSpec: {
        "merged": [lambda old: True],
        "gate": [lambda old: True],
        "layers": [lambda old: (1,)],
        "rotary": [lambda old: "continuous"],
    },
    AdaptorSpec: {"groups": [lambda old: old + 1], "width": [lambda old: 24, lambda old: None]},
    PairSpec: {"encoder_attention": [lambda old: "causal"], "tied_embeddings": [lambda old: True]},
}
EXEMPT = {
    (MoESpec, "balance_weight"): "of a loss: tests/layers/test_experts.py",
    (
        StackSpec,
        "attention",
    ): "its own fields are changed one by one, or tests/models/test_switches.py",
    (StackSpec, "norm"): "its own fields are changed one by one",
    (PairSpec, "encoder"): "its own fields are changed one by one",
    (PairSpec, "decoder"): "its own fields are changed one by one",
    (PairSpec, "cross_attention"): "its own fields are changed one by one",
    (PairSpec, "adaptor"): "its own fields are changed one by one",
    (PairSpec, "vision"): "of images: tests/families/test_images.py",
    ("encoder", "final_logit_soft_cap"): "an encoder writes no logits; kept for its source model",
    ("encoder", "logits_scaling"): "an encoder writes no logits; kept for its source model",
    ("encoder", "tied_output"): "an encoder writes no logits; kept for its source model",
}
EXPERTS = MoESpec(num_experts=4, top_k=3, expert_dim=24)
STRETCHED = RotarySpec(100.0, 8.0, 1.0, 4.0, 64)


OF_PAIR = {CrossAttentionSpec: "cross_attention", AdaptorSpec: "adaptor"}
ONE_SIDE = {PairSpec: ("pair",), **dict.fromkeys(OF_PAIR, ("pair",)), MoESpec: ("decoder",)}


def by_length(stack):
    """Positions of which rows of 20 and 16 tokens are long texts, those of 13 and 9 short ones."""
    factors = (1.5,) * (stack.attention.head_dim // 2)
    return RotarySpec(100.0, original_length=14, short_factors=factors, long_factors=factors)


def normed(stack):
    return dataclasses.replace(stack.attention, query_key_norm=NormSpec())


# Fields that say something only beside others: what a stack then starts with.
BESIDE = {
    "short_factors": lambda stack: {"rotary": by_length(stack)},
    "long_factors": lambda stack: {"rotary": by_length(stack)},
    "norm_across_heads": lambda stack: {"attention": normed(stack)},
    "truncate": lambda stack: {"rotary": dataclasses.replace(STRETCHED, yarn=True)},
    "proportional": lambda stack: {"rotary": RotarySpec(fraction=0.5)},
    "borrowing_layers": lambda stack: {"windows": (6,) * stack.num_layers},
}
BESIDE_EXPERTS = {
    "shared_gate": {"shared_dim": 28},
    "separate_norms": {"shared_dim": 28},
    "router_norm": {"router_norm": 1e-6},
}


def start(spec_class, field):
    """The pair whose field is changed."""
    beside = BESIDE.get(field)
    if beside is None and spec_class is RotarySpec:
        beside = lambda stack: {"rotary": STRETCHED}  # noqa: E731
    if beside is not None:
        sides = {side: getattr(tiny_pair(), side) for side in SIDES}
        return tiny_pair(**{k: dataclasses.replace(v, **beside(v)) for k, v in sides.items()})
    if spec_class is MoESpec:  # a norm behind experts would undo how much all of them weigh
        experts = dataclasses.replace(EXPERTS, **BESIDE_EXPERTS.get(field, {}))
        return tiny_pair(decoder=tiny_decoder(experts=experts, post_norm=False))
    if spec_class is AdaptorSpec:
        return tiny_pair(adaptor=AdaptorSpec(2, 40))
    if spec_class in (CrossAttentionSpec, PairSpec):
        return tiny_pair(decoder=tiny_encoder(windows=(8, None)))
    return tiny_pair()


def changed(pair, side, spec_class, field, change):
    """The pair with one field of one class changed, on one side."""

    def replaced(spec):
        value = change(getattr(spec, field))
        if field in ("rotary", "feedforward_dim") and isinstance(value, tuple):
            value = value[: spec.num_layers]
        return dataclasses.replace(spec, **{field: value})

    if spec_class is PairSpec:
        return replaced(pair)
    owner = {
        AttentionSpec: "attention",
        RotarySpec: "rotary",
        NormSpec: "norm",
        MoESpec: "experts",
        **OF_PAIR,
    }.get(spec_class)
    if spec_class in OF_PAIR:
        return dataclasses.replace(pair, **{owner: replaced(getattr(pair, owner))})
    stack = getattr(pair, side)
    if owner is None:
        stack = replaced(stack)
    else:
        stack = dataclasses.replace(stack, **{owner: replaced(getattr(stack, owner))})
    return dataclasses.replace(pair, **{side: stack})


def cases():
    for spec_class, fields in CHANGES.items():
        for side in ONE_SIDE.get(spec_class, SIDES):
            for field, changes in fields.items():
                for i, change in enumerate(changes):
                    if (side, field) not in EXEMPT:
                        name = f"{side}-{spec_class.__name__}-{field}-{i}"
                        yield pytest.param(side, spec_class, field, change, id=name)


def shapes(model):
    return {weight.path: tuple(weight.shape) for weight in model.weights}


def logits(model):
    """Logits in training mode, at real target tokens; without dropout they are those of use."""
    inputs = make_inputs()
    states = model(inputs, training=True)["decoder_sequence_output"]
    found = to_numpy(model.decoder.logits(states))
    return found[inputs["decoder_padding_mask"] == 1]


@functools.cache
def baseline(pair):
    model = tiny_backbone(pair)
    return shapes(model), logits(model)


@pytest.mark.parametrize("spec_class", CHANGES)
def test_every_field_is_changed_or_exempt(spec_class):
    fields = {field.name for field in dataclasses.fields(spec_class)}
    exempt = {name for owner, name in EXEMPT if owner is spec_class}
    assert fields == CHANGES[spec_class].keys() | exempt
    assert not CHANGES[spec_class].keys() & exempt


@pytest.mark.slow
@pytest.mark.parametrize(("side", "spec_class", "field", "change"), list(cases()))
def test_knob_is_live(side, spec_class, field, change):
    begun = start(spec_class, field)
    pair = changed(begun, side, spec_class, field, change)
    model = tiny_backbone(pair)
    assert shapes(model) == pair.weights()
    before = baseline(begun)
    if shapes(model) == before[0]:
        assert np.abs(logits(model) - before[1]).max() > 1e-2


def test_dropout_acts_in_training_only():
    pair = changed(tiny_pair(), "decoder", StackSpec, "dropout", lambda old: 0.5)
    pair = changed(pair, "encoder", StackSpec, "dropout", lambda old: 0.5)
    inputs, before = make_inputs(), tiny_backbone()(make_inputs())
    for key, states in tiny_backbone(pair)(inputs, training=False).items():
        np.testing.assert_array_equal(to_numpy(states), to_numpy(before[key]))
