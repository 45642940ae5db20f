"""gpt-oss: what its configs say, YaRN, weights in MXFP4, gradients, and where sinks go."""

import json

import ml_dtypes
import numpy as np
import pytest
from drawn import drawn
from keras import ops
from reference_folder import facts_of, write_folder
from safetensors.numpy import load_file, save_file

import keras_encdec
from keras_encdec.conversion.mxfp4 import dequantized
from keras_encdec.conversion.plan import make_plan
from keras_encdec.families import dialect, known
from keras_encdec.families.transformers import rope_parameters, rotary_of
from keras_encdec.layers.rotary import timescales
from keras_encdec.models import EncoderBackbone
from keras_encdec.spec import MoESpec, RotarySpec, count_parameters
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.testing.models import assert_close, silence_cross_attention, to_numpy
from keras_encdec.testing.specs import sunk, tiny_decoder, tiny_encoder

# As in config.json of openai/gpt-oss-20b.
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
YARN |= {"original_max_position_embeddings": 4096, "truncate": False}
RELEASED = {"model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "head_dim": 64}
RELEASED |= {"intermediate_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64}
RELEASED |= {"num_key_value_heads": 8, "num_local_experts": 32, "num_experts_per_tok": 4}
RELEASED |= {"rms_norm_eps": 1e-5, "sliding_window": 128, "rope_theta": 150000}
RELEASED |= {"rope_scaling": YARN, "router_aux_loss_coef": 0.9, "attention_bias": True}
RELEASED |= {"experts_per_token": 4, "initial_context_length": 4096, "swiglu_limit": 7.0}
RELEASED |= {"hidden_act": "silu", "tie_word_embeddings": False, "output_router_logits": False}
RELEASED |= {"layer_types": ["sliding_attention", "full_attention"] * 12}
RELEASED |= {
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
}
LARGER = {"num_hidden_layers": 36, "num_local_experts": 128}
LARGER |= {"layer_types": ["sliding_attention", "full_attention"] * 18}


def test_a_released_config():
    spec = known.spec_of(RELEASED)
    assert spec.windows == (128, None) * 12
    assert spec.experts == MoESpec(32, 4, 2880, True, 0.9, router_bias=True, expert_bias=True)
    grown = spec.rotary.attention_factor
    assert grown == pytest.approx(0.1 * np.log(32) + 1)  # arXiv 2309.00071, equation 22
    yarn = {"attention_factor": grown, "yarn": True, "truncate": False}
    assert spec.rotary == RotarySpec(150000.0, 32.0, 1.0, 32.0, 4096, **yarn)
    assert (spec.activation, spec.post_norm, spec.tied_output) == ("clamped_swiglu", False, False)
    left_out = ("rope_theta", "rope_scaling", "layer_types")  # by default these, in GptOssConfig
    assert known.spec_of({k: v for k, v in RELEASED.items() if k not in left_out}) == spec


@pytest.mark.parametrize(
    ("changes", "total", "active"), [({}, 20.91, 3.61), (LARGER, 116.83, 5.13)]
)
def test_parameters_are_those_of_the_model_card(changes, total, active):
    """Table 1 of arXiv 2508.10925, in billions; active without the embedding that is looked up."""
    spec = known.spec_of(RELEASED | changes)
    every = count_parameters(spec.weights())
    assert round(every / 1e9, 2) == total
    looked_up = spec.vocabulary_size * spec.width
    assert round((every - spec.idle_parameters - looked_up) / 1e9, 2) == active


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"swiglu_limit": 5.0}, "swiglu_limit=7.0. Received: 5.0"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha=1.702"),
        ({"hidden_act": "gelu"}, "hidden_act='silu'"),
        ({"experts_per_token": 2}, "experts_per_token=4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "in MXFP4.*quant_method='fp8'"),
        ({"rope_scaling": {**YARN, "factor": None}}, "config whose fields"),
        ({"rope_scaling": {**YARN, "ramp": "cosine"}}, "ramp='cosine'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.0"),
        ({"shared_experts": 1}, "shared_experts=1"),
    ],
)
def test_what_a_spec_cannot_express_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        known.spec_of(RELEASED | change)


TINY_YARN = {**YARN, "factor": 4.0, "original_max_position_embeddings": 64}
KINDS = {
    "released": ({"rope_theta": 150000.0, **YARN}, 64),
    "whole pairs": ({"rope_theta": 150000.0, **YARN, "truncate": True}, 64),
    "by default": ({"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0,
                    "original_max_position_embeddings": 32768}, 128),
    "beyond both ends": ({"rope_theta": 100.0, **TINY_YARN, "beta_slow": 1e-9}, 12),
    "no pair between": ({"rope_theta": 1e4, **TINY_YARN, "beta_fast": 9.0, "beta_slow": 9.0}, 16),
    "a factor that is said": ({"rope_theta": 1e4, **TINY_YARN, "attention_factor": 1.7}, 16),
    "two scales": ({"rope_theta": 1e4, **TINY_YARN, "mscale": 0.7, "mscale_all_dim": 1.1}, 16),
    "one scale": ({"rope_theta": 1e4, **TINY_YARN, "mscale": 0.7}, 16),
    "no longer": ({"rope_theta": 1e4, **TINY_YARN, "factor": 1.0}, 16),
}  # fmt: skip


@pytest.mark.transformers
@pytest.mark.parametrize(("parameters", "width"), KINDS.values(), ids=KINDS)
def test_yarn_is_that_of_transformers(parameters, width):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    sizes = {"hidden_size": 8 * width, "num_attention_heads": 8, "head_dim": width}
    config = transformers.GptOssConfig(rope_parameters=dict(parameters), **sizes)
    speeds, factor = ROPE_INIT_FUNCTIONS["yarn"](config)
    rotary = rotary_of(parameters)
    assert rotary.attention_factor == pytest.approx(factor, abs=1e-12)
    np.testing.assert_allclose(1 / timescales(rotary, width), speeds.numpy(), rtol=2e-6)
    assert rotary_of(rope_parameters(rotary)) == rotary


def test_mxfp4_by_hand():
    """Two numbers a byte, the lower half first; a scale of 127 is 1."""
    blocks, scales = np.zeros((1, 1, 2, 16), "uint8"), np.array([[[127, 130]]], "uint8")
    blocks[0, 0, 0, :3] = 0x21, 0xF7, 0x08
    blocks[0, 0, 1, 15] = 0x9A
    expected = np.zeros(64)
    expected[:6] = 0.5, 1, 6, -6, -0.0, 0
    expected[62:] = -8, -4  # -1 and -0.5, times 2^3
    found = dequantized(blocks, scales)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found[0, 0].astype("float64"), expected)
    assert np.signbit(found[0, 0, 4].astype("float64"))


def packed(shape):
    """Random blocks and scales of a tensor (E, C, R)."""
    rng, (experts, columns, rows) = np.random.default_rng(0), shape
    blocks = rng.integers(0, 256, (experts, rows, columns // 32, 16), "uint8")
    return blocks, rng.integers(120, 128, blocks.shape[:3], "uint8")


def unpacked(blocks, scales):
    """As transformers has it."""
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    pair = torch.from_numpy(blocks), torch.from_numpy(scales)
    return mxfp4.convert_moe_packed_tensors(*pair, dtype=torch.float32).numpy()


@pytest.mark.transformers
def test_mxfp4_is_that_of_transformers_bit_for_bit():
    """Every byte at every scale of which a bfloat16 has a number, the smallest ones too."""
    blocks = np.tile(np.arange(256, dtype="uint8").reshape(1, 1, 16, 16), (1, 252, 1, 1))
    scales = np.broadcast_to(np.arange(1, 253, dtype="uint8")[None, :, None], (1, 252, 16)).copy()
    found = dequantized(blocks, scales).swapaxes(1, 2)
    assert found.astype("float32").tobytes() == unpacked(blocks, scales).tobytes()


WIDTHS = {40: 64, 72: 32, 144: 64}  # that blocks of 32 divide


def folders(tmp_path):
    """The same numbers in two folders: as the released ones lie, and in float."""
    facts = facts_of("gpt_oss")
    config = facts["config"] | {"hidden_size": 64, "intermediate_size": 32}
    tensors, in_blocks = {}, {}
    for name, shape in facts["tensors"].items():
        shape = [WIDTHS.get(n, n) for n in shape]
        if not name.endswith("_proj"):
            in_blocks[name] = tensors[name] = drawn(name, shape, False)
            continue
        blocks, scales = packed(shape)
        in_blocks |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[name] = unpacked(blocks, scales)
    quantized = config | {"quantization_config": {"quant_method": "mxfp4"}}
    for name, own, of in (("float", config, tensors), ("mxfp4", quantized, in_blocks)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(own))
        save_file(of, tmp_path / name / "model.safetensors")
    return tmp_path / "mxfp4", tmp_path / "float"


@pytest.mark.transformers
def test_a_folder_in_mxfp4_is_the_one_in_float(tmp_path):
    pairs = [keras_encdec.adapt(folder, decoder_layers=1).backbone for folder in folders(tmp_path)]
    for ours, expected in zip(*(pair.weights for pair in pairs), strict=True):
        if "cross_attention" not in ours.path:
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(expected), err_msg=ours.path)
    encoder = EncoderBackbone.from_preset(tmp_path / "mxfp4", dtype="bfloat16")
    encoder.export_to_transformers(tmp_path / "out")
    written, source = (
        load_file(tmp_path / name / "model.safetensors") for name in ("out", "float")
    )
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    for name in (n for n in source if n.endswith("_proj")):
        assert written[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(written[name].astype("float32"), source[name])


@pytest.mark.transformers
def test_blocks_without_their_scales_are_named(tmp_path):
    folder, _ = folders(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts\.down_proj is missing"):
        keras_encdec.adapt(folder)


@pytest.mark.slow
@pytest.mark.transformers
def test_gradients_are_those_of_transformers(tmp_path):
    """Of every weight of the decoder: sinks, biases, router and experts among them."""
    import torch
    import transformers

    folder = write_folder(tmp_path / "gpt_oss", "gpt_oss")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    rng = np.random.default_rng(0)
    ids, pull = rng.integers(3, 96, (2, 20)), rng.normal(size=(2, 20, 96)).astype("float32")
    (theirs(torch.from_numpy(ids)).logits * torch.from_numpy(pull)).sum().backward()
    given = {name: p.grad.numpy() for name, p in theirs.named_parameters()}

    backbone = keras_encdec.adapt(folder).backbone
    silence_cross_attention(backbone)
    decoder, mask = backbone.decoder, np.ones(ids.shape, "int32")
    states, pull = ops.zeros((*ids.shape, 40)), ops.convert_to_tensor(pull)
    ours = [v for v in decoder.trainable_variables if "cross_attention" not in v.path]
    _, found = value_and_gradients(
        lambda: ops.sum(decoder.logits(decoder(ids.astype("int32"), mask, states, mask)) * pull),
        ours,
    )
    rules = known.of_model_type("gpt_oss").transformers
    bound = dialect.bind(rules, backbone.spec.decoder.weights())
    assert len(ours) == len(bound)
    for variable, gradient in zip(ours, found, strict=True):
        expected = bound[variable.path.removeprefix("decoder/")].to_ours(given.__getitem__)
        scale = np.abs(expected).max()
        if not variable.path.endswith("key/bias"):  # which all logits of a query have but the sink
            assert scale > 1e-2, variable.path
        assert_close(gradient / scale, expected / scale, 2e-4)


def test_cross_attention_has_sinks_of_its_own_that_start_as_those_of_self_attention():
    spec = sunk(tiny_encoder())
    steps = {step.target: step for step in make_plan(spec).steps}
    of_layer = ("source", "block_0/attention/sinks")
    assert steps["decoder/block_0/attention/sinks"].source == of_layer
    assert steps["decoder/block_0/cross_attention/sinks"].source == of_layer
    expanded = {step.target: step for step in make_plan(spec, expand_gqa=True).steps}
    assert expanded["encoder/block_0/attention/sinks"].repeat == 1  # of query heads
    merged = make_plan(spec, merged_attention=True).pair.weights()
    assert sum(name.endswith("/sinks") for name in merged) == 2 * spec.num_layers
    fresh = make_plan(spec, sunk(tiny_decoder())).fresh
    assert "decoder/block_0/cross_attention/sinks" in {step.target for step in fresh}
