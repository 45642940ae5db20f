"""An expert that all tokens share, beside a token's own: arithmetic, sizes, what is refused."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import ops
from reference_folder import facts_of, write_folder
from safetensors.numpy import load_file, save_file

import keras_encdec
from keras_encdec.conversion.plan import make_plan
from keras_encdec.evaluation import forward_flops
from keras_encdec.families import known
from keras_encdec.layers.experts import MixtureOfExperts
from keras_encdec.layers.feedforward import GatedFeedForward
from keras_encdec.models import EncDecBackbone, EncoderBackbone
from keras_encdec.sharing import card_text
from keras_encdec.spec import MoESpec, NormSpec, count_parameters
from keras_encdec.spec.stack import stack_from_json
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.testing.models import assert_close, draw, make_inputs, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

PLAIN = MoESpec(5, 2, 12)
QWEN = dataclasses.replace(PLAIN, renormalize=False, shared_dim=9, shared_gate=True)
GEMMA = dataclasses.replace(
    PLAIN, shared_dim=9, separate_norms=True, router_norm=1e-2, expert_scale=True
)
ALL = dataclasses.replace(GEMMA, shared_gate=True)
# google/gemma-4-26B-A4B, as several readers of its config.json have it in their tests.
A4B = {
    **{"model_type": "gemma4_text", "hidden_size": 2816, "num_hidden_layers": 30},
    **{"intermediate_size": 2112, "num_attention_heads": 16, "num_key_value_heads": 8},
    **{"head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": 2},
    **{"vocab_size": 262144, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    **{"sliding_window": 1024, "final_logit_softcapping": 30.0, "attention_k_eq_v": True},
    **{"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8},
    **{"moe_intermediate_size": 704, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
}


def made(spec, norm=NormSpec(1e-2, zero_centered=False)):  # noqa: B008
    layer = MixtureOfExperts(spec, "gelu_tanh", norm, name="feedforward")
    layer.build((2, 7, 8))
    for weight in layer.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)) + weight.path.endswith("scale"))
    return layer


def states(seed):
    return np.random.default_rng(seed).normal(size=(2, 7, 8)).astype("float32")


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normed(x, scale, epsilon=1e-2):
    return x / np.sqrt((x**2).mean() + epsilon) * scale


def by_hand(layer, x, residual):
    """What one token becomes, in float64, one expert after another."""
    w = {v.path.removeprefix("feedforward/"): np.float64(to_numpy(v)) for v in layer.weights}
    spec = layer.spec
    read = x
    if spec.router_norm is not None:
        read = normed(residual, w["router/scale"], spec.router_norm) / np.sqrt(x.size)
    logits = read @ w["router/kernel"]
    given = np.exp(logits) / np.exp(logits).sum()
    chosen = np.argsort(-given)[: spec.top_k]
    weights = given[chosen] / (given[chosen].sum() if spec.renormalize else 1)
    if spec.expert_scale:
        weights = weights * w["router/expert_scale"][chosen]
    seen = normed(residual, w["pre_experts_norm/scale"]) if spec.separate_norms else x
    own, shared = np.zeros(x.size), np.zeros(x.size)
    for expert, weight in zip(chosen, weights, strict=True):
        gate, up, down = (w[f"experts/{name}"][expert] for name in ("gate", "up", "down"))
        own += weight * ((gelu(seen @ gate) * (seen @ up)) @ down)
    if spec.shared_dim is not None:
        gate, up, down = (w[f"shared/{name}/kernel"] for name in ("gate", "up", "down"))
        shared = (gelu(x @ gate) * (x @ up)) @ down
    if spec.shared_gate:
        shared = shared / (1 + np.exp(-(x @ w["shared_weight/kernel"])))
    if spec.separate_norms:
        own = normed(own, w["post_experts_norm/scale"])
        shared = normed(shared, w["post_shared_norm/scale"])
    return own + shared


@pytest.mark.parametrize("spec", [PLAIN, QWEN, GEMMA, ALL], ids=["plain", "qwen", "gemma", "all"])
def test_each_token_is_what_arithmetic_makes_of_it(spec):
    layer, x, residual = made(spec), states(0), 2 * states(1)
    found = to_numpy(layer(x, np.ones((1, 1), bool), residual)[0])
    expected = [[by_hand(layer, *each) for each in zip(*rows, strict=True)] for rows in
                zip(np.float64(x), np.float64(residual), strict=True)]  # fmt: skip
    scale = np.abs(expected).max()
    assert_close(found / scale, np.array(expected) / scale, 1e-5)


def test_padding_goes_through_the_shared_expert_alone():
    layer, x = made(QWEN), states(0)
    output, load = layer(x, np.zeros((1, 1), bool))
    alone = GatedFeedForward(9, "gelu_tanh")
    alone.build(x.shape)
    alone.set_weights(layer.shared.get_weights())
    opened = 1 / (1 + np.exp(-(x @ to_numpy(layer.shared_weight.kernel))))
    assert_close(to_numpy(output), opened * to_numpy(alone(x)), 1e-5)
    assert not to_numpy(load).any()


def test_a_layer_comes_back_from_its_config():
    layer, x = made(ALL), states(0)
    config = json.loads(json.dumps(layer.get_config()))
    again = MixtureOfExperts.from_config(config)
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    assert again.spec == ALL
    some, other = (to_numpy(one(x, np.ones((1, 1), bool))[0]) for one in (again, layer))
    np.testing.assert_array_equal(some, other)


def test_a_spec_from_before_these_fields_is_read():
    spec = tiny_encoder(experts=PLAIN)
    data = json.loads(json.dumps(dataclasses.asdict(spec)))
    for field in ("shared_dim", "shared_gate", "separate_norms", "router_norm", "expert_scale"):
        del data["experts"][field]
    assert stack_from_json(data) == spec


def test_gemma_4_26b_a4b_by_its_config():
    """The count is that of Gemma4ForCausalLM in transformers 5.23 on its meta device."""
    spec = known.spec_of(A4B)
    assert spec.experts.shared_dim == spec.feedforward_dim == 2112
    assert count_parameters(spec.weights()) == 25_233_141_760 + 30  # layer_scalar, a buffer there
    active = count_parameters(spec.weights()) - spec.idle_parameters
    assert 3.7e9 < active < 3.9e9  # "A4B": 3.8 billion by the model's card


def test_what_a_token_goes_through_is_counted():
    dense = tiny_encoder(feedforward_dim=2 * 24)
    spec = tiny_encoder(experts=dataclasses.replace(ALL, expert_dim=24, shared_dim=40))
    d, layers, tokens = 48, 4, 16
    products = layers * (d * 5 + 3 * d * 40 + d)  # router, shared expert, its weight
    more = forward_flops(spec, 10, 6).linear - forward_flops(dense, 10, 6).linear
    assert more == 2 * products * tokens
    numbers = layers * (d + 2 + 3 * d)  # scales of the router and of two experts, three norms
    active = count_parameters(spec.weights()) - spec.idle_parameters
    assert active == count_parameters(dense.weights()) + products + numbers
    assert f"{2 * spec.idle_parameters:,}" not in make_plan(dense).summary()
    assert "active for a token" in make_plan(spec).summary()


def gradients(backbone):
    inputs = make_inputs((20, 13), (16, 9))
    real = ops.cast(inputs["decoder_padding_mask"][..., None] > 0, "float32")

    def loss():
        found = backbone(inputs, training=True)["decoder_sequence_output"]
        return ops.sum(ops.square(found * real))

    return value_and_gradients(loss, backbone.trainable_variables)[1]


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="blocks are scanned on JAX")
def test_remat_and_scan_change_no_gradient():
    encoder = tiny_encoder(windows=(8,) * 4, experts=GEMMA)
    decoder = tiny_decoder(windows=(6,) * 3, experts=QWEN)
    backbone = tiny_backbone(tiny_pair(encoder=encoder, decoder=decoder))
    expected = gradients(backbone)
    for setting in ("remat", "scan"):
        setattr(backbone, setting, True)  # the second beside the first
        for array, value in zip(gradients(backbone), expected, strict=True):
            scale = max(np.abs(value).max(), 1e-6)
            assert_close(array / scale, value / scale, 2e-5)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="meshes are JAX's")
def test_every_weight_has_a_place_on_a_mesh():
    pair = tiny_pair(encoder=tiny_encoder(experts=ALL), decoder=tiny_decoder(experts=QWEN))
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"))
    for spec in (pair, None):
        layout_map = EncDecBackbone.get_layout_map(mesh, spec)
        for path, shape in pair.weights().items():
            assert len(layout_map[path].axes) <= len(shape), path


def test_a_card_says_that_there_is_one():
    pair = tiny_pair(encoder=tiny_encoder(experts=ALL), decoder=tiny_decoder(experts=PLAIN))
    text = card_text.marked_part({"sources": {}, "history": []}, pair, "./it", False)
    assert "| experts | 5, 2 for a token and one that all share | 5, 2 for a token |" in text


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma4_moe", {"top_k_experts": 7}, "top_k of at most num_experts"),
        ("gemma4_moe", {"num_experts": None}, "num_experts of MoESpec"),
        ("gemma4_moe", {"moe_intermediate_size": None}, "expert_dim of MoESpec"),
        (
            "gemma4_moe",
            {"use_double_wide_mlp": True, "num_kv_shared_layers": 1},
            "use_double_wide_mlp=False beside experts",
        ),
        ("qwen2_moe", {"mlp_only_layers": [0, 1, 2, 3]}, "experts in layers that there are"),
        ("qwen2_moe", {"hidden_act": "relu"}, "hidden_act='silu'"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}, "shared_dim of MoESpec"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size=8"),
    ],
)
def test_what_a_spec_cannot_express_is_named(name, change, message, tmp_path):
    folder = write_folder(tmp_path / name, name)
    (folder / "config.json").write_text(json.dumps({**facts_of(name)["config"], **change}))
    with pytest.raises(ValueError, match=f"(?s)Expected .*{message}"):
        keras_encdec.adapt(folder)


def test_the_text_part_of_a_model_that_reads_images_too(tmp_path):
    text, whole = write_folder(tmp_path / "text", "gemma4_moe"), tmp_path / "whole"
    whole.mkdir()
    tensors = load_file(text / "model.safetensors")
    inside = {n.replace("model.", "model.language_model.", 1): a for n, a in tensors.items()}
    inside["model.vision_tower.encoder.weight"] = np.zeros(3, "float32")
    save_file(inside, whole / "model.safetensors")
    config = {"model_type": "gemma4", "vision_config": {}, "tie_word_embeddings": True}
    config["text_config"] = facts_of("gemma4_moe")["config"]
    (whole / "config.json").write_text(json.dumps(config))
    found, expected = (EncoderBackbone.from_preset(folder) for folder in (whole, text))
    assert found.spec == expected.spec
    for ours, theirs in zip(found.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


def test_a_dense_gemma_4_may_have_null_fields_of_experts():
    config = facts_of("gemma4")["config"]
    assert config["num_experts"] is None
    assert known.spec_of(config).experts is None


def test_a_window_of_qwen_2_moe_where_a_config_has_no_layer_types():
    """As Qwen/Qwen1.5-MoE-A2.7B's has none, and no window."""
    config = facts_of("qwen2_moe")["config"]
    older = {name: value for name, value in config.items() if name != "layer_types"}
    assert known.spec_of(older) == known.spec_of(config)
    assert known.spec_of(older).windows == (6, None, 6, None)
    assert set(known.spec_of({**older, "use_sliding_window": False}).windows) == {None}
    del older["use_sliding_window"]
    assert set(known.spec_of(older).windows) == {None}
