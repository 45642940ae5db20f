"""An encoder alone: the same states as in its pair or its source, and files without a decoder."""

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from qwen_folder import write_qwen

import keras_encdec
from keras_encdec.models import EncDecSeq2SeqLM, EncDecTextEmbedder, EncoderBackbone
from keras_encdec.sharing.encoders import find_encoder
from keras_encdec.spec import count_parameters
from keras_encdec.testing.models import assert_close, draw, make_inputs, tiny_backbone, to_numpy
from keras_encdec.testing.specs import other_pair, tiny_encoder, tiny_pair


def read(backbone, inputs):
    x = {name: inputs[f"encoder_{name}"] for name in ("token_ids", "padding_mask")}
    return to_numpy(backbone(x))


@pytest.fixture(scope="module")
def inputs():
    return make_inputs()


@pytest.mark.parametrize(
    "pair",
    [
        tiny_pair(),
        other_pair(),
        tiny_pair(encoder=tiny_encoder(width=42), tied_embeddings=True),
        tiny_pair(encoder_attention="causal"),
    ],
    ids=["tiny", "other", "tied", "causal"],
)
def test_states_are_those_in_the_pair(pair, inputs):
    backbone = tiny_backbone(pair)
    alone = EncoderBackbone.from_preset(EncDecSeq2SeqLM(backbone))
    mask = inputs["encoder_padding_mask"]
    expected = to_numpy(backbone.encoder(inputs["encoder_token_ids"], mask))
    np.testing.assert_array_equal(read(alone, inputs)[mask != 0], expected[mask != 0])
    assert alone.spec.encoder_attention == pair.encoder_attention
    assert alone.count_params() == count_parameters(alone.spec.weights())
    assert {v.path for v in alone.weights} == set(alone.spec.weights())


def test_it_is_a_copy(inputs):
    pair = tiny_backbone()
    alone, before = EncoderBackbone.from_preset(pair), read(tiny_encoder_of(pair), inputs)
    for weight in pair.weights:
        weight.assign(weight * 2)
    np.testing.assert_array_equal(read(alone, inputs), before)


def tiny_encoder_of(pair):
    return EncoderBackbone.from_preset(pair)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_decoder_only_model_as_an_encoder(attention):
    """Causal, it gives its source's states; else other ones, of which the last is the same."""
    source = keras_hub.models.Backbone.from_preset(
        keras_encdec.sharing.catalog.embedded("gemma2_mini_docs")
    )
    alone = EncoderBackbone.from_preset("gemma2_mini_docs", encoder_attention=attention)
    ids = np.random.default_rng(0).integers(3, 4000, (2, 24)).astype("int32")
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    theirs, ours = to_numpy(source(x)), to_numpy(alone(x))
    if attention == "causal":
        assert_close(ours, theirs, 1e-4)
    else:
        assert np.abs(ours[:, :-1] - theirs[:, :-1]).max() > 0.1


@pytest.mark.slow
def test_a_recipe_is_its_first_source_made_bidirectional(inputs):
    lm = keras_encdec.from_preset("gemma2_tiny_mini")
    found = find_encoder("gemma2_tiny_mini")
    ids = np.random.default_rng(0).integers(3, 4000, (2, 24)).astype("int32")
    ones = np.ones_like(ids)
    expected = to_numpy(lm.backbone.encoder(ids, ones))
    assert_close(to_numpy(found.backbone({"token_ids": ids, "padding_mask": ones})), expected)
    text = "Return the sum."
    assert list(found.tokenizer(text)) == list(lm.preprocessor.encoder_tokenizer(text))
    assert found.backbone.record.sources["encoder"]["name"] == "gemma2_tiny_docs"


def test_attention_of_a_pair_is_its_own():
    with pytest.raises(ValueError, match="Expected no encoder_attention"):
        EncoderBackbone.from_preset(tiny_backbone(), encoder_attention="causal")


def test_presets_hold_no_decoder(tmp_path, inputs):
    alone = EncoderBackbone.from_preset(tiny_backbone())
    alone.save_to_preset(tmp_path / "encoder")
    count = 0
    with h5py.File(tmp_path / "encoder/model.weights.h5") as file:

        def add(name, item):
            nonlocal count
            if isinstance(item, h5py.Dataset):
                assert "decoder" not in name
                count += item.size

        file.visititems(add)
    assert count == alone.count_params()
    for load in (EncoderBackbone.from_preset, keras_hub.models.Backbone.from_preset):
        again = load(str(tmp_path / "encoder"))
        assert isinstance(again, EncoderBackbone)
        np.testing.assert_array_equal(read(again, inputs), read(alone, inputs))
    assert again.spec == alone.spec
    assert [entry["what"] for entry in again.record.history] == ["encoder taken"]
    assert (tmp_path / "encoder/README.md").read_text()


def test_of_a_preset_of_a_pair(tmp_path, inputs):
    pair = tiny_backbone()
    EncDecSeq2SeqLM(pair).save_to_preset(tmp_path / "pair")
    alone = EncoderBackbone.from_preset(tmp_path / "pair")
    np.testing.assert_array_equal(read(alone, inputs), read(tiny_encoder_of(pair), inputs))


def test_lora_and_its_file(tmp_path, inputs):
    alone = EncoderBackbone.from_preset(tiny_backbone())
    alone.enable_lora(2)
    assert {v.name for v in alone.trainable_variables} == {"lora_kernel_a", "lora_kernel_b"}
    for variable in alone.trainable_variables:
        variable.assign(draw(variable.path, tuple(variable.shape)))
    expected = read(alone, inputs)
    alone.save_lora_weights(tmp_path / "it.lora.h5")
    other = EncoderBackbone.from_preset(tiny_backbone())
    other.load_lora_weights(tmp_path / "it.lora.h5")
    assert_close(read(other, inputs), expected)
    merged = EncoderBackbone.from_preset(alone)
    assert_close(read(merged, inputs), expected, 1e-4)
    assert len(merged.weights) == len(merged.spec.weights())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantised_it_comes_back(tmp_path, inputs, mode):
    alone = EncoderBackbone.from_preset(tiny_backbone())
    alone.quantize(mode)
    alone.save_to_preset(tmp_path / "it")
    again = EncoderBackbone.from_preset(tmp_path / "it")
    np.testing.assert_array_equal(read(again, inputs), read(alone, inputs))


def test_in_a_policy(inputs):
    alone = EncoderBackbone.from_preset(tiny_backbone(), dtype="mixed_bfloat16")
    assert {str(v.dtype) for v in alone.weights} == {"float32"}
    x = {name: inputs[f"encoder_{name}"] for name in ("token_ids", "padding_mask")}
    assert keras.backend.standardize_dtype(alone(x).dtype) == "bfloat16"


def test_what_there_is_not():
    with pytest.raises(ValueError, match="load_weights"):
        EncoderBackbone.from_preset(tiny_backbone(), load_weights=False)
    with pytest.raises(ValueError, match="gemma2_mini_docs"):
        EncoderBackbone.from_preset("gemma2_mini_doc")
    with pytest.raises(ValueError, match="encoder_attention"):
        EncoderBackbone(tiny_encoder(), encoder_attention="both")


def test_read_causally_without_a_start_token(tmp_path):
    embedder = EncDecTextEmbedder.from_preset(
        write_qwen(tmp_path), encoder_attention="causal", sequence_length=16
    )
    assert embedder.preprocessor.add_start_token is False
    assert np.isfinite(embedder.encode_text(["A text."])).all()


def test_settings_beside_a_preprocessor_are_refused():
    with pytest.raises(ValueError, match="Expected sequence_length, or a preprocessor"):
        EncDecTextEmbedder.from_preset("gemma2_mini_docs", sequence_length=16, preprocessor=None)
