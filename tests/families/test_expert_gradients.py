"""Gradients of experts, and the loss of uneven ones, beside transformers."""

import numpy as np
import pytest
from keras import ops
from reference_folder import write_folder

import keras_encdec
from keras_encdec.layers.experts import unevenness
from keras_encdec.spec import MoESpec
from keras_encdec.testing.gradients import value_and_gradients
from keras_encdec.testing.models import assert_close, silence_cross_attention, to_numpy

pytestmark = [pytest.mark.slow, pytest.mark.transformers]


def gradients_of(layer):
    """Those of a layer's experts, router and what stands beside them in transformers, by ours."""
    block = layer if hasattr(layer, "router") else layer.mlp
    gate, up = block.experts.gate_up_proj.grad.chunk(2, dim=1)
    found = {
        "experts/gate": gate.mT,
        "experts/up": up.mT,
        "experts/down": block.experts.down_proj.grad.mT,
    }
    if hasattr(layer, "router"):  # Gemma 4
        shared, router = layer.mlp, layer.router
        found |= {
            "router/kernel": router.proj.weight.grad.T,
            "router/scale": router.scale.grad,
            "router/expert_scale": router.per_expert_scale.grad,
            "pre_experts_norm/scale": layer.pre_feedforward_layernorm_2.weight.grad,
            "post_experts_norm/scale": layer.post_feedforward_layernorm_2.weight.grad,
            "post_shared_norm/scale": layer.post_feedforward_layernorm_1.weight.grad,
        }
    else:
        shared = getattr(block, "shared_expert", None)
        found["router/kernel"] = block.gate.weight.grad.T
    if shared is not None:
        for part in ("gate", "up", "down"):
            found[f"shared/{part}/kernel"] = getattr(shared, f"{part}_proj").weight.grad.T
    if hasattr(block, "shared_expert_gate"):
        found["shared_weight/kernel"] = block.shared_expert_gate.weight.grad.T
    return {name: gradient.numpy() for name, gradient in found.items()}


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "gemma4_moe"])
def test_gradients_are_those_of_transformers(name, tmp_path):
    import torch
    import transformers

    folder = write_folder(tmp_path / name, name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    rng = np.random.default_rng(0)
    ids, pull = rng.integers(3, 96, (2, 14)), rng.normal(size=(2, 14, 96)).astype("float32")
    (theirs(torch.from_numpy(ids)).logits * torch.from_numpy(pull)).sum().backward()

    backbone = keras_encdec.adapt(folder).backbone
    silence_cross_attention(backbone)
    decoder, mask = backbone.decoder, np.ones(ids.shape, "int32")
    states = ops.zeros((*ids.shape, 40))
    experts, pull = decoder.blocks[2].feedforward, ops.convert_to_tensor(pull)
    _, found = value_and_gradients(
        lambda: ops.sum(decoder.logits(decoder(ids.astype("int32"), mask, states, mask)) * pull),
        experts.trainable_variables,
    )
    expected = gradients_of(theirs.model.layers[2])
    paths = [variable.path.partition("/feedforward/")[2] for variable in experts.weights]
    assert set(paths) == expected.keys()
    for path, gradient in zip(paths, found, strict=True):
        scale = np.abs(expected[path]).max()
        assert scale > 1e-2
        assert_close(gradient / scale, expected[path] / scale, 1e-4)


def test_the_loss_of_one_layer_is_that_of_transformers():
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(2 * 9, 5)).astype("float32"), np.ones((2, 9), "int64")
    mask[1, 4:] = 0
    expected = load_balancing_loss_func(
        (torch.from_numpy(logits),), 5, 2, torch.from_numpy(mask)
    ).item()
    given = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.argsort(-given, axis=-1)[:, :2][mask.reshape(-1) == 1]
    counts = np.bincount(chosen.reshape(-1), minlength=5)
    load = np.stack([counts, given[mask.reshape(-1) == 1].sum(0)]).astype("float32")
    found = unevenness(ops.convert_to_tensor(load[None]), MoESpec(5, 2, 8))
    assert_close(to_numpy(found), np.float32(expected), 1e-5)
