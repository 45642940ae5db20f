"""The estimate holds what Keras holds, and about what XLA needs."""

import dataclasses
import math

import jax
import keras
import numpy as np
import pytest
from compiled_step import needed

import keras_encdec
from keras_encdec.models import EncDecBackbone
from keras_encdec.spec import AdaptorSpec, AttentionSpec, CrossAttentionSpec, PairSpec, StackSpec
from keras_encdec.testing.models import tiny_lm
from keras_encdec.testing.specs import other_pair, tiny_encoder, tiny_pair, uneven
from keras_encdec.training.estimate import estimate
from keras_encdec.training.warmup import pretrained

SIZES = {"batch_size": 4, "source_length": 256, "target_length": 128}
RUNS = [
    {"dtype": "float32", "optimizer": "adamw"},
    {"dtype": "mixed_bfloat16", "optimizer": "adafactor"},
    {"dtype": "bfloat16", "optimizer": "muon"},
    {"dtype": "bfloat16", "optimizer": keras.optimizers.SGD(use_ema=True), "lora_rank": 3},
    {"dtype": "bfloat16", "optimizer": "lion", "quantization": "int8"},
    {"dtype": "float32", "optimizer": "adamw", "quantization": "int4", "lora_rank": 2},
    {"dtype": "float32", "lora_rank": 2, "train_cross_attention": False},
]


def held(variables):
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [tiny_pair(), other_pair()], ids=["usual", "other"])
@pytest.mark.parametrize("run", RUNS, ids=[str(number) for number in range(len(RUNS))])
def test_variables_are_exact(run, spec):
    lm = tiny_lm(pair=spec, dtype=run["dtype"])
    whole = run.get("train_cross_attention", True)
    if "quantization" in run:
        lm.quantize(run["quantization"], filters=pretrained if "lora_rank" in run else None)
    if "lora_rank" in run:
        lm.backbone.enable_lora(run["lora_rank"], train_cross_attention=whole)
    optimizer = keras.optimizers.get(run.get("optimizer", "adamw"))
    optimizer = type(optimizer).from_config(optimizer.get_config())
    optimizer.build(lm.trainable_variables)
    found = estimate(spec, **run, **SIZES)
    assert found.parameters == held(lm.weights)
    assert found.gradients == held(lm.trainable_variables)
    assert found.optimizer == held(optimizer.variables)


def pair(vocabulary_size=4096, layers=2, **changes):
    attention = AttentionSpec(4, 2, 40, 16.0, 5.0)
    stack = StackSpec(
        vocabulary_size, 192, 768, attention, (None,) * layers, final_logit_soft_cap=30.0, **changes
    )
    return PairSpec(stack, stack)


def crossed(**options):
    """Four layers whose decoder sees the encoder in this way."""
    return dataclasses.replace(pair(layers=4), cross_attention=CrossAttentionSpec(**options))


MEASURED = {
    "deep": (pair(), {}),
    "many words": (pair(16384, 1, post_norm=False), {"chunk_tokens": 128}),
    "merged": (crossed(merged=True), {}),
    "merged in one layer": (crossed(merged=True, layers=(1,)), {}),
    "cross-attention in one layer": (crossed(layers=(1,)), {}),
    "gated": (crossed(gate=True), {}),
    "continuous": (crossed(rotary="continuous"), {}),
    "adapted": (dataclasses.replace(pair(layers=4), adaptor=AdaptorSpec(4, 96)), {}),
    "in four parts": (pair(), {"gradient_accumulation_steps": 4}),
    "with a teacher": (pair(), {"teacher": pair().decoder}),
}


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="asks XLA")
@pytest.mark.parametrize(("spec", "run"), MEASURED.values(), ids=MEASURED)
def test_a_step_is_about_what_xla_needs(spec, run):
    found = estimate(spec, attention="plain", teacher_dtype="float32", **run, **SIZES)
    assert found.total == pytest.approx(needed(spec, **run, **SIZES), rel=0.15)


def test_merged_attention_keeps_its_logits_whatever_the_others_do():
    """By hand: B 4, N 4, T 128, S 256, L 4; 12 bytes a logit, T x (T + S) of them a layer."""
    merged, separate = (
        estimate(crossed(merged=merged), **SIZES).activations for merged in (True, False)
    )
    logits = 12 * 4 * 4 * 128 * (128 + 256)
    # Without a sublayer of its own: two norms of D 192, and queries and output of N H 160.
    sublayer = 4 * 128 * (2 * 8 * 192 + 4 * 3 * 160)
    assert merged - separate == 4 * (logits - sublayer)


@pytest.mark.parametrize("attention", ["plain", "fused"])
def test_a_layer_without_cross_attention_keeps_none_of_it(attention):
    """By hand: B 4, T 128, S 256, D 192, N 4, K 2, H 40."""
    every, one = (
        estimate(crossed(layers=layers), attention=attention, **SIZES).activations
        for layers in (None, (1,))
    )
    norms, heads = 128 * 2 * 8 * 192, 4 * 40 * (3 * 4 * 128 + 2 * 2 * 256)
    logits = 12 * 4 * 128 * 256 if attention == "plain" else 0
    assert every - one == 3 * 4 * (norms + heads + logits)


def test_remat_holds_the_largest_block_wherever_it_stands():
    small = {"batch_size": 1, "source_length": 256, "target_length": 128}
    every, last = (
        estimate(crossed(layers=layers), remat=True, **small).activations for layers in (None, (3,))
    )
    assert every == last


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="asks JAX")
def test_remat_keeps_the_inputs_of_blocks():
    # XLA undoes remat on CPUs; what autodiff keeps per block shows it.
    rows, length, kept = 2, 32, []
    for layers in (1, 3):
        spec = pair(layers=layers)
        backbone = EncDecBackbone(spec.encoder, spec.decoder)
        backbone.remat = True
        ids = np.ones((rows, length), "int32")
        x = dict.fromkeys(backbone.input, ids)

        def states(values, x, backbone=backbone):
            return backbone.stateless_call(values, [], x)[0]["decoder_sequence_output"]

        values = [v.value for v in backbone.trainable_variables]
        residuals = jax.eval_shape(
            lambda v, x, f=states: jax.vjp(lambda v: f(v, x), v)[1], values, x
        )
        shapes = [r.shape for r in jax.tree.leaves(residuals)]
        kept.append(sum(4 * math.prod(s) for s in shapes if s[:2] == (rows, length)))
    sizes = {"batch_size": rows, "source_length": length, "target_length": length}
    less, more = (estimate(pair(layers=n), remat=True, **sizes).activations for n in (1, 3))
    assert more - less == pytest.approx(kept[1] - kept[0], rel=0.1)


def test_a_mesh_divides():
    spec = keras_encdec.presets["gemma2_9b_2b"].spec
    alone, data = (estimate(spec, mesh=mesh, **SIZES) for mesh in (None, (4, 1)))
    both = estimate(
        spec,
        mesh=keras.distribution.DeviceMesh((4, 2), ("batch", "model"), list("abcdefgh")),
        **SIZES,
    )
    assert (alone.devices, data.devices, both.devices) == (1, 4, 8)
    assert alone.parameters == 4 * 12_292_375_296
    assert data.parameters == pytest.approx(alone.parameters / 4, rel=1e-3)  # norms are whole
    assert both.parameters == pytest.approx(alone.parameters / 8, rel=1e-3)
    assert both.activations < data.activations < alone.activations
    assert both.output_loss < data.output_loss


def test_what_saves_memory():
    spec = keras_encdec.presets["gemma2_2b_2b"].spec
    sizes = {"batch_size": 4, "source_length": 4096, "target_length": 1024}
    full = estimate(spec, **sizes)
    assert estimate(spec, remat=True, **sizes).activations < full.activations / 10
    assert estimate(spec, attention="plain", **sizes).activations > 2 * full.activations
    assert estimate(spec, chunk_tokens=None, **sizes).output_loss > 5 * full.output_loss
    lora = estimate(spec, lora_rank=8, **sizes).optimizer
    alone = estimate(spec, lora_rank=8, train_cross_attention=False, **sizes).optimizer
    assert 100 * alone < 10 * lora < full.optimizer


def test_it_prints_a_table():
    text = str(estimate(keras_encdec.presets["gemma2_9b_2b"].spec, mesh=(8, 1), **SIZES))
    assert "GB on each of 8" in text
    assert "6.150" in text
    assert "total" in text


@pytest.mark.parametrize("option", [{"quantization": "int2"}, {"attention": "auto"}])
def test_unknown_options(option):
    with pytest.raises(ValueError, match=r"Expected .*Received"):
        estimate(tiny_pair(), **option, **SIZES)


def test_layers_that_are_unlike_are_refused():
    spec = tiny_pair(decoder=uneven(tiny_encoder()))
    with pytest.raises(ValueError, match="others in the decoder, of which it is not known"):
        estimate(spec, batch_size=1, source_length=8, target_length=8)
