"""An adaptor: what it computes, that a pair starts as without it, and who knows of it."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_encdec
from keras_encdec.conversion.plan import make_plan
from keras_encdec.layers import depth
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.spec import AdaptorSpec, CrossAttentionSpec
from keras_encdec.testing.models import (
    assert_close,
    draw,
    make_inputs,
    run,
    tiny_backbone,
    tiny_lm,
    to_numpy,
)
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair
from keras_encdec.training import CrossAttentionWarmup
from keras_encdec.training.estimate import estimate
from keras_encdec.training.warmup import pretrained

OPTIONS = {
    "adaptor_groups": 3,
    "adaptor_projection": True,
    "cross_attention_init": "self_attention",
}
NEW = {"encoder/adaptor/scale", "encoder/adaptor/projection/kernel"}


def adapted(*fields, **changes):
    return tiny_pair(adaptor=AdaptorSpec(*fields), **changes)


@pytest.fixture(scope="module")
def plain():
    return tiny_backbone()


def test_groups_are_of_neighbours():
    assert AdaptorSpec(3).ends(26) == (8, 17, 26)
    assert AdaptorSpec(4).ends(4) == (1, 2, 3, 4)
    assert AdaptorSpec(width=8).ends(6) == (6,)


def test_it_adds_up_normalised_states_and_projects(plain):
    """By hand, in float64, of the states behind layers 1, 2 and 4."""
    encoder, inputs = tiny_backbone(adapted(3, 24)).encoder, make_inputs()
    given = inputs["encoder_token_ids"], inputs["encoder_padding_mask"]
    *before, last = (np.asarray(to_numpy(x), "float64") for x in plain.encoder.all_states(*given))
    behind = [before[1], before[2]]
    norm = 1 + to_numpy(encoder.final_norm.scale)
    behind = [x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * norm for x in behind]
    numbers, kernel = to_numpy(encoder.adaptor.scale), to_numpy(encoder.adaptor.projection.kernel)
    expected = np.einsum("g,gbsd->bsd", numbers, [*behind, last]) @ kernel
    found = to_numpy(encoder(*given))
    assert found.shape == (3, 20, 24) == encoder.compute_output_spec(*given).shape
    assert_close(found, expected, 1e-4)
    assert np.abs(numbers).min() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("fields", [(3,), (2, 48)])
def test_a_pair_starts_as_without_it(plain, fields):
    backbone, inputs = EncDecBackbone.of(adapted(*fields)), make_inputs()
    for weight in backbone.weights:
        if weight.path not in NEW:
            weight.assign(draw(weight.path, tuple(weight.shape)))
    for key, states in run(plain, inputs).items():
        np.testing.assert_array_equal(run(backbone, inputs)[key], states)


def test_a_projection_to_another_width_is_orthonormal():
    for width, transposed in ((24, False), (60, True)):
        backbone = EncDecBackbone.of(adapted(1, width))
        kernel = to_numpy(backbone.encoder.adaptor.projection.kernel)
        kernel = kernel.T if transposed else kernel
        assert_close(kernel.T @ kernel, np.eye(kernel.shape[1]))


def test_the_plan_says_that_it_alone_is_fresh():
    plan = make_plan(tiny_encoder(), tiny_decoder(), **OPTIONS)
    assert plan.pair.adaptor == AdaptorSpec(3, 42)
    assert {step.target for step in plan.fresh} == NEW
    shapes = plan.pair.weights()
    assert shapes["decoder/block_1/cross_attention/key/kernel"] == (42, 2, 12)
    lines = [line.split() for line in str(plan).splitlines()]
    assert ["encoder/adaptor/projection", "48", "x", "42", "1", "fresh"] in lines
    with pytest.raises(ValueError, match=r"adaptor_projection=True, which brings"):
        make_plan(tiny_encoder(), tiny_decoder(), cross_attention_init="self_attention")


def test_merged_attention_of_two_widths_by_a_projection():
    options = {"merged_attention": True, "adaptor_projection": True}
    plan = make_plan(tiny_encoder(), tiny_decoder(), **options)
    assert {step.target for step in plan.fresh} == {"encoder/adaptor/projection/kernel"}


@pytest.mark.slow
def test_two_sources_become_a_pair_that_is_kept(tmp_path):
    lm = keras_encdec.adapt("gemma2_mini_docs", "gemma2_tiny_docs", **OPTIONS)
    block = lm.backbone.decoder.blocks[1]
    own, cross = (to_numpy(x.key.kernel) for x in (block.attention, block.cross_attention))
    np.testing.assert_array_equal(own, cross)
    lm.save_to_preset(tmp_path / "pair")
    again, inputs = keras_encdec.from_preset(tmp_path / "pair"), make_inputs()
    assert again.backbone.spec == lm.backbone.spec
    np.testing.assert_array_equal(to_numpy(again(inputs)), to_numpy(lm(inputs)))
    made = again.provenance["history"][0]
    assert made["options"] == OPTIONS
    assert "adaptor_groups=3" in (tmp_path / "pair" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"adaptor.*groups=3"):
        lm.export_to_transformers(tmp_path / "there")
    assert not (tmp_path / "there").exists()
    alone = keras_encdec.models.EncoderBackbone.from_preset(tmp_path / "pair")
    given = [inputs[f"encoder_{name}"] for name in ("token_ids", "padding_mask")]
    expected = lm.backbone.encoder.all_states(*given)[-1].shape
    assert alone.encoder(*given).shape[-1] != expected[-1]


@pytest.mark.slow
def test_it_warms_up_alone():
    merged = CrossAttentionSpec(merged=True)
    lm = tiny_lm(pair=adapted(3, 42, cross_attention=merged))
    inputs = make_inputs()
    before = {w.path: to_numpy(w) for w in lm.backbone.weights}
    lm.compile(optimizer=keras.optimizers.SGD(0.1))
    labels, weight = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
    warmup = CrossAttentionWarmup(2)
    lm.fit(inputs, labels, sample_weight=weight, callbacks=[warmup], verbose=0)
    moved = {w.path for w in lm.backbone.weights if not np.array_equal(to_numpy(w), before[w.path])}
    assert moved == NEW


@pytest.mark.slow
def test_quantised_and_with_lora(tmp_path):
    pair = adapted(3, 24)
    lm = tiny_lm(pair=pair)
    lm.quantize("int8", filters=pretrained)
    lm.backbone.enable_lora(2)
    trained = {v.path for v in lm.trainable_variables}
    assert trained >= NEW
    sizes = {"batch_size": 1, "source_length": 8, "target_length": 8}
    expected = estimate(pair, lora_rank=2, quantization="int8", **sizes)
    for found, variables in (
        (expected.parameters, lm.weights),
        (expected.gradients, lm.trainable_variables),
    ):
        assert found == sum(np.prod(v.shape, dtype=int) * v.value.dtype.itemsize for v in variables)
    lm.backbone.encoder.adaptor.scale.assign([0.1, 0.2, 0.3])
    lm.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    again = tiny_lm(pair=pair)
    again.quantize("int8", filters=pretrained)
    again.backbone.load_lora_weights(tmp_path / "a.lora.h5")
    np.testing.assert_array_equal(to_numpy(again(make_inputs())), to_numpy(lm(make_inputs())))
    whole = tiny_lm(pair=pair)
    before = to_numpy(whole(make_inputs()))
    whole.quantize("int8")
    assert np.abs(to_numpy(whole(make_inputs())) - before).max() < 2


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="blocks are scanned on JAX")
@pytest.mark.parametrize("setting", ["scan", "remat"])
def test_settings_change_no_number(setting):
    import jax

    pair = adapted(2, 24)
    pair = dataclasses.replace(pair, encoder=tiny_encoder(windows=(8,) * 6))
    backbone, inputs = tiny_backbone(pair), make_inputs()
    expected = run(backbone, inputs)["encoder_sequence_output"]
    setattr(backbone, setting, True)
    stretches = depth.stretches_of(backbone.encoder.blocks, (8,) * 6, True, (3, 6))
    assert stretches == [(0, 1, 3), (3, 1, 3)]
    found = jax.jit(lambda x: backbone(x, training=True))(inputs)["encoder_sequence_output"]
    assert_close(to_numpy(found), expected)


def test_its_config_comes_back():
    encoder = tiny_backbone(adapted(3, 24)).encoder
    again = type(encoder).from_config(encoder.get_config())
    assert again.adaptor.spec == AdaptorSpec(3, 24)
    assert EncDecSeq2SeqLM(tiny_backbone(adapted(2))).backbone.spec.context_width == 48
