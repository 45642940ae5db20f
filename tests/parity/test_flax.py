"""Parity with the flax implementation (gemma.research.t5gemma), layer by layer, on its weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from keras_encdec.models import EncDecBackbone
from keras_encdec.spec import AttentionSpec, PairSpec, RotarySpec, StackSpec
from keras_encdec.testing.models import to_numpy

HERE = Path(__file__).parent
SIDES = ("encoder", "decoder")
NORMS = {"attention": "attention", "cross_attention": "cross_attention", "ffw": "feedforward"}


def query_pre_attn_scalar(config):
    return {  # the division is whole: 40 // 6 = 6 (gemma/research/t5gemma/modules.py)
        "BY_ONE_OVER_SQRT_HEAD_DIM": config["head_dim"],
        "BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS": config["embed_dim"] // config["num_heads"],
    }[config["query_pre_attn_norm"]]


def stack_spec(config):
    assert config["use_post_attn_norm"] == config["use_post_ffw_norm"]
    assert config["local_base_frequency"] == config["global_base_frequency"]
    windows = {"LOCAL_SLIDING": config["sliding_window_size"], "GLOBAL": None}
    attention = AttentionSpec(
        num_heads=config["num_heads"],
        num_kv_heads=config["num_kv_heads"],
        head_dim=config["head_dim"],
        query_pre_attn_scalar=query_pre_attn_scalar(config),
        logit_soft_cap=config["attn_logits_soft_cap"],
    )
    return StackSpec(
        vocabulary_size=config["num_embed"],
        width=config["embed_dim"],
        feedforward_dim=config["hidden_dim"],
        attention=attention,
        windows=tuple(windows[kind] for kind in config["attention_types"]),
        rotary=RotarySpec(config["local_base_frequency"]),
        post_norm=config["use_post_attn_norm"],
        final_logit_soft_cap=config["final_logit_softcap"],
    )


def pair_spec(config):
    attention = "bidirectional" if config["encoder"]["bidirectional"] else "causal"
    return PairSpec(*(stack_spec(config[side]) for side in SIDES), attention)


def our_weights(path, value, transposed):
    """The `(name, value)` pairs that one flax parameter holds, in our names and shapes."""
    side, module, *rest = path.split("/")
    if module == "embedder":
        return [(f"{side}/embedding/embeddings", value)]
    if module == "final_norm":
        return [(f"{side}/final_norm/scale", value)]
    block = f"{side}/{module.replace('layer', 'block')}"
    if rest[0] == "mlp":
        return [(f"{block}/feedforward/{k}/kernel", v) for k, v in mlp(rest[1], value, transposed)]
    if rest[0].endswith("attn"):
        name = rest[0].replace("attn", "attention")
        return [(f"{block}/{name}/{k}/kernel", v) for k, v in attention(rest[1], value)]
    place, sublayer = rest[0].removesuffix("_norm").split("_", 1)
    return [(f"{block}/{place}_{NORMS[sublayer]}_norm/scale", value)]


def mlp(name, value, transposed):
    if name == "linear":
        return [("down", value)]
    return zip(("gate", "up"), value.swapaxes(1, 2) if transposed else value, strict=True)


def attention(name, value):
    if name == "attn_vec_einsum":
        return [("attention_output", value)]
    parts = value[None] if name == "q_einsum" else value
    names = {"q_einsum": ("query",), "kv_einsum": ("key", "value")}
    names = names.get(name, ("query", "key", "value"))
    return zip(names, parts.swapaxes(1, 2), strict=True)  # (N, D, H) to (D, N, H)


def plan(reference, config):
    """For each flax parameter, what it sets; one entry a parameter."""
    prefix = "param/"
    return {
        key: list(
            our_weights(
                key.removeprefix(prefix),
                reference[key],
                config[key.split("/")[1]]["transpose_gating_einsum"],
            )
        )
        for key in reference
        if key.startswith(prefix)
    }


@pytest.fixture(scope="module", params=["grouped", "fused"])
def case(request):
    reference = dict(np.load(HERE / f"flax_{request.param}.npz"))
    return reference, json.loads(str(reference["config"]))


@pytest.fixture(scope="module")
def backbone(case):
    reference, config = case
    pair = pair_spec(config)
    model = EncDecBackbone(pair.encoder, pair.decoder, pair.encoder_attention)
    weights = {weight.path: weight for weight in model.weights}
    for entries in plan(reference, config).values():
        for name, value in entries:
            weights.pop(name).assign(value)
    assert not weights
    return model


@pytest.fixture(scope="module")
def outputs(case, backbone):
    """Encoder states by layer, decoder input and output states, logits and masks, as numpy."""
    reference, _ = case
    source, target = reference["input_tokens"], reference["target_tokens"]
    encoder = backbone.encoder.all_states(source, source != 0)
    decoder = backbone.decoder(target, target != 0, encoder[-1], source != 0)
    return {
        "encoder": [to_numpy(x) for x in encoder],
        "decoder_embedding": to_numpy(backbone.decoder.embed(target)),
        "decoder": to_numpy(decoder),
        "logits": to_numpy(backbone.decoder.logits(decoder)),
    }


def assert_close(actual, expected, tokens, tolerance):
    """At real tokens; absolute up to size 1 and relative above, where float32 is coarser."""
    assert actual.shape == expected.shape
    actual, expected = actual[tokens != 0], expected[tokens != 0]
    limit = tolerance * np.maximum(1, np.abs(expected))
    np.testing.assert_array_less(np.abs(actual - expected), limit)


def test_every_weight_is_set_once_and_every_flax_parameter_used(case):
    reference, config = case
    entries = plan(reference, config)
    names = [name for parts in entries.values() for name, _ in parts]
    shapes = {name: value.shape for parts in entries.values() for name, value in parts}
    assert all(entries.values())
    assert len(names) == len(set(names))
    assert shapes == pair_spec(config).weights()


@pytest.mark.slow
def test_model_has_the_weights_its_spec_names(case, backbone):
    shapes = {weight.path: tuple(weight.shape) for weight in backbone.weights}
    assert shapes == pair_spec(case[1]).weights()


def test_encoder_states_of_each_layer(case, outputs):
    reference, config = case
    assert len(outputs["encoder"]) == config["encoder"]["num_layers"] + 1
    for i, states in enumerate(outputs["encoder"]):
        expected = reference[f"encoder_activation_{i}"]
        assert_close(states, expected, reference["input_tokens"], 1e-5)


def test_decoder_states(case, outputs):
    reference, config = case
    last = reference[f"decoder_activation_{config['decoder']['num_layers']}"]
    first, tokens = reference["decoder_activation_0"], reference["target_tokens"]
    assert_close(outputs["decoder_embedding"], first, tokens, 1e-5)
    assert_close(outputs["decoder"], last, tokens, 1e-4)


def test_logits(case, outputs):
    reference, _ = case
    assert_close(outputs["logits"], reference["logits"], reference["target_tokens"], 1e-4)
