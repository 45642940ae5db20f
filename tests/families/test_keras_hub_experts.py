"""What KerasHub's mixtures of experts say in their configs, and presets of them."""

import dataclasses
import json

import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.conversion.execute import convert
from keras_encdec.conversion.plan import make_plan
from keras_encdec.families import known
from keras_encdec.sharing import decoder_only
from keras_encdec.spec import MoESpec, RotarySpec, count_parameters
from keras_encdec.testing.models import draw, to_numpy

# As huggingface.co/mistralai/Mixtral-8x7B-v0.1 and Qwen/Qwen3-30B-A3B have them in config.json.
MIXTRAL = {"vocabulary_size": 32000, "num_layers": 32, "num_query_heads": 32, "hidden_dim": 4096}
MIXTRAL |= {"intermediate_dim": 14336, "num_key_value_heads": 8, "num_experts": 8}
QWEN3_MOE = {"vocabulary_size": 151936, "num_layers": 48, "num_query_heads": 32, "top_k": 8}
QWEN3_MOE |= {"hidden_dim": 2048, "intermediate_dim": 6144, "num_key_value_heads": 4}
QWEN3_MOE |= {"moe_intermediate_dim": 768, "num_experts": 128, "head_dim": 128}
GPT_OSS = {"vocabulary_size": 201088, "num_layers": 24, "num_query_heads": 64, "hidden_dim": 2880}
GPT_OSS |= {"intermediate_dim": 2880, "num_key_value_heads": 8, "num_experts": 32, "top_k": 4}
GPT_OSS |= {"head_dim": 64, "sliding_window": 128, "rope_max_wavelength": 150000}
# As Qwen2MoeConfig of transformers has Qwen/Qwen1.5-MoE-A2.7B by default.
QWEN_MOE = {"vocabulary_size": 151936, "num_layers": 24, "num_query_heads": 16, "top_k": 4}
QWEN_MOE |= {"hidden_dim": 2048, "intermediate_dim": 5632, "num_key_value_heads": 16}
QWEN_MOE |= {"moe_intermediate_dim": 1408, "shared_expert_intermediate_dim": 5632}
QWEN_MOE |= {"num_experts": 60}
SIZES = {"Mixtral": MIXTRAL, "Qwen3Moe": QWEN3_MOE, "GptOss": GPT_OSS, "QwenMoe": QWEN_MOE}


@pytest.fixture
def spec_of(tmp_path):
    """The spec behind a preset of which there is a config alone."""

    def read(family, **changes):
        config = {"class_name": f"{family}Backbone", "config": SIZES[family] | changes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return decoder_only.find(tmp_path).spec

    return read


@pytest.mark.parametrize(
    ("family", "preset"),
    [
        ("Mixtral", "mixtral_8_7b_en"),
        ("Qwen3Moe", "qwen3_moe_30b_a3b_en"),
        ("GptOss", "gpt_oss_20b_en"),
        ("QwenMoe", "qwen1.5_moe_2.7b_en"),
    ],
)
def test_released_models_have_as_many_parameters_as_keras_hub_counts(spec_of, family, preset):
    backbone = getattr(keras_hub.models, f"{family}Backbone")
    expected = backbone.presets[preset]["metadata"]["params"]
    assert count_parameters(spec_of(family).weights()) == expected


def test_fields_of_mixtral_reach_the_spec(spec_of):
    spec = spec_of("Mixtral", router_aux_loss_coef=0.5, sliding_window=None)
    assert spec.experts == MoESpec(8, 2, 14336, renormalize=True, balance_weight=0.5)
    assert set(spec.windows) == {None}


def test_fields_of_qwen_3_moe_reach_the_spec(spec_of):
    changes = {"norm_top_k_prob": True, "sliding_window_size": 6, "layer_norm_epsilon": 1e-3}
    changes |= {"decoder_sparse_step": 16, "mlp_only_layers": [31]}
    spec = spec_of("Qwen3Moe", **changes, router_aux_loss_coefficient=0.5)
    assert spec.experts == MoESpec(128, 8, 768, True, balance_weight=0.5, layers=(15, 47))
    assert (set(spec.windows), spec.feedforward_dim) == ({6}, 6144)
    assert spec.norm == spec.attention.query_key_norm
    assert spec.norm.epsilon == 1e-3


def test_fields_of_gpt_oss_reach_the_spec(spec_of):
    """Windows where checkpoints have them, in the even layers; YaRN by its factor alone."""
    spec = spec_of("GptOss", rope_scaling_factor=32.0)
    assert spec.experts == MoESpec(32, 4, 2880, True, 0.0, router_bias=True, expert_bias=True)
    assert spec.windows == (128, None) * 12
    grown = 0.1 * np.log(32) + 1
    yarn = {"attention_factor": pytest.approx(grown, abs=1e-12), "yarn": True, "truncate": False}
    assert (
        dataclasses.asdict(spec.rotary)
        == dataclasses.asdict(RotarySpec(150000.0, 32.0, 1.0, 32.0, 4096)) | yarn
    )
    assert spec.attention.sinks
    assert spec.attention.output_bias


def test_fields_of_qwen_moe_reach_the_spec(spec_of):
    window = {"sliding_window_size": 6, "use_sliding_window_attention": True}
    spec = spec_of("QwenMoe", norm_top_k_prob=True, mlp_only_layers=[3], **window)
    shared = {"shared_dim": 5632, "shared_gate": True}
    assert spec.experts == MoESpec(60, 4, 1408, renormalize=True, **shared)
    assert (set(spec.windows), spec.attention.bias) == ({6}, True)


def test_fields_of_gemma_4_reach_the_spec():
    sizes = {"vocabulary_size": 32, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 24}
    heads = {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "image_size": None}
    experts = {"enable_moe_block": True, "num_experts": 5, "expert_intermediate_dim": 12}
    config = sizes | heads | experts | {"layer_norm_epsilon": 1e-2}
    backbone = keras_hub.models.Gemma4Backbone(**config, num_experts_per_token=3)
    spec = known.of_backbone("Gemma4Backbone").read_keras_hub(backbone.get_config())
    of_gemma = {"separate_norms": True, "router_norm": 1e-2, "expert_scale": True}
    assert spec.experts == MoESpec(5, 3, 12, True, 0.0, shared_dim=24, **of_gemma)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("Mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.0"),
        ("Mixtral", {"top_k": 9}, "top_k of at most num_experts"),
        ("Qwen3Moe", {"num_experts": 0}, "num_experts"),
        ("Qwen3Moe", {"mlp_only_layers": list(range(48))}, "experts in layers that there are"),
        ("Qwen3Moe", {"shared_expert_dim": 64}, "shared_expert_dim=64"),
        ("GptOss", {"swiglu_limit": 5.0}, "swiglu_limit=5.0"),
        ("QwenMoe", {"mlp_only_layers": [0]}, "experts in layers that there are"),
        ("QwenMoe", {"shared_expert_intermediate_dim": 0}, "shared_dim of MoESpec"),
    ],
)
def test_what_a_spec_cannot_express_is_refused_by_name(spec_of, family, change, message):
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        spec_of(family, **change)


@pytest.mark.parametrize("family", ["Qwen3_5Moe"])
def test_other_families_are_named_and_no_likeness_is_suggested(family):
    name = f"{family}Backbone"
    assert hasattr(keras_hub.models, name)
    with pytest.raises(ValueError, match=f"Received: '{name}', whose family is not known") as error:
        known.of_backbone(name)
    assert "Did you mean" not in str(error.value)


@pytest.mark.slow
def test_a_task_and_its_preset_give_one_pair_and_a_preset_is_let_go(tmp_path):
    """Variables that two weights of ours are read from go with the second."""
    sizes = {"num_layers": 2, "hidden_dim": 16, "intermediate_dim": 12, "moe_intermediate_dim": 6}
    heads = {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    backbone = keras_hub.models.Qwen3MoeBackbone(
        vocabulary_size=32, num_experts=3, top_k=2, mlp_only_layers=[0], **sizes, **heads
    )
    for weight in backbone.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)))
    of_task = keras_encdec.adapt(keras_hub.models.Qwen3MoeCausalLM(backbone)).backbone
    backbone.save_to_preset(str(tmp_path / "preset"))
    of_preset = keras_encdec.adapt(tmp_path / "preset", preprocessor=None).backbone

    source = decoder_only.InMemory(backbone).source(None, consume=True)
    plan = make_plan(source.spec)
    consumed = convert(plan, dict.fromkeys(plan.sources, source))
    assert all(weight._value is None for weight in backbone.weights)
    for found in (of_preset, consumed):
        for ours, expected in zip(found.encoder.weights, of_task.encoder.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(expected))
