"""Every family is held to the same laws; a new one by one line here."""

import dataclasses
import json
from fnmatch import fnmatch

import keras
import keras_hub
import ml_dtypes
import numpy as np
import pytest
from keras_hub.src.models.gemma3.gemma3_vision_encoder import Gemma3VisionEncoder
from reference_folder import FAMILIES as REFERENCES
from reference_folder import facts_of, write_folder
from safetensors.numpy import load_file, save_file

import keras_encdec
from keras_encdec.conversion.plan import make_plan
from keras_encdec.families import dialect, known
from keras_encdec.families.keras_hub import name_of
from keras_encdec.layers.hidden import states_to_read
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.sharing.decoder_only import InMemory
from keras_encdec.spec import RotarySpec, count_parameters
from keras_encdec.testing.models import (
    assert_close,
    decoded,
    draw,
    logits_without_input,
    make_inputs,
    run,
    to_numpy,
)
from keras_encdec.testing.specs import tiny_decoder

# References that tests/parity/make_family_references.py made, by the name there.
FAMILIES = ["gemma", "gemma2", "gemma3", "llama", "smollm2", "mistral", "qwen2", "qwen3", "smollm3"]
FAMILIES += ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"]
FAMILIES += ["gemma4", "gemma4_e2b", "gemma4_moe"]
FAMILIES += ["gemma3_images", "olmo2", "granite", "phi3", "phi4"]
ARRAYS = ("token_ids", "padding_mask")
every_family = pytest.mark.parametrize("name", FAMILIES)


def some_apart(names, mark):
    """Every family, of which some cost time that the others' tests need not."""
    apart = [pytest.param(n, marks=mark) if n in names else n for n in FAMILIES]
    return pytest.mark.parametrize("name", apart)


LATER = ("gemma4", "gemma4_e2b", "gemma4_moe", "gemma3_images", "olmo2", "granite", "phi3", "phi4")
LATER += ("qwen2_moe",)
# What takes long runs with two of them, which together have most that families have.
TWO = ("gemma3", "qwen2")
two_families_and_the_others_by_hand = some_apart(set(FAMILIES) - set(TWO), pytest.mark.long)

# KerasHub backbones: class, and what makes it another model than the one before.
HEADS = {"num_query_heads": 4, "num_key_value_heads": 2}
SIZES = {"vocabulary_size": 96, "num_layers": 3, "hidden_dim": 40, "intermediate_dim": 72}
GEMMA_3 = {"image_size": None, "global_rope_scaling_factor": 4.0, "num_layers": 7}
GEMMA = {
    "head_dim": 12,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "use_sliding_window_attention": True,
    "sliding_window_size": 6,
    "attention_logit_soft_cap": 5.0,
    "final_logit_soft_cap": 3.0,
}
LLAMA3 = {
    "rope_max_wavelength": 100,
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 64,
}
LINEAR = {"rope_max_wavelength": 100, "rope_scaling_factor": 2.0}
SMOLLM3 = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "rope_layer_enabled_list": [True, False, True],
    "layer_types": ["full_attention"] * 3,
    "layer_norm_epsilon": 1e-2,
    "max_position_embeddings": 64,
    "rope_theta": 100.0,
    "partial_rotary_factor": 1.0,
}
PHI3 = {
    "rope_max_wavelength": 100,
    "rope_scaling_type": "su",
    "rope_scaling_short_factor": [1.0, 1.3, 1.6, 2.0, 3.0],
    "rope_scaling_long_factor": [1.0, 2.0, 4.0, 8.0, 12.0],
    "layer_norm_epsilon": 1e-2,
    "max_sequence_length": 80,
}
MIXTRAL = {"num_experts": 6, "top_k": 2, "layer_norm_epsilon": 1e-2, "sliding_window": 6}
# A layer without experts is between two with them.
QWEN3_MOE = {"num_experts": 6, "top_k": 3, "moe_intermediate_dim": 20, "mlp_only_layers": [1]}
QWEN2_MOE = QWEN3_MOE | {"shared_expert_intermediate_dim": 28, "layer_norm_epsilon": 1e-2}
QWEN3_MOE |= {"head_dim": 12, "tie_word_embeddings": True}
# As long as the texts: KerasHub has it in other layers than the checkpoints.
GPT_OSS = {"num_experts": 5, "top_k": 3, "head_dim": 12, "sliding_window": 20}
GPT_OSS |= {"rope_max_wavelength": 100, "rope_scaling_factor": 4.0, "layer_norm_epsilon": 1e-2}
USUAL = SIZES | HEADS
GEMMA_4 = {
    "image_size": None,
    "num_layers": 6,
    "head_dim": 12,
    "global_head_dim": 16,
    "sliding_window_size": 6,
    "sliding_window_pattern": 2,
    "local_rope_wavelength": 100,
    "global_rope_wavelength": 100,
    "global_rope_scaling_factor": 4.0,
    "global_rope_partial_rotary_factor": 0.25,
    "layer_norm_epsilon": 1e-2,
    "final_logit_soft_cap": 3.0,
}
E2B = {
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 6,
}
GEMMA_4_MOE = {"enable_moe_block": True, "num_experts": 6, "num_experts_per_token": 3}
GEMMA_4_MOE |= {"expert_intermediate_dim": 28, "num_global_key_value_heads": 1}
KERAS_HUB = {
    "gemma": ("Gemma", USUAL | {"head_dim": 12, "num_key_value_heads": 1, "intermediate_dim": 144}),
    "gemma2": ("Gemma", USUAL | GEMMA | {"intermediate_dim": 144}),
    "gemma3": ("Gemma3", USUAL | GEMMA | GEMMA_3),
    "gemma4": ("Gemma4", USUAL | GEMMA_4 | {"num_global_key_value_heads": 1}),
    "gemma4_e2b": ("Gemma4", USUAL | GEMMA_4 | E2B),
    "gemma4_moe": ("Gemma4", USUAL | GEMMA_4 | GEMMA_4_MOE),
    "llama2": ("Llama", USUAL | {"layer_norm_epsilon": 1e-2}),
    "llama3": ("Llama3", USUAL | LLAMA3 | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", USUAL | LINEAR | {"sliding_window": 6, "head_dim": 12}),
    "qwen2": ("Qwen", USUAL | LINEAR | {"tie_word_embeddings": False}),
    "smollm3": ("SmolLM3", SIZES | SMOLLM3),
    "phi3": ("Phi3", USUAL | {"layer_norm_epsilon": 1e-2, "rope_max_wavelength": 100}),
    "phi3_short": ("Phi3", USUAL | PHI3 | {"pretraining_sequence_length": 20}),
    "phi3_long": ("Phi3", USUAL | PHI3 | {"pretraining_sequence_length": 12}),
    "qwen3": ("Qwen3", USUAL | LINEAR | {"head_dim": 12, "layer_norm_epsilon": 1e-5}),
    "mixtral": ("Mixtral", USUAL | LINEAR | MIXTRAL),
    "qwen2_moe": ("QwenMoe", USUAL | LINEAR | QWEN2_MOE),
    "qwen3_moe": ("Qwen3Moe", USUAL | LINEAR | QWEN3_MOE),
    "gpt_oss": ("GptOss", USUAL | GPT_OSS),
}
every_backbone = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("phi3", "phi3_long", "mixtral") else n
        for n in KERAS_HUB
    ],
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return lambda name: root / name if (root / name).exists() else write_folder(root / name, name)


def keras_hub_backbone(name):
    family, config = KERAS_HUB[name]
    backbone = getattr(keras_hub.models, f"{family}Backbone")(**config)
    for i, weight in enumerate(backbone.trainable_weights):  # rotary frequencies are not
        values = draw(f"{i} {name_of(weight.path)}", tuple(weight.shape))
        if weight.path.endswith("scale") and "Gemma" not in family:
            values = 1 + values
        weight.assign(values / 3 if len(weight.shape) == 3 else values)
    return backbone


def reference(name):
    with np.load(REFERENCES / f"{name}.npz") as arrays:
        return [arrays[key] for key in ("input_ids", "attention_mask", "logits")]


@some_apart(("phi3",), pytest.mark.slow)
def test_the_decoder_is_the_source_in_transformers(name, folder_of):
    ids, mask, logits = reference(name)
    found = logits_without_input(keras_encdec.adapt(folder_of(name)).backbone, ids, mask)
    assert_close(found[mask == 1], logits[mask == 1], 1e-4)


@some_apart(LATER, pytest.mark.slow)
def test_with_a_causal_mask_the_encoder_is_the_source(name, folder_of):
    ids, mask, logits = reference(name)
    options = {"encoder_attention": "causal", "expand_gqa": True}
    pair = keras_encdec.adapt(folder_of(name), **options).backbone
    states = states_to_read(pair.encoder(ids, mask), pair.spec.encoder)
    found = to_numpy(pair.decoder.logits(states))
    assert_close(found[mask == 1], logits[mask == 1], 1e-4)


@every_backbone
def test_the_decoder_is_the_source_in_keras_hub(name):
    source = keras_hub_backbone(name)
    ids = np.random.default_rng(0).integers(3, 96, (2, 20)).astype("int32")
    mask = (np.arange(20) < np.array([[20], [13]])).astype("int32")
    inputs = {"token_ids": ids, "padding_mask": mask}
    if "position_ids" in source.input:
        inputs["position_ids"] = np.broadcast_to(np.arange(20, dtype="int32"), ids.shape)
    states = source(inputs)
    expected = to_numpy(source.token_embedding(states, reverse=True))
    pair = keras_encdec.adapt(source, encoder_attention="causal").backbone
    found = to_numpy(pair.encoder(ids, mask))
    assert_close(found[mask == 1], to_numpy(states)[mask == 1], 1e-4)
    found = logits_without_input(pair, ids, mask)
    assert_close(found[mask == 1], expected[mask == 1], 1e-4)


@every_family
@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
def test_there_and_back_is_bitwise(name, dtype):
    facts = facts_of(name)
    family = known.of_model_type(facts["config"]["model_type"])
    spec = family.from_transformers(facts["config"])
    bound = dialect.bind(family.transformers, spec.weights())
    there = {key: tuple(shape) for key, shape in facts["tensors"].items()}
    check_names(bound, there, family)
    check_there_and_back(bound, dtype)


@pytest.mark.parametrize("name", KERAS_HUB)
def test_every_variable_of_keras_hub_has_a_weight_and_a_way_back(name):
    backbone = keras_hub_backbone(name)
    family = known.of_backbone(type(backbone).__name__)
    tied = {"tie_word_embeddings": backbone.token_embedding.tie_weights}
    spec = family.from_keras_hub({**tied, **backbone.get_config()})
    bound = dialect.bind(family.keras_hub, spec.weights())
    tensors = InMemory(backbone).source(None).weights.tensors()
    there = {name: shape for name, (shape, _) in tensors.items()}
    check_names(bound, there, family)
    check_there_and_back(bound, "float32")


def slim(name):
    """A decoder of two layers, or of all where a layer cannot go."""
    return {} if name == "gemma4_e2b" else {"decoder_layers": [0, 3]}


def check_names(bound, there, family):
    """Each tensor that is there is of a weight or dropped, and no other is asked for."""
    wanted = {n: t.shape for t in bound.values() for n in t.names}
    dropped = {n for n in there for pattern in family.dropped if fnmatch(n, pattern)}
    assert wanted == {n: s for n, s in there.items() if n in wanted or n not in dropped}


def check_there_and_back(bound, dtype):
    rng = np.random.default_rng(0)
    for parts in dialect.by_tensor(bound).values():
        names, shape = parts[0][1].names, parts[0][1].shape
        theirs = {name: rng.normal(size=shape).astype(dtype) for name in names}
        back = [tensor.to_theirs(tensor.to_ours(theirs.__getitem__)) for _, tensor in parts]
        for array, *some in zip(theirs.values(), *back, strict=True):
            whole = parts[0][1].joined(some) if len(some) > 1 else some[0]
            again = np.array(whole, order="C")
            assert (again.shape, again.tobytes()) == (array.shape, array.tobytes())


def test_what_images_pass_through_is_left_unread():
    sizes = {"image_size": 16, "patch_size": 4, "pool_size": 2, "num_heads": 2, "num_layers": 1}
    widths = {"hidden_dim": 8, "intermediate_dim": 8, "output_dim": 40}
    reads_images = Gemma3VisionEncoder(**sizes, **widths)
    config = KERAS_HUB["gemma3"][1] | {"num_layers": 1}
    text = keras_hub.models.Gemma3Backbone(**config)
    both = keras_hub.models.Gemma3Backbone(
        **config | {"image_size": 16, "vision_encoder": reads_images}
    )
    for weight in text.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)))
    of_text = {weight.path: weight for weight in text.weights}
    for weight in both.weights:
        if weight.path in of_text:
            weight.assign(of_text[weight.path])
    found, expected = (keras_encdec.adapt(model).backbone for model in (both, text))
    assert found.spec == expected.spec
    for ours, theirs in zip(found.weights, expected.weights, strict=True):
        if "cross_attention_gate" not in ours.path:
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


def test_a_text_model_inside_another_leaves_out_its_defaults():
    """As google/gemma-3-4b-it has it; KerasHub counts the parameters of gemma3_4b_text."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    text |= {"model_type": "gemma3_text", "sliding_window": 1024}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    images = {"mm_tokens_per_image": 256, "image_token_index": 262144, "vision_config": {}}
    spec = known.spec_of({"model_type": "gemma3", "text_config": text, **images})
    assert spec.windows == ((1024,) * 5 + (None,)) * 5 + (1024,) * 4
    assert spec.rotaries[5] == RotarySpec(1e6, 8.0)
    assert spec.rotaries[0] == RotarySpec(1e4)
    assert spec.vocabulary_size == 262_208
    as_there = dataclasses.replace(spec, vocabulary_size=262_144)
    assert count_parameters(as_there.weights()) == 3_880_099_328


def test_phi_3_mini_by_the_defaults_of_its_class():
    """Phi3Config of transformers 5.23, beside the count of KerasHub's phi3_mini_4k_instruct_en."""
    config = {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192}
    config |= {"num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-5}
    config |= {"model_type": "phi3", "max_position_embeddings": 4096, "sliding_window": 2047}
    spec = known.spec_of(config)
    assert count_parameters(spec.weights()) == 3_821_079_552
    assert spec.rotary == RotarySpec(1e4)
    assert spec.longest_written is None


def test_long_rope_as_phi_3_5_has_it_and_as_transformers_writes_it():
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = {"model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "rms_norm_eps": 1e-5}
    config |= {"intermediate_size": 8192, "num_hidden_layers": 2, "num_attention_heads": 32}
    config |= {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    older = {"rope_theta": 10000.0, "rope_scaling": {"type": "longrope", **factors}}
    newer = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    newer |= {**factors, "original_max_position_embeddings": 4096}
    specs = [known.spec_of(config | one) for one in (older, {"rope_parameters": newer})]
    assert specs[0] == specs[1]
    # sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5 / 12), as 32 = 2^5 and 4096 = 2^12.
    assert specs[0].rotary.attention_factor == pytest.approx((17 / 12) ** 0.5, abs=1e-12)
    assert specs[0].longest_written == 4096


@pytest.mark.slow
@two_families_and_the_others_by_hand
def test_a_pair_trains_generates_and_comes_back(name, folder_of, tmp_path):
    lm = keras_encdec.adapt(folder_of(name), **slim(name))
    rate = 1e-4 if name == "gemma4_e2b" else 0.01  # its gradients are large
    lm.compile(optimizer=keras.optimizers.SGD(rate), sampler="greedy")
    inputs = make_inputs()
    labels, weight = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
    before = to_numpy(lm.predict_on_batch(inputs))
    history = lm.fit(inputs, labels, sample_weight=weight, batch_size=3, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]
    logits = to_numpy(lm.predict_on_batch(inputs))
    assert np.abs(logits - before).max() > 1e-3
    if (longest := lm.backbone.spec.decoder.longest_written) is not None:
        with pytest.raises(ValueError, match=f"Expected max_length of at most {longest}: .*24"):
            lm.generate(inputs, max_length=24)
    length = longest or 24
    written = lm.generate(inputs, max_length=length, stop_token_ids=None)["decoder_token_ids"]
    assert written.shape == (3, length)
    lm.save_to_preset(tmp_path / name)
    again = EncDecSeq2SeqLM.from_preset(str(tmp_path / name))
    assert again.backbone.spec == lm.backbone.spec
    np.testing.assert_array_equal(to_numpy(again.predict_on_batch(inputs)), logits)


@pytest.mark.slow
@two_families_and_the_others_by_hand
def test_cached_is_full(name, folder_of):
    backbone = keras_encdec.adapt(folder_of(name), cross_attention_gate=False).backbone
    length = backbone.spec.decoder.longest_written or 20
    inputs = make_inputs(target=(length,) * 3)
    ids, decoder = inputs["decoder_token_ids"], backbone.decoder
    mask = inputs["encoder_padding_mask"]
    states = backbone.encoder(inputs["encoder_token_ids"], mask)
    full = to_numpy(decoder(ids, inputs["decoder_padding_mask"], states, mask))
    context, cache = decoder.context(states, mask), decoder.empty_cache(3, length)
    for i in range(length):
        state, cache = decoded(decoder, ids[:, i : i + 1], i, cache, context)
        assert_close(to_numpy(state)[:, 0], full[:, i], 1e-5)


@pytest.mark.slow
@two_families_and_the_others_by_hand
def test_padding_batch_mates_and_row_mates_do_not_matter(name, folder_of):
    options = {"cross_attention_init": "self_attention", "cross_attention_gate": False}
    backbone = keras_encdec.adapt(folder_of(name), **options).backbone
    inputs, lengths = make_inputs((20, 13), (16, 9)), {"encoder": (20, 13), "decoder": (16, 9)}
    together = run(backbone, inputs)["decoder_sequence_output"]
    row = {}
    for side, sizes in lengths.items():
        alone = {f"{side}_{k}": inputs[f"{side}_{k}"][1:, : sizes[1]] for k in ARRAYS}
        ids = [r[:n] for r, n in zip(inputs[f"{side}_token_ids"], sizes, strict=True)]
        row[f"{side}_token_ids"] = np.concatenate(ids)[None]
        row[f"{side}_padding_mask"] = np.repeat([1, 2], sizes)[None].astype("int32")
        lengths[side] = alone
    alone = run(backbone, lengths["encoder"] | lengths["decoder"])["decoder_sequence_output"]
    assert_close(alone[0], together[1, :9], 1e-4)
    packed = run(backbone, row)["decoder_sequence_output"][0]
    assert_close(packed, np.concatenate([together[0], together[1, :9]]), 1e-4)


@every_family
def test_a_plan_sets_each_weight_once_and_says_what_it_leaves(name):
    facts = facts_of(name)
    spec = known.of_model_type(facts["config"]["model_type"]).from_transformers(facts["config"])
    for sources in ((spec,), (spec, tiny_decoder())):
        layers = None if spec.per_layer_dim and len(sources) == 1 else 1
        plan = make_plan(*sources, decoder_layers=layers)
        assert {step.target: step.shape for step in plan.steps} == plan.pair.weights()
        assert len({step.target for step in plan.steps}) == len(plan.steps)
        there = {(side, n) for side, s in plan.sources.items() for n in s.weights()}
        used = {step.source for step in plan.steps} - {None}
        assert used | set(plan.dropped) == there
        assert not used & set(plan.dropped)
        assert bool(plan.dropped) == (len(sources) == 2) == ("(left out)" in str(plan))


@pytest.mark.slow
@some_apart(LATER, pytest.mark.long)
def test_keras_manners(name, folder_of):
    inputs = make_inputs()
    plain = keras_encdec.adapt(folder_of(name), **slim(name))
    states = run(plain.backbone, inputs)["encoder_sequence_output"]
    half = keras_encdec.adapt(folder_of(name), **slim(name), dtype="mixed_bfloat16")
    assert {w.dtype for w in half.backbone.weights} == {"float32"}
    found = run(half.backbone, inputs)["encoder_sequence_output"]
    moved = np.abs(found - states).max(axis=-1)[inputs["encoder_padding_mask"] == 1]
    # Two experts of nearly equal probability change places there, which moves some tokens far.
    few = half.backbone.spec.encoder.experts is not None
    assert 0 < np.quantile(moved, 0.9 if few else 1) < 1
    before = to_numpy(plain(inputs))
    plain.backbone.enable_lora(2)
    np.testing.assert_array_equal(to_numpy(plain(inputs)), before)
    new = {"lora", "cross_attention"}
    assert all(any(part in v.path for part in new) for v in plain.trainable_variables)
    half.quantize("int8")
    kept = {str(w.dtype) for w in half.backbone.weights if w.path.endswith(("gate", "down"))}
    assert kept == ({"int8"} if few else set())
    assert np.isfinite(to_numpy(half(inputs))).all()


def test_shards_are_read_as_one_file(tmp_path, folder_of):
    one = keras_encdec.adapt(folder_of("llama")).backbone
    three = keras_encdec.adapt(write_folder(tmp_path / "llama", "llama", shards=3)).backbone
    for a, b in zip(one.weights, three.weights, strict=True):
        if "cross_attention" not in a.path:
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def test_a_missing_shard_is_named(tmp_path):
    folder = write_folder(tmp_path / "llama", "llama", shards=3)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"Expected model-1.safetensors in .*Received"):
        keras_encdec.adapt(folder)


def test_a_tensor_that_the_index_lacks_is_named(tmp_path):
    folder = write_folder(tmp_path / "llama", "llama", shards=3)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    kept = {k: v for k, v in index["weight_map"].items() if v != "model-1.safetensors"}
    path.write_text(json.dumps({**index, "weight_map": kept}))
    with pytest.raises(ValueError, match=r"(?s)Expected the .* tensors.*is missing"):
        keras_encdec.adapt(folder)


def test_an_expert_that_is_missing_and_a_router_of_another_size_are_named(tmp_path):
    folder = write_folder(tmp_path / "mixtral", "mixtral")
    path, block = folder / "model.safetensors", "model.layers.2.block_sparse_moe"
    tensors = load_file(path)
    expert = tensors.pop(f"{block}.experts.3.w2.weight")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"{block}.experts.3.w2.weight is missing"):
        keras_encdec.adapt(folder)
    router = tensors[f"{block}.gate.weight"][:4]
    save_file(
        {**tensors, f"{block}.experts.3.w2.weight": expert, f"{block}.gate.weight": router}, path
    )
    with pytest.raises(
        ValueError, match=rf"{block}.gate.weight has shape \(4, 40\), not \(6, 40\)"
    ):
        keras_encdec.adapt(folder)
    (folder / "config.json").write_text(
        json.dumps({**facts_of("mixtral")["config"], "num_local_experts": 5})
    )
    with pytest.raises(ValueError, match=r"experts.5.w\d.weight is not part of this model"):
        keras_encdec.adapt(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"model_type": "lama"}, "'lama', whose family is not known"),
        ("llama", {"model_type": "bert"}, "add a family"),
        ("llama", {"attention_bias": True}, "attention_bias=False"),
        ("llama", {"hidden_act": "relu"}, "hidden_act='silu'"),
        ("llama", {"residual_multiplier": 0.2}, "residual_multiplier=0.2"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "'dynamic'"),
        ("gemma3", {"layer_types": ["linear_attention"] * 4}, "layer_types"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.0"),
        ("mixtral", {"num_experts_per_tok": 9}, "top_k of at most num_experts"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3]}, "experts in layers that there are"),
        ("olmo2", {"sliding_window_pattern": 4}, "sliding_window_pattern=4"),
        ("granite", {"num_local_experts": 8}, "num_local_experts=8"),
        ("phi4", {"resid_pdrop": 0.1}, "resid_pdrop=0.0"),
        ("phi4", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "'dynamic'"),
        ("gemma3_images", {"text_config": None}, "fields of a text model as text_config"),
    ],
)
def test_what_a_spec_cannot_express_is_named(name, change, message, tmp_path):
    folder = write_folder(tmp_path / name, name)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"(?s)Expected .*{message}"):
        keras_encdec.adapt(folder)


def test_a_config_without_a_needed_field(tmp_path):
    config = facts_of("llama")["config"]
    del config["hidden_size"]
    with pytest.raises(ValueError, match="Expected a config with hidden_size"):
        known.of_model_type("llama").from_transformers(config)


def test_older_configs_say_the_same():
    family = known.of_model_type("llama")
    config = facts_of("llama")["config"]
    scaling = dict(config["rope_parameters"])
    older = {**config, "rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    del older["rope_parameters"]
    assert family.from_transformers(older) == family.from_transformers(config)
    family, config = known.of_model_type("gemma2"), facts_of("gemma2")["config"]
    older = {**config, "layer_types": None, "rope_theta": 100.0, "rope_parameters": None}
    assert family.from_transformers(older) == family.from_transformers(config)
    family, config = known.of_model_type("qwen2"), facts_of("qwen2")["config"]
    older = {**config, "layer_types": None}
    assert family.from_transformers(older) == family.from_transformers(config)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_moe", "smollm3"])
def test_there_is_no_window_where_a_config_does_not_say_so(name):
    """`use_sliding_window` is False by the classes of transformers."""
    config = {**facts_of(name)["config"], "sliding_window": 6}
    for left_out in ("use_sliding_window", "layer_types"):
        config.pop(left_out, None)
    assert set(known.spec_of(config).windows) == {None}
    assert (
        6 in known.spec_of({**config, "use_sliding_window": True, "max_window_layers": 0}).windows
    )
    if name == "smollm3":
        assert known.spec_of({**config, "use_sliding_window": True}).windows == (
            None,
            None,
            6,
            None,
        )
        listed = known.spec_of({**config, "no_rope_layers": None})
        assert [rotary is None for rotary in listed.rotaries] == [False] * 3 + [True]
    if name in ("qwen2", "qwen3"):
        deep = {**config, "use_sliding_window": True, "num_hidden_layers": 30}
        deep.pop("max_window_layers", None)
        assert known.spec_of(deep).windows == (None,) * 28 + (6,) * 2


def test_stored_ties_and_frequencies_are_left_out(tmp_path):
    folder = write_folder(tmp_path / "smollm2", "smollm2")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(5, "float32")
    save_file(tensors, path)
    spec = keras_encdec.adapt(folder).backbone.spec.decoder
    assert spec.tied_output
    assert dataclasses.replace(spec, tied_output=False) != spec
