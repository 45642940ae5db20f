"""Images in front of T5Gemma 2's encoder: numbers of transformers, past windows, in a batch."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from reference_folder import facts_of, with_images, write_folder
from safetensors.numpy import load_file, save_file

import keras_encdec
from keras_encdec.families import t5gemma2
from keras_encdec.models.lora import numbered_layers
from keras_encdec.sharing.pixels import check_pixels
from keras_encdec.spec import VisionSpec
from keras_encdec.testing.models import assert_close, to_numpy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("release") / "t5gemma2", "t5gemma2")


@pytest.fixture(scope="module")
def lm(folder):
    return keras_encdec.from_preset(folder)


@pytest.fixture(scope="module")
def reference():
    """Model inputs with images, and what transformers computes of them."""
    return with_images()


def test_numbers_with_images_are_those_of_transformers(lm, reference):
    inputs, states, logits = reference
    assert lm.backbone.spec.vision == VisionSpec(8, 2, 8, 12, 2, 2, 4, 89, 91, 90)
    source, target = inputs["encoder_padding_mask"] == 1, inputs["decoder_padding_mask"] == 1
    output = lm.backbone(inputs)
    assert_close(to_numpy(output["encoder_sequence_output"])[source], states[source], 1e-4)
    found = to_numpy(lm.backbone.decoder.logits(output["decoder_sequence_output"]))
    assert_close(found[target], logits[target], 1e-4)
    # The second row has one image: what fills its place up is seen by nobody.
    other = {**inputs, "images": inputs["images"].copy()}
    other["images"][1, 1] = 0.5
    again = to_numpy(lm.backbone.encoder(*list(inputs.values())[:2], images=other["images"]))
    np.testing.assert_array_equal(again[1], to_numpy(output["encoder_sequence_output"])[1])


def test_files_keep_what_reads_images_and_it_stays_frozen(lm, reference, tmp_path):
    inputs, *_ = reference
    read = list(inputs.values())[:2]
    states = to_numpy(lm.backbone.encoder(*read, images=inputs["images"]))
    lm.save_to_preset(tmp_path / "pair")
    lm.export_to_transformers(tmp_path / "export")
    for name in ("pair", "export"):
        again = keras_encdec.from_preset(tmp_path / name).backbone
        assert again.spec == lm.backbone.spec
        found = to_numpy(again.encoder(*read, images=inputs["images"]))
        np.testing.assert_array_equal(found, states)
        assert not any("vision" in v.path for v in again.trainable_variables)


def test_lora_and_int8_leave_it_as_it_is(folder):
    backbone = keras_encdec.from_preset(folder).backbone
    before = {v.path: to_numpy(v.value) for v in backbone.weights if "vision" in v.path}
    layers = [layer.path for layer in numbered_layers(backbone)]
    first = layers.index("vision")
    assert all(path.startswith("vision") for path in layers[first:])  # numbers of files stay
    backbone.enable_lora(2)
    assert not any("vision" in v.path for v in backbone.trainable_variables)
    backbone.quantize("int8", filters="query|mlp_dense_1")
    after = {v.path: to_numpy(v.value) for v in backbone.weights if "vision" in v.path}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)
    query = next(v for v in backbone.weights if v.path == "encoder/block_0/attention/query/kernel")
    assert query.dtype == "int8"


def test_older_names_and_a_part_that_no_token_reaches(lm, folder, tmp_path):
    """The released files have SigLIP inside one module more; a vocabulary may lack its tokens."""
    tensors = load_file(folder / "model.safetensors")
    older = {
        k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in tensors.items()
    }
    config = facts_of("t5gemma2")["config"]
    texts = {**config, "image_token_index": config["vocab_size"]}
    for name, some, said in (("older", older, config), ("texts", tensors, texts)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(said))
        save_file(some, tmp_path / name / "model.safetensors")
    found = keras_encdec.from_preset(tmp_path / "older").backbone.weights
    for ours, theirs in zip(lm.backbone.weights, found, strict=True):
        np.testing.assert_array_equal(to_numpy(ours.value), to_numpy(theirs.value))
    assert keras_encdec.from_preset(tmp_path / "texts").backbone.spec.vision is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_mean", [0.48, 0.46, 0.41]),
        ("do_pan_and_scan", True),
        ("size", {"height": 8, "width": 16}),
    ],
)
def test_a_processor_of_other_pixels_is_refused(tmp_path, field, value):
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    said |= {"size": {"height": 8, "width": 8}, "do_pan_and_scan": None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    check_pixels(str(tmp_path), 8)
    said = {"image_processor": {**said, field: value}}
    (tmp_path / "processor_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=f"Expected {field} of .* in processor_config.json"):
        check_pixels(str(tmp_path), 8)


def test_a_tensor_of_images_too_many_is_named(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.vision_tower.encoder.layers.2.mlp.fc1.bias"] = np.ones(12, "float32")
    (tmp_path / "config.json").write_text(json.dumps(facts_of("t5gemma2")["config"]))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.fc1\.bias is not part of this model"):
        keras_encdec.from_preset(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 9}, "patches that fill an image"),
        ({"tokens_per_image": 3}, "tokens_per_image that stand for squares"),
        ({"tokens_per_image": 9}, "tokens_per_image that stand for squares"),
        ({"num_heads": 3}, "a width that num_heads divide"),
        ({"end_token_id": 89}, "three different ids"),
        ({"image_token_id": 96}, "ids of images below the vocabulary"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(lm, fields, message):
    spec = lm.backbone.spec
    with pytest.raises(ValueError, match=f"Expected {message}"):
        dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, **fields))


@pytest.mark.parametrize("field", [{"layer_norm_eps": 1e-5}, {"hidden_act": "gelu"}, {"new": 1}])
def test_a_config_that_asks_for_more_is_refused(field):
    config = facts_of("t5gemma2")["config"]
    config["encoder"]["vision_config"] |= field
    with pytest.raises(ValueError, match=f"Expected.*{next(iter(field))}"):
        t5gemma2.from_transformers(config)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="one backend is enough")
def test_where_weights_lie_is_found_for_images_too(lm):
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), devices=["cpu:0"])
    for spec in (None, lm.backbone.spec):
        layout = lm.backbone.get_layout_map(mesh, spec)
        assert not any(layout[v.path].axes for v in lm.backbone.vision.weights if layout[v.path])
