"""Effective weights are what a model computes with, each computed here a second time by hand."""

import keras
import keras_hub
import ml_dtypes
import numpy as np
import pytest

import keras_encdec
from keras_encdec.conversion.effective import effective_weights
from keras_encdec.conversion.sources import ModelSource
from keras_encdec.models import EncDecBackbone
from keras_encdec.testing.models import (
    assert_close,
    draw,
    logits_without_input,
    make_inputs,
    run,
    tiny_backbone,
    tiny_lm,
    to_numpy,
)
from keras_encdec.testing.specs import other_pair, tiny_pair

LORA = ["query", "value", "attention_output", "gate", "down", "embedding"]
QUERY = "decoder/block_1/attention/query/kernel"
OUTPUT = "decoder/block_1/attention/attention_output/kernel"
GATE = "encoder/block_0/feedforward/gate/kernel"
EMBEDDING = "encoder/embedding/embeddings"
WRITES = "decoder/embedding/reverse_embeddings"


def with_lora(backbone, names=LORA, rank=3):
    """LoRA whose b factors are not 0, with an alpha that is not the rank."""
    backbone.enable_lora(rank, names, train_cross_attention=False)
    for variable in backbone.weights:
        if variable.name.startswith("lora_"):
            variable.assign(0.3 * draw(variable.path, tuple(variable.shape)))
    for layer in backbone._flatten_layers():
        if getattr(layer, "lora_enabled", False):
            layer.lora_alpha = 5
    return backbone


def layer_of(backbone, path):
    return next(x for x in backbone._flatten_layers() if x.path == path.rpartition("/")[0])


def numbers(variable):
    return np.asarray(to_numpy(variable.value), "float64")


def computing_with(weights, pair):
    """A float model of these weights."""
    model = EncDecBackbone.of(pair)
    for variable in model.weights:
        variable.assign(weights[variable.path])
    return model


def test_of_a_float_model_they_are_its_variables():
    backbone = tiny_backbone(other_pair())
    weights = effective_weights(backbone)
    assert list(weights) == [v.path for v in backbone.weights]
    for variable in backbone.weights:
        np.testing.assert_array_equal(weights[variable.path], to_numpy(variable.value))


def test_lora_is_merged():
    backbone = with_lora(tiny_backbone(other_pair()))
    weights = effective_weights(backbone)
    assert {k: v.shape for k, v in weights.items()} == other_pair().weights()
    for path, name in {QUERY: "kernel", GATE: "kernel", EMBEDDING: "embeddings"}.items():
        layer = layer_of(backbone, path)
        base = numbers(getattr(layer, f"_{name}"))
        a, b = (numbers(getattr(layer, f"lora_{name}_{side}")) for side in "ab")
        expected = base + 5 / 3 * np.einsum("...r,ro->...o", a, b)
        assert np.abs(weights[path] - base).max() > 0.1
        np.testing.assert_allclose(weights[path], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make_pair", [tiny_pair, other_pair])
def test_a_model_of_them_computes_what_lora_computes(make_pair):
    backbone = with_lora(tiny_backbone(make_pair()))
    found = run(computing_with(effective_weights(backbone), make_pair()), make_inputs())
    expected = run(backbone, make_inputs())
    without = run(tiny_backbone(make_pair()), make_inputs())
    for name in expected:
        assert_close(found[name], expected[name], 1e-5)
        assert np.abs(without[name] - expected[name]).max() > 0.1


def test_int8_is_codes_over_scales():
    """Keras' scale is 127 over the largest of a channel: it multiplies on the way in."""
    backbone = tiny_backbone(other_pair())
    before = {v.path: to_numpy(v.value) for v in backbone.weights}
    backbone.quantize("int8")
    weights = effective_weights(backbone)
    assert {k: v.shape for k, v in weights.items()} == other_pair().weights()
    axes = {QUERY: 0, OUTPUT: (0, 1), GATE: 0, EMBEDDING: 1, WRITES: 0}
    for path, reduced in axes.items():
        scale = 127 / np.abs(before[path]).max(axis=reduced, keepdims=True)
        codes = np.round(before[path] * scale)
        np.testing.assert_allclose(weights[path], codes / scale, rtol=1e-5, atol=1e-7)
        layer, kind = layer_of(backbone, path), path.rpartition("/")[2]
        kept = getattr(layer, kind if kind == "reverse_embeddings" else f"_{kind}")
        np.testing.assert_array_equal(codes, numbers(kept))
    norm = "decoder/block_1/pre_feedforward_norm/scale"
    np.testing.assert_array_equal(weights[norm], before[norm])


def unpacked(bytes_, axis):
    """Two's complement halves of bytes: low, high, low, high, ..."""
    low, high = bytes_ & 15, (bytes_ >> 4) & 15
    both = np.stack([low, high], axis=axis + 1 if axis >= 0 else axis)
    shape = list(bytes_.shape)
    shape[axis] *= 2
    return np.where(both > 7, both - 16, both).reshape(shape)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [32, -1])
def test_int4_is_codes_with_scales_and_zero_points(block_size):
    """Kernels count as rows x columns; a group is `block_size` rows of a column."""
    backbone = tiny_backbone(other_pair())
    backbone.quantize(config=keras.quantizers.Int4QuantizationConfig(block_size=block_size))
    weights = effective_weights(backbone)
    assert {k: v.shape for k, v in weights.items()} == other_pair().weights()
    for path, rows in {QUERY: 42, OUTPUT: 72, GATE: 48, WRITES: 42, EMBEDDING: 48}.items():
        layer, kind = layer_of(backbone, path), path.rpartition("/")[2]
        kept = getattr(layer, kind if kind == "reverse_embeddings" else f"_{kind}")
        axis = 0 if kind == "reverse_embeddings" else -1
        codes = unpacked(to_numpy(kept.value).astype(int) & 255, axis)
        scale = numbers(getattr(layer, f"{kind}_scale"))
        if kind == "embeddings":
            codes, scale = codes.T, scale.T
        if block_size == -1:
            expected = codes / scale
        else:
            zero = numbers(getattr(layer, f"{kind}_zero"))
            zero = zero.T if kind == "embeddings" else zero
            group = np.arange(rows) // block_size
            expected = (codes - zero[group]) * scale[group]
        found = weights[path].T if kind == "embeddings" else weights[path].reshape(rows, -1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_model_of_them_computes_what_int4_computes():
    """int4 leaves what goes into a layer as it is, as int8 does not."""
    backbone = tiny_backbone(tiny_pair())
    before = run(backbone, make_inputs())["encoder_sequence_output"]
    backbone.quantize("int4")
    expected = run(backbone, make_inputs())["encoder_sequence_output"]
    model = computing_with(effective_weights(backbone), tiny_pair())
    assert_close(run(model, make_inputs())["encoder_sequence_output"], expected, 1e-4)
    assert np.abs(before - expected).max() > 0.1


@pytest.mark.slow
def test_float8_is_rounded_at_its_scale():
    backbone = tiny_backbone(tiny_pair())
    backbone.quantize("float8")
    layer_of(backbone, GATE).kernel_scale.assign(0.3)
    weights = effective_weights(backbone)
    assert {k: v.shape for k, v in weights.items()} == tiny_pair().weights()
    kernel = draw(GATE, weights[GATE].shape)
    expected = (kernel / np.float32(0.3)).astype(ml_dtypes.float8_e4m3fn).astype("float32") * 0.3
    np.testing.assert_allclose(weights[GATE], expected, rtol=1e-6)


def test_lora_over_int8_adds_to_what_the_codes_stand_for():
    lm = tiny_lm()
    lm.quantize("int8")
    plain = effective_weights(lm.backbone)[QUERY]
    backbone = with_lora(lm.backbone, ["query"])
    layer = layer_of(backbone, QUERY)
    a, b = numbers(layer.lora_kernel_a), numbers(layer.lora_kernel_b)
    expected = plain + 5 / 3 * np.einsum("dnr,rh->dnh", a, b)
    np.testing.assert_allclose(effective_weights(backbone)[QUERY], expected, rtol=1e-5, atol=1e-6)


def test_an_embedding_that_reads_out_otherwise_than_it_embeds_is_refused():
    lm = tiny_lm()
    lm.quantize("int8")
    lm.backbone.enable_lora(2, ["embedding"], train_cross_attention=False)
    with pytest.raises(ValueError, match=r"Expected LoRA elsewhere.*Received: .*embedding"):
        effective_weights(lm.backbone)


def test_one_is_computed_when_it_is_asked_for(monkeypatch):
    computed = []
    convert = keras.ops.convert_to_numpy
    monkeypatch.setattr(
        "keras_encdec.conversion.effective.ops.convert_to_numpy",
        lambda x: computed.append(x) or convert(x),
    )
    weights = effective_weights(tiny_backbone())
    assert weights.headers()[QUERY] == ((42, 6, 12), "float32")
    assert not computed
    assert weights[QUERY].shape == (42, 6, 12)
    assert len(computed) == 1


def test_half_precision_stays_so():
    backbone = with_lora(tiny_backbone(dtype="bfloat16"))
    assert {str(array.dtype) for array in effective_weights(backbone).values()} == {"bfloat16"}


GEMMA = {
    "vocabulary_size": 96,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 40,
    "intermediate_dim": 144,
    "head_dim": 12,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
}


def gemma():
    backbone = keras_hub.models.GemmaBackbone(**GEMMA)
    for weight in backbone.weights:
        values = draw(weight.path, tuple(weight.shape))
        weight.assign(values / 3 if len(weight.shape) == 3 else values)
    return backbone


def decoder_logits(source, ids, mask):
    states = source({"token_ids": ids, "padding_mask": mask})
    return to_numpy(source.token_embedding(states, reverse=True))


@pytest.mark.slow
def test_keras_hubs_gemma_with_lora_converts_to_what_it_computes():
    ids = np.random.default_rng(0).integers(3, 96, (2, 9)).astype("int32")
    mask = np.ones_like(ids)
    source = gemma()
    before = decoder_logits(source, ids, mask)
    source.enable_lora(2)
    for weight in source.weights:
        if "lora" in weight.path:
            weight.assign(draw(weight.path, tuple(weight.shape)))
    expected = decoder_logits(source, ids, mask)
    assert np.abs(expected - before).max() > 0.1
    found = logits_without_input(keras_encdec.adapt(source).backbone, ids, mask)
    assert_close(found, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_keras_hubs_gemma_quantised_converts_to_its_weights(mode, tmp_path):
    """Each number within half a step of the one that was rounded: in memory, and from a preset."""
    source = gemma()
    before = {v.path: to_numpy(v.value) for v in source.weights}
    source.quantize(mode)
    path = "decoder_block_1/ffw_gating/kernel"
    pair = keras_encdec.adapt(source).backbone
    for stack in (pair.encoder, pair.decoder):
        gate = to_numpy(stack.blocks[1].feedforward.gate.kernel)
        step = np.ptp(before[path], axis=0) / {"int8": 254, "int4": 15}[mode]
        error = np.abs(gate - before[path])
        assert (error.max(axis=0) > 0).all()
        assert (error <= 1.01 * step).all()
    assert set(ModelSource(source).tensors()) == set(before)
    source.save_to_preset(str(tmp_path / "gemma"))
    again = keras_encdec.adapt(tmp_path / "gemma", preprocessor=None).backbone
    for ours, theirs in zip(pair.weights, again.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))
