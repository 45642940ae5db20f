"""Experts beside arithmetic in float64, one token and one expert after another."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

import keras_encdec
from keras_encdec.conversion.effective import effective_weights
from keras_encdec.conversion.plan import make_plan
from keras_encdec.evaluation import forward_flops
from keras_encdec.layers import ragged
from keras_encdec.layers.experts import MixtureOfExperts, busiest, unevenness
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.spec import MoESpec, count_parameters
from keras_encdec.spec.experts import of_kept_layers
from keras_encdec.testing.models import assert_close, draw, make_inputs, tiny_backbone, to_numpy
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair
from keras_encdec.training import pretrained

SPEC = MoESpec(num_experts=5, top_k=2, expert_dim=12, balance_weight=0.5)
PRODUCTS = ("gate", "up", "down")
IS_TOKEN = np.array([[1] * 7, [1, 1, 1, 0, 1, 0, 0]], bool)


@pytest.fixture(scope="module")
def states():
    return np.random.default_rng(0).normal(size=(2, 7, 8)).astype("float32")


@pytest.fixture(scope="module")
def layer(states):
    made = MixtureOfExperts(SPEC)
    made.build(states.shape)
    for weight in made.weights:
        weight.assign(draw(weight.path, weight.shape) * 3)
    return made


@pytest.fixture(scope="module")
def lm():
    """Experts in two of four layers of the encoder, and in all of the decoder."""
    encoder = tiny_encoder(experts=MoESpec(5, 2, 24, layers=(1, 3)))
    decoder = tiny_decoder(experts=MoESpec(4, 3, 20, renormalize=False))
    return EncDecSeq2SeqLM(tiny_backbone(tiny_pair(encoder=encoder, decoder=decoder)))


def by_hand(layer, states, is_token, renormalize=True):
    """Output, tokens by expert and sums of probabilities, in float64."""
    own = {w.path.split("/", 1)[1]: np.float64(to_numpy(w)) for w in layer.weights}
    scales = [own.get(f"experts/{name}_scale", np.ones(1)) for name in PRODUCTS]
    gate, up, down = (
        own[f"experts/{name}"] / scale[..., None, :]
        for name, scale in zip(PRODUCTS, scales, strict=True)
    )
    biases = [own.get(f"experts/{name}_bias", np.zeros(SPEC.num_experts)) for name in PRODUCTS]
    output, load = np.zeros(states.shape), np.zeros((2, SPEC.num_experts))
    for place in zip(*np.nonzero(is_token), strict=True):
        x = np.float64(states[place])
        logits = x @ own["router/kernel"] + own.get("router/bias", 0)
        given = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(-given)[: SPEC.top_k]
        weights = given[chosen] / (given[chosen].sum() if renormalize else 1)
        for expert, weight in zip(chosen, weights, strict=True):
            g, u = x @ gate[expert] + biases[0][expert], x @ up[expert] + biases[1][expert]
            if layer.activation == "silu":
                hidden = g / (1 + np.exp(-g)) * u
            else:
                g, u = np.minimum(g, 7), np.minimum(np.maximum(u, -7), 7)
                hidden = (u + 1) * g / (1 + np.exp(-1.702 * g))
            output[place] += weight * (hidden @ down[expert] + biases[2][expert])
            load[0, expert] += 1
        load[1] += given
    return output, load


def test_tokens_go_through_their_experts_and_padding_through_none(layer, states):
    output, load = layer(states, IS_TOKEN)
    expected = by_hand(layer, states, IS_TOKEN)
    scale = np.abs(expected[0]).max()  # sums of large numbers, some of which are near 0
    assert_close(to_numpy(output) / scale, expected[0] / scale, 1e-5)
    assert_close(to_numpy(load), expected[1], 1e-5)
    assert np.ptp(expected[1][0]) > 2  # uneven


def test_biases_and_a_clamped_gate(states):
    """As of gpt-oss; some of what goes into the activation is beyond its limit, on all sides."""
    spec = dataclasses.replace(SPEC, router_bias=True, expert_bias=True)
    layer = MixtureOfExperts(spec, "clamped_swiglu")
    layer.build(states.shape)
    for weight in layer.weights:
        values = draw(weight.path, tuple(weight.shape)) * 3
        weight.assign(
            values * 4 if "gate_bias" in weight.path or "up_bias" in weight.path else values
        )
    output, load = layer(states, IS_TOKEN)
    expected = by_hand(layer, states, IS_TOKEN)
    scale = np.abs(expected[0]).max()
    assert_close(to_numpy(output) / scale, expected[0] / scale, 1e-5)
    assert_close(to_numpy(load), expected[1], 1e-5)
    assert not to_numpy(output)[~IS_TOKEN].any()
    for bias in (layer.experts.gate_bias, layer.experts.up_bias):
        assert np.abs(to_numpy(bias)).max() > 7 > np.abs(to_numpy(bias)).min()


def test_weights_need_not_add_up_to_one(layer, states):
    other = MixtureOfExperts({**layer.get_config()["spec"], "renormalize": False})
    other.build(states.shape)
    other.set_weights(layer.get_weights())
    expected = by_hand(layer, states, IS_TOKEN, renormalize=False)[0]
    scale = np.abs(expected).max()
    assert_close(to_numpy(other(states, IS_TOKEN)[0]) / scale, expected / scale, 1e-5)


def test_the_loss_of_uneven_experts_is_that_of_the_paper(layer, states):
    load = by_hand(layer, states, IS_TOKEN)[1]
    tokens = IS_TOKEN.sum()
    expected = SPEC.num_experts * (load[0] / tokens * load[1] / tokens).sum()
    even = np.stack([np.full(5, 2.0 * tokens / 5), np.full(5, tokens / 5)])
    loads = ops.convert_to_tensor(np.stack([load, even]).astype("float32"))
    assert_close(to_numpy(unevenness(loads, SPEC)), (expected + SPEC.top_k) / 2)
    assert_close(to_numpy(busiest(loads)), (load[0].max() / load[0].mean() + 1) / 2)
    nothing = unevenness(loads * 0, SPEC)
    assert float(nothing) == 0


def test_in_int8_experts_compute_with_what_their_codes_stand_for(states):
    """Each number within half a step of 1/127 of its column's largest; biases stay."""
    spec = dataclasses.replace(SPEC, router_bias=True, expert_bias=True)
    layer = MixtureOfExperts(spec, "clamped_swiglu")
    layer.build(states.shape)
    for weight in layer.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)) * 3)
    before = {name: to_numpy(getattr(layer.experts, name)) for name in PRODUCTS}
    plain = by_hand(layer, states, IS_TOKEN)[0]
    trained = {w.path for w in layer.trainable_weights if "bias" in w.path or "router" in w.path}
    layer.experts.quantize("int8")
    for name, kernel in before.items():
        codes, scale = (getattr(layer.experts, name + end) for end in ("", "_scale"))
        assert str(codes.dtype) == "int8"
        step = np.abs(kernel).max(axis=1, keepdims=True) / 127
        error = np.abs(to_numpy(codes) / to_numpy(scale)[:, None] - kernel)
        assert (error <= step / 2 * 1.001).all()
    expected = by_hand(layer, states, IS_TOKEN)[0]
    output = to_numpy(layer(states, IS_TOKEN)[0])
    size = np.abs(expected).max()
    assert_close(output / size, expected / size, 1e-5)
    assert 1e-4 < np.abs(output - plain).max() / size < 0.05
    assert {w.path for w in layer.trainable_weights} == trained


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX on CPUs")
def test_a_product_of_codes_has_the_gradients_of_what_they_stand_for():
    import jax

    rng = np.random.default_rng(2)
    rows, sizes = rng.normal(size=(60, 6)).astype("float32"), np.array([30, 0, 1, 20], "int32")
    codes = rng.integers(-127, 128, (4, 6, 9)).astype("int8")
    scales = rng.uniform(20, 90, (4, 9)).astype("float32")
    meant = codes / scales[:, None]

    def squares(rows, *matrices):
        return (ragged.product(rows, *matrices) ** 2).sum()

    ours = jax.jit(jax.value_and_grad(squares))(rows, codes, sizes, scales)
    theirs = jax.jit(jax.value_and_grad(squares))(rows, meant, sizes)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(to_numpy(a), to_numpy(b), 1e-5)


@pytest.mark.slow
def test_experts_in_int8_are_saved_and_read_back_and_train_with_lora(tmp_path):
    """A preset computes the same, conversion reads what codes stand for, LoRA leaves them alone."""
    encoder = tiny_encoder(experts=MoESpec(5, 2, 24, layers=(1, 3)))
    decoder = tiny_decoder(experts=MoESpec(4, 3, 20, renormalize=False))
    lm = EncDecSeq2SeqLM(tiny_backbone(tiny_pair(encoder=encoder, decoder=decoder)))
    inputs = make_inputs()
    lm.quantize("int8", filters=pretrained)
    codes = {w.path: to_numpy(w) for w in lm.weights if "/experts/" in w.path}
    assert {str(w.dtype) for w in lm.weights if w.path in codes} == {"int8", "float32"}
    assert len(codes) == 6 * (2 + 2)
    expected = lm.predict(inputs, verbose=0)
    lm.save_to_preset(tmp_path / "kept")
    again = keras_encdec.from_preset(tmp_path / "kept")
    assert_close(again.predict(inputs, verbose=0), expected, 1e-5)
    found = effective_weights(again.backbone)
    for path, values in codes.items():
        if not path.endswith("_scale"):
            meant = values / codes[f"{path}_scale"][:, None]
            assert_close(found[path], meant, 1e-6)
    lm.backbone.enable_lora(2)
    lm.compile(keras.optimizers.SGD(0.1))
    labels, weight = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
    losses = [float(lm.train_on_batch(inputs, labels, weight)[0]) for _ in range(8)]
    assert losses[-1] < losses[0]
    for path, values in codes.items():
        (found,) = [w for w in lm.weights if w.path == path]
        assert np.array_equal(to_numpy(found), values)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX on CPUs")
def test_a_ragged_product_and_its_gradients_are_those_of_jax():
    import jax

    rng = np.random.default_rng(1)
    rows, matrices = rng.normal(size=(300, 6)), rng.normal(size=(4, 6, 9))
    rows, matrices = rows.astype("float32"), matrices.astype("float32")
    for sizes in ([150, 0, 1, 129], [0, 300, 0, 0]):
        sizes = np.array(sizes, "int32")

        def squares(rows, matrices, product, sizes=sizes):
            return (product(rows, matrices, sizes) ** 2).sum()

        ours, theirs = (
            jax.jit(jax.value_and_grad(squares, (0, 1)), static_argnums=2)(rows, matrices, product)
            for product in (ragged.product, jax.lax.ragged_dot)
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert_close(to_numpy(a), to_numpy(b), 1e-4)


@pytest.mark.slow
def test_training_adds_the_loss_and_logs_the_load(lm):
    lm.compile(keras.optimizers.SGD(0.0))
    inputs = make_inputs()
    labels, weight = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
    logs = lm.train_on_batch(inputs, labels, weight, return_dict=True)
    added = float(logs["loss"]) - np.log(float(logs["perplexity"]))
    assert 0.001 * (2 + 3) < added < 0.001 * (5 + 4)  # k where experts are even, E where one is all
    assert 1 < float(logs["encoder_expert_load"]) < 5 / 2
    assert 1 < float(logs["decoder_expert_load"]) < 4 / 3
    held = lm.test_on_batch(inputs, labels, weight, return_dict=True)
    assert float(held["loss"]) == pytest.approx(np.log(float(held["perplexity"])))
    assert not any("expert" in name for name in held)


def test_what_experts_do_not_have_is_refused_by_name(lm):
    own = keras.quantizers.Int8QuantizationConfig(keras.quantizers.AbsMaxQuantizer(axis=0))
    for mode, config in (("int4", None), ("float8", None), (None, own)):
        with pytest.raises(ValueError, match="Expected mode='int8' for a model with experts"):
            lm.quantize(mode, config=config)
    with pytest.raises(ValueError, match="Expected target_layer_names"):
        lm.backbone.enable_lora(2, ["router"])
    with pytest.raises(ValueError, match="Expected experts=None, all that the T5Gemma"):
        lm.export_to_transformers("not_written")
    sizes = {"batch_size": 1, "source_length": 8, "target_length": 8}
    with pytest.raises(ValueError, match=r"Expected no experts.*5 in the encoder"):
        keras_encdec.training.estimate(lm.backbone, **sizes)


def test_fewer_layers_keep_their_experts():
    experts = MoESpec(5, 2, 24, layers=(1, 3))
    assert of_kept_layers(experts, [1, 2]).layers == (0,)
    assert of_kept_layers(experts, [0, 2]) is None
    assert make_plan(tiny_encoder(experts=experts), decoder_layers=[1, 3]).pair.decoder == (
        tiny_encoder(experts=MoESpec(5, 2, 24), windows=(None, None))
    )
    every = tiny_encoder(experts=MoESpec(5, 2, 24, layers=(3, 2, 1, 0)))
    assert every.experts.layers is None


def test_what_a_token_goes_through_is_counted():
    dense = tiny_encoder(feedforward_dim=3 * 24)
    sparse = tiny_encoder(experts=MoESpec(5, 3, 24))
    router = 4 * 48 * 5
    active = count_parameters(sparse.weights()) - sparse.idle_parameters
    assert active == count_parameters(dense.weights()) + router
    more = forward_flops(sparse, 10, 6).linear - forward_flops(dense, 10, 6).linear
    assert more == 2 * router * 16
    biased = dataclasses.replace(sparse.experts, router_bias=True, expert_bias=True)
    biased = dataclasses.replace(sparse, experts=biased)
    active = count_parameters(biased.weights()) - biased.idle_parameters
    each = 3 * (24 + 24 + 48)  # the three experts of a token
    assert active == count_parameters(dense.weights()) + router + 4 * (5 + each)
    assert forward_flops(biased, 10, 6) == forward_flops(sparse, 10, 6)  # which counts no biases
    assert f"{2 * 4 * 3 * 2 * 48 * 24:,}" not in make_plan(dense).summary()
    assert "active for a token" in make_plan(sparse).summary()
