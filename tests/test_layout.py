"""The layout map covers every variable, cuts evenly, and says where it cannot."""

import math

import keras
import numpy as np
import pytest

import keras_encdec
from keras_encdec import layout
from keras_encdec.layout.axes import layout_map
from keras_encdec.models import EncDecBackbone
from keras_encdec.spec import AdaptorSpec
from keras_encdec.testing.models import tiny_backbone, tiny_lm
from keras_encdec.testing.specs import other_pair, sunk, tiny_decoder, tiny_encoder, tiny_pair

SUNK = tiny_pair(encoder=sunk(tiny_encoder(), 8), decoder=sunk(tiny_decoder(), 3))
TINY = {"tiny": tiny_pair(), "adapted": tiny_pair(adaptor=AdaptorSpec(2, 24)), "sunk": SUNK}
MESHES = [(1, 1), (8, 1), (1, 8), (2, 4), (4, 2)]


def planned(shape, names=("batch", "model")):
    """A mesh of devices that do not exist."""
    return keras.distribution.DeviceMesh(
        shape, names, [f"planned:{i}" for i in range(8)][: math.prod(shape)]
    )


def axes(path, shape=(2, 4), spec=None, **kwargs):
    return EncDecBackbone.get_layout_map(planned(shape), spec, **kwargs)[path].axes


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["gemma2_9b_2b", "gemma2_27b_27b", "t5gemma_s_s", *TINY])
def test_every_weight_has_a_layout_that_divides_it(mesh, name):
    spec = TINY[name] if name in TINY else keras_encdec.presets[name].spec
    sizes = dict(zip(("batch", "model"), mesh, strict=True))
    for found in (layout_map(planned(mesh), spec), layout_map(planned(mesh))):
        for path, shape in spec.weights().items():
            parts = found[path].axes
            assert len(parts) <= len(shape)
            if name not in TINY:
                assert all(n % sizes[a] == 0 for n, a in zip(shape, parts, strict=False) if a)


@pytest.mark.parametrize("spec", [None, keras_encdec.presets["gemma2_9b_2b"].spec])
def test_what_is_cut_along_what(spec):
    assert axes("decoder/embedding/embeddings", spec=spec) == ("model", "batch")
    block = "encoder/block_41"
    assert axes(f"{block}/attention/query/kernel", spec=spec) == ("batch", "model")
    assert axes(f"{block}/attention/attention_output/kernel", spec=spec) == ("model", "batch")
    assert axes(f"{block}/feedforward/up/kernel", spec=spec) == ("batch", "model")
    assert axes(f"{block}/feedforward/down/kernel", spec=spec) == ("model", "batch")
    assert axes(f"{block}/pre_attention_norm/scale", spec=spec) == ()


def test_key_and_value_heads_are_cut_where_they_divide():
    key = "decoder/block_0/cross_attention/key/kernel"
    spec = keras_encdec.presets["gemma2_2b_2b"].spec  # K = 4
    assert axes(key, (2, 4), spec) == ("batch", "model")
    assert axes(key, (1, 8), spec) == ("batch",)
    assert axes(key, (2, 4)) == ("batch",)
    assert axes("decoder/block_0/attention/query/kernel", (1, 8), spec) == ("batch", "model")


def test_sinks_lie_with_their_heads_and_biases_with_their_experts():
    block = "encoder/block_0"  # of 4 heads and 8 experts; in the decoder 6 and 3
    assert axes(f"{block}/attention/sinks", spec=SUNK) == ("model",)
    assert axes("decoder/block_0/attention/sinks", spec=SUNK) == ()
    assert axes("decoder/block_0/cross_attention/sinks", (4, 2), SUNK) == ("model",)
    assert axes(f"{block}/feedforward/experts/down_bias", spec=SUNK) == ("model",)
    assert axes("decoder/block_0/feedforward/experts/down_bias", spec=SUNK) == ()
    for small in ("attention/attention_output/bias", "feedforward/router/bias"):
        assert axes(f"{block}/{small}", spec=SUNK) == ()


def test_axes_that_do_not_divide_are_left_out():
    spec = tiny_pair()  # D = 42 in the decoder, and 6 heads
    assert axes("decoder/block_0/feedforward/gate/kernel", (4, 2), spec) == (None, "model")
    assert axes("decoder/block_0/attention/query/kernel", (2, 4), spec) == ("batch",)
    assert axes("encoder/block_0/attention/query/kernel", (2, 4), spec) == ("batch", "model")


@pytest.mark.parametrize("mode", ["lora", "int8", "int4"])
def test_variables_beside_the_weights_are_covered(mode):
    pair = other_pair()
    if mode == "lora":
        backbone = tiny_backbone(pair)
        backbone.enable_lora(2, ["query", "key", "attention_output", "gate", "down", "embedding"])
    else:
        backbone = tiny_lm(pair=pair)
        backbone.quantize(mode)
    assert len(backbone.weights) > len(pair.weights())
    for spec in (None, pair):
        found = layout_map(planned((2, 1)), spec)
        assert all(len(found[v.path].axes) <= len(v.shape) for v in backbone.weights)


def test_lora_is_cut_like_its_kernel():
    query = "encoder/block_0/attention/query"
    assert axes(f"{query}/lora_kernel_a") == ("batch", "model")
    assert axes(f"{query}/lora_kernel_b") == ()
    assert axes("encoder/block_0/feedforward/gate/lora_kernel_b") == (None, "model")
    assert axes("encoder/embedding/lora_embeddings_b") == (None, "batch")


def test_axes_may_have_other_names():
    mesh = planned((2, 4), ("data", "tensor"))
    names = {"model_parallel_dim_name": "tensor", "data_parallel_dim_name": "data"}
    found = EncDecBackbone.get_layout_map(mesh, **names)
    assert found["encoder/embedding/embeddings"].axes == ("tensor", "data")
    with pytest.raises(ValueError, match=r"Expected a mesh with the axes .*Received: \('data', 't"):
        EncDecBackbone.get_layout_map(mesh)


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_made():
    pair = tiny_pair()
    layout_map = EncDecBackbone.get_layout_map(planned((1, 8)))
    expected = (
        r"of encoder/block_0/attention/query/kernel .* \(48, 4, 16\), where 4 .* 'model' of 8"
    )
    with (
        keras.distribution.ModelParallel(layout_map=layout_map).scope(),
        pytest.raises(ValueError, match=expected),
    ):
        EncDecBackbone(pair.encoder, pair.decoder)
    assert keras.distribution.distribution() is None


def test_the_host_knows_no_distribution():
    active = keras.distribution.DataParallel(devices=["planned:0"])
    with active.scope():
        with layout.on_host():
            assert keras.distribution.distribution() is None
        assert keras.distribution.distribution() is active


def test_without_a_distribution_arrays_go_where_keras_puts_them():
    variable = keras.Variable(np.zeros((2, 3), "float32"), dtype="bfloat16")
    placed = layout.place(variable, np.full((2, 3), 1.5))
    assert keras.backend.standardize_dtype(placed.dtype) == "bfloat16"
    with layout.placing([variable]):
        variable.assign(np.ones((2, 3)))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), 1)
