"""The released T5Gemma 2 layout: its text part is transformers' model, merged attention and all."""

import json

import keras
import numpy as np
import pytest
from reference_folder import FAMILIES, facts_of, write_folder
from safetensors.numpy import load_file, save_file

import keras_encdec
from keras_encdec.families import t5gemma2
from keras_encdec.generation import BeamSearch
from keras_encdec.spec import CrossAttentionSpec, count_parameters
from keras_encdec.testing.models import assert_close, decoded, to_numpy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("release") / "t5gemma2", "t5gemma2")


@pytest.fixture
def lm(folder):
    return keras_encdec.from_preset(folder)


def reference():
    with np.load(FAMILIES / "t5gemma2.npz") as arrays:
        names = ("encoder_token_ids", "encoder_padding_mask")
        names += ("decoder_token_ids", "decoder_padding_mask")
        theirs = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
        inputs = {n: arrays[t].astype("int32") for n, t in zip(names, theirs, strict=True)}
        return inputs, arrays["states"], arrays["logits"]


@pytest.mark.slow
def test_numbers_are_those_of_transformers(lm):
    inputs, states, logits = reference()
    source, target = inputs["encoder_padding_mask"] == 1, inputs["decoder_padding_mask"] == 1
    found = to_numpy(lm.backbone(inputs)["encoder_sequence_output"])
    assert_close(found[source], states[source], 1e-4)
    assert_close(to_numpy(lm(inputs))[target], logits[target], 1e-4)


def test_it_is_two_switches_of_the_spec(lm):
    spec = lm.backbone.spec
    assert spec.cross_attention == CrossAttentionSpec(merged=True)
    assert spec.tied_embeddings
    assert spec.encoder.windows == ((3, 4), (3, 4), None, (3, 4))
    assert spec.decoder.windows == (6, 6, None, 6)
    assert {w.path: tuple(w.shape) for w in lm.backbone.weights} == spec.weights()
    assert lm.backbone.count_params() == sum(np.prod(s) for s in spec.weights().values())


@pytest.mark.slow
def test_cached_is_full(lm):
    inputs, *_ = reference()
    decoder, mask = lm.backbone.decoder, inputs["encoder_padding_mask"]
    states = lm.backbone.encoder(inputs["encoder_token_ids"], mask)
    ids = inputs["decoder_token_ids"]
    full = to_numpy(decoder(ids, np.ones_like(ids), states, mask))
    context, cache = decoder.context(states, mask), decoder.empty_cache(*ids.shape)
    for i in range(ids.shape[1]):
        state, cache = decoded(decoder, ids[:, i : i + 1], i, cache, context)
        assert_close(to_numpy(state)[:, 0], full[:, i], 1e-5)


@pytest.mark.long
def test_prompts_beams_and_samples(lm):
    inputs, *_ = reference()
    inputs["decoder_padding_mask"] = (np.arange(16) < np.array([[5], [3]])).astype("int32")
    lm.compile(sampler="greedy")
    greedy = lm.generate(inputs, stop_token_ids=None)["decoder_token_ids"]
    lm.compile(sampler=BeamSearch(1))
    np.testing.assert_array_equal(
        lm.generate(inputs, stop_token_ids=None)["decoder_token_ids"], greedy
    )
    lm.compile(sampler=BeamSearch(3))
    both = lm.generate(inputs, stop_token_ids=None, num_samples=3)["decoder_token_ids"]
    one = {key: rows[1:] for key, rows in inputs.items()}
    alone = lm.generate(one, stop_token_ids=None, num_samples=3)["decoder_token_ids"]
    np.testing.assert_array_equal(both[3:], alone)


@pytest.mark.slow
def test_trains_and_comes_back(lm, tmp_path):
    inputs, *_ = reference()
    labels, weight = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
    lm.compile(optimizer=keras.optimizers.SGD(0.01))
    losses = lm.fit(inputs, labels, sample_weight=weight, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    logits = to_numpy(lm.predict_on_batch(inputs))
    lm.save_to_preset(tmp_path / "pair")
    again = keras_encdec.from_preset(tmp_path / "pair")
    np.testing.assert_array_equal(to_numpy(again.predict_on_batch(inputs)), logits)
    assert again.backbone.encoder.embedding is again.backbone.decoder.embedding


def test_export_is_the_inverse_of_import(lm, folder, tmp_path):
    """But for a head of the vision Transformer, which nothing computes with."""
    lm.export_to_transformers(tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(folder / "model.safetensors")
    dropped = ("vision_tower.head", "lm_head", "decoder.embed_tokens")
    kept = {name for name in expected if not any(part in name for part in dropped)}
    assert found.keys() == kept
    for name in kept:
        np.testing.assert_array_equal(found[name], expected[name])
    again = keras_encdec.from_preset(tmp_path / "out")
    assert again.backbone.spec == lm.backbone.spec
    assert "T5Gemma2ForConditionalGeneration" in (tmp_path / "out" / "README.md").read_text()


def merged(source, **options):
    return keras_encdec.adapt(source, merged_attention=True, tied_embeddings=True, **options)


@pytest.mark.transformers
@pytest.mark.parametrize("source", ["t5gemma2", "gemma3"])
def test_transformers_computes_what_an_export_does(source, folder, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    inputs, *_ = reference()
    if source == "t5gemma2":
        lm = keras_encdec.from_preset(folder)
    else:  # a pair of ours, whose encoder sees as many tokens on either side
        lm = merged(write_folder(tmp_path / source, source))
        assert lm.backbone.spec.encoder.windows[0] == 6
    lm.export_to_transformers(tmp_path / "out")
    kind = transformers.T5Gemma2ForConditionalGeneration
    theirs, told = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    names = "input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"
    given = {n: torch.from_numpy(x) for n, x in zip(names, inputs.values(), strict=True)}
    with torch.no_grad():
        logits = theirs.eval()(**given, use_cache=False).logits.numpy()
    target = inputs["decoder_padding_mask"] == 1
    assert_close(to_numpy(lm(inputs))[target], logits[target], 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"encoder.activation='silu' \(only 'gelu_tanh'\)"),
        ({"cross_attention_layers": [0]}, r"cross_attention.layers=\(0,\) \(only None\)"),
    ],
)
def test_what_the_layout_cannot_hold_is_named(options, message, tmp_path):
    lm = merged(write_folder(tmp_path / "qwen3", "qwen3"), **options)
    with pytest.raises(ValueError, match=rf"Expected a pair of Gemma 3's kind.*{message}"):
        lm.export_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_warm_up_has_nothing_to_warm_up(lm):
    lm.compile()
    inputs, *_ = reference()
    warmup = keras_encdec.training.CrossAttentionWarmup(2)
    with pytest.raises(ValueError, match=r"Expected a pair with a cross-attention of its own"):
        lm.fit(inputs, inputs["decoder_token_ids"], callbacks=[warmup], verbose=0)


def as_released():
    """The fields of google/t5gemma-2-270m-270m, as transformers 5.0 prints its config."""
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 3
    near = {"rope_theta": 10_000, "rope_type": "default"}
    everywhere = {"factor": 8.0, "rope_theta": 1_000_000, "rope_type": "linear"}
    decoder = {
        **{"_sliding_window_pattern": 6, "attention_bias": False, "attention_dropout": 0.0},
        **{"attn_logit_softcapping": None, "dropout_rate": 0.0, "dtype": "bfloat16"},
        **{"final_logit_softcapping": None, "head_dim": 256, "hidden_size": 640},
        **{"hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02},
        **{"intermediate_size": 2048, "layer_types": kinds, "max_position_embeddings": 32768},
        **{"model_type": "t5gemma2_decoder", "num_attention_heads": 4, "num_hidden_layers": 18},
        **{"num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6},
        "rope_parameters": {"full_attention": everywhere, "sliding_attention": near},
        **{"sliding_window": 512, "use_bidirectional_attention": False, "use_cache": True},
        "vocab_size": 262144,
    }
    text = {**decoder, "model_type": "t5gemma2_text", "tie_word_embeddings": True}
    text |= {"is_decoder": False, "cross_attention_hidden_size": None, "return_dict": True}
    images = {"boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 256001}
    encoder = {
        **{"attention_dropout": 0.0, "dropout_rate": 0.0, "dtype": "bfloat16", **images},
        **{"initializer_range": 0.02, "mm_tokens_per_image": 256, "vocab_size": 262144},
        **{"model_type": "t5gemma2_encoder", "text_config": text},
        "vision_config": {
            **{"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304},
            **{"model_type": "siglip_vision_model", "num_attention_heads": 16},
            **{"num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False},
        },
    }
    return {
        **{"attention_dropout": 0.0, "bos_token_id": 2, "classifier_dropout_rate": 0.0},
        **{"decoder": decoder, "dropout_rate": 0.0, "dtype": "bfloat16", "encoder": encoder},
        **{"eoi_token_index": 256000, "eos_token_id": 1, "image_token_index": 256001},
        **{"initializer_range": 0.02, "is_encoder_decoder": True, "model_type": "t5gemma2"},
        **{"pad_token_id": 0, "transformers_version": "5.0.0.dev0", "vocab_size": 262144},
    }


def test_the_released_config_is_taken():
    """Whose decoder does not say that its embedding is tied."""
    pair = t5gemma2.from_transformers(as_released())
    assert (pair.encoder.num_layers, pair.decoder.num_layers) == (18, 18)
    assert pair.decoder.windows[:6] == (512,) * 5 + (None,)
    assert pair.encoder.windows[0] == (256, 257)
    assert pair.tied_embeddings
    assert pair.decoder.tied_output
    # 640 * 262144, and per layer 640 * 256 * (4 + 1 + 1 + 4) + 3 * 640 * 2048 + 4 * 640 + 2 * 256
    layer = 640 * 2560 + 3 * 640 * 2048 + 4 * 640 + 2 * 256
    texts = {k: shape for k, shape in pair.weights().items() if not k.startswith("vision/")}
    assert count_parameters(texts) == 640 * 262144 + 2 * (18 * layer + 640)
    # SigLIP: kernels and biases of a block, two norms in it and one behind, patches, 64 * 64
    # places; then the norm and matrix in front of the encoder, and what ends an image.
    block = 4 * 1152 * 1153 + 4304 * 1153 + 1152 * 4305 + 4 * 1152
    siglip = 27 * block + 2 * 1152 + 14 * 14 * 3 * 1152 + 1152 + 64 * 64 * 1152
    expected = siglip + 1152 + 1152 * 640 + 640
    assert count_parameters(pair.weights()) - count_parameters(texts) == expected
    assert (pair.vision.pool_size, pair.vision.image_token_id) == (4, 256001)


def test_dropout_of_the_pair_is_that_of_its_sides():
    pair = t5gemma2.from_transformers({**as_released(), "dropout_rate": 0.1})
    assert (pair.encoder.dropout, pair.decoder.dropout) == (0.1, 0.1)


def test_a_tensor_too_many_is_named(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.decoder.layers.0.cross_attn.q_proj.weight"] = np.ones((2, 2), "float32")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text(json.dumps(facts_of("t5gemma2")["config"]))
    save_file(tensors, damaged / "model.safetensors")
    with pytest.raises(ValueError, match=r"cross_attn\.q_proj.* is not part of this model"):
        keras_encdec.from_preset(damaged)
