"""Encoders in the layouts of others: what is written, read back, and refused by name."""

import dataclasses
import json

import numpy as np
import pytest
from qwen_folder import write_qwen
from reference_folder import write_folder
from safetensors.numpy import load_file

import keras_encdec
from keras_encdec.files import write_json
from keras_encdec.models import (
    EncDecTextClassifier,
    EncDecTextClassifierPreprocessor,
    EncDecTextEmbedder,
    EncoderBackbone,
)
from keras_encdec.sharing.whole import check_whole
from keras_encdec.spec import EncoderSpec, NormSpec
from keras_encdec.testing.models import assert_close, draw, make_inputs, tiny_backbone, to_numpy
from keras_encdec.testing.specs import other, tiny_encoder

# What a source becomes, bidirectional and causal. Sources' windows are 6 keys, with a query's own:
# both ways, transformers counts those on each side of it, without its own.
BOTH_WAYS = {
    "gemma": ("gemma", None),
    "gemma2": ("t5gemma", 5),
    "gemma3": ("gemma3_text", 5),
    "llama": ("llama", None),
    "smollm2": ("llama", None),
    "mistral": ("mistral", 5),
    "qwen2": ("qwen2", 5),
    "qwen3": ("qwen3", 4096),
    "smollm3": ("smollm3", 4096),
    "mixtral": ("mixtral", 5),
    "qwen2_moe": ("qwen2_moe", 5),
    "qwen3_moe": ("qwen3_moe", 5),
    "gpt_oss": ("gpt_oss", 5),
    "olmo2": ("olmo2", None),
    "granite": ("granite", None),
    "phi4": ("phi3", None),
    "gemma4": ("gemma4_text", 5),
    "gemma4_e2b": ("gemma4_text", 5),
    "gemma4_moe": ("gemma4_text", 5),
}
CAUSAL = BOTH_WAYS | {"gemma2": ("gemma2", 6), "gemma3": ("gemma3_text", 6)}
CAUSAL |= {"mistral": ("mistral", 6), "qwen2": ("qwen2", 6)}
CAUSAL |= dict.fromkeys(("gemma4", "gemma4_e2b", "gemma4_moe"), ("gemma4_text", 6))
CAUSAL |= {name: (name, 6) for name in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")}
ATTENTION = tiny_encoder().attention
EVERY = [(n, a) for n in BOTH_WAYS for a in ("bidirectional", "causal")]


def tiny(**changes):
    """An encoder without text, all weights drawn."""
    backbone = EncoderBackbone(tiny_encoder(**changes))
    for weight in backbone.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)))
    return backbone


def rows():
    inputs = make_inputs()
    return {name: inputs[f"encoder_{name}"] for name in ("token_ids", "padding_mask")}


def config_of(folder, name="config.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {name: write_folder(root / name, name) for name in BOTH_WAYS}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize(("name", "attention"), EVERY)
def test_export_is_the_inverse_of_import(name, attention, sources, tmp_path):
    encoder = EncoderBackbone.from_preset(sources[name], encoder_attention=attention)
    encoder.export_to_transformers(tmp_path / "out")
    expected = load_file(sources[name] / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    config = config_of(tmp_path / "out")
    model_type, window = (BOTH_WAYS if attention == "bidirectional" else CAUSAL)[name]
    assert config["model_type"] == model_type
    assert config.get("encoder", config).get("sliding_window") == window
    if model_type != "t5gemma":
        assert config["is_causal"] is (attention == "causal")
        assert found.keys() == expected.keys() - {"lm_head.weight"}
        for tensor in found:
            np.testing.assert_array_equal(found[tensor], expected[tensor])
    again = EncoderBackbone.from_preset(tmp_path / "out")
    assert again.spec == encoder.spec
    for ours, theirs in zip(encoder.weights, again.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(theirs), to_numpy(ours))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": ((3, 8), None)}, "'t5gemma', cannot hold encoder.windows=.*only"),
        ({"windows": (8, None, 4)}, "encoder.windows"),
        ({"windows": (1, None)}, "encoder.windows"),
        ({"activation": "silu"}, "encoder.activation='silu' .only 'gelu_tanh'."),
        ({"norm": NormSpec(1e-6, False)}, "encoder.norm.zero_centered=False"),
        ({"attention": dataclasses.replace(ATTENTION, bias=True)}, "encoder.attention.bias=True"),
        (
            vars(other(tiny_encoder())) | {"windows": (8, None), "rotary": None},
            "'qwen2', cannot.*_norm",
        ),
    ],
)
def test_what_no_layout_holds_is_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=f"Expected an encoder that a layout.*{message}"):
        tiny(**changes).export_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_window_of_a_token_alone(sources, tmp_path):
    mistral = EncoderBackbone.from_preset(sources["mistral"]).spec.encoder
    alone = EncoderBackbone(dataclasses.replace(mistral, windows=(1,) * 4))
    with pytest.raises(ValueError, match=r"encoder.windows=\(1, 1, 1, 1\)"):
        alone.export_to_transformers(tmp_path / "out")


def test_dropout_is_held_by_t5gemma_alone(tmp_path, sources):
    encoder = tiny(dropout=0.1)
    encoder.export_to_transformers(tmp_path / "out")
    assert EncoderBackbone.from_preset(tmp_path / "out").spec == encoder.spec
    llama = EncoderBackbone.from_preset(sources["llama"]).spec.encoder
    with pytest.raises(ValueError, match=r"encoder.dropout=0.1 .only 0.0."):
        EncoderBackbone(dataclasses.replace(llama, dropout=0.1)).export_to_transformers(tmp_path)


@pytest.mark.slow
def test_an_export_after_lora_is_the_encoder_with_lora(tmp_path):
    encoder, x = tiny(), rows()
    before = to_numpy(encoder(x))
    encoder.enable_lora(2)
    for variable in encoder.trainable_variables:
        variable.assign(0.3 * draw(f"trained {variable.path}", tuple(variable.shape)))
    expected = to_numpy(encoder(x))
    encoder.export_to_transformers(tmp_path / "out")
    found = to_numpy(EncoderBackbone.from_preset(tmp_path / "out")(x))
    assert_close(found, expected)
    assert np.abs(found - before).max() > 0.1


def test_bfloat16_and_shards(tmp_path):
    encoder = EncoderBackbone.from_preset(tiny_backbone(dtype="bfloat16"))
    encoder.export_to_transformers(tmp_path / "out", max_shard_size=1e-5)
    assert config_of(tmp_path / "out")["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    again = EncoderBackbone.from_preset(tmp_path / "out", dtype="bfloat16")
    for ours, theirs in zip(encoder.weights, again.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


def test_an_encoder_is_no_pair_and_no_decoder(sources, tmp_path):
    encoder = EncoderBackbone.from_preset(sources["llama"])
    encoder.export_to_transformers(tmp_path / "llama")
    for call in (keras_encdec.adapt, keras_encdec.from_preset):
        with pytest.raises(ValueError, match=r"Expected a decoder-only model.*is_causal=false"):
            call(tmp_path / "llama")
    tiny().export_to_transformers(tmp_path / "t5gemma")
    with pytest.raises(ValueError, match=r"Expected a pair.*an encoder alone.*EncoderBackbone"):
        keras_encdec.from_preset(tmp_path / "t5gemma")
    with pytest.raises(ValueError, match="Expected no encoder_attention"):
        EncoderBackbone.from_preset(tmp_path / "llama", encoder_attention="causal")


def test_windows_of_others_are_read_as_they_see(sources, tmp_path):
    """Both ways, transformers' queries see `sliding_window` keys before their own."""
    folder = write_folder(tmp_path / "mistral", "mistral")
    config = config_of(folder) | {"is_causal": False}
    (folder / "config.json").write_text(json.dumps(config))
    encoder = EncoderBackbone.from_preset(folder)
    causal = EncoderBackbone.from_preset(sources["mistral"]).spec.encoder
    assert set(causal.windows) == {6}
    assert encoder.spec == EncoderSpec(dataclasses.replace(causal, windows=(7,) * 4))


def test_an_export_may_be_shared_and_replaced(sources, tmp_path):
    for name in ("llama", "gemma2"):
        encoder = EncoderBackbone.from_preset(sources[name])
        for _ in range(2):
            encoder.export_to_transformers(tmp_path / name)
        assert check_whole(tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        kind = "LlamaModel" if name == "llama" else "T5GemmaEncoderModel"
        assert f'model = {kind}.from_pretrained("./{name}")' in card
        assert "pipeline_tag: feature-extraction" in card
        assert "library_name: transformers" in card
    (tmp_path / "llama" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes.txt"):
        encoder.export_to_transformers(tmp_path / "llama")


# Classifiers.


def classifier(**options):
    options = {"label_names": ["no", "yes"]} | options
    model = EncDecTextClassifier(tiny(), **options)
    model.head.bias.assign(draw("head/bias", tuple(model.head.bias.shape)))
    return model


def test_a_head_is_that_of_t5gemma(tmp_path):
    model = classifier(dropout=0.2)
    model.export_to_transformers(tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["architectures"] == ["T5GemmaForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["label2id"] == {"no": 0, "yes": 1}
    assert config["classifier_dropout_rate"] == 0.2
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kernel, bias = to_numpy(model.head.kernel), to_numpy(model.head.bias)
    np.testing.assert_array_equal(tensors["score.out_proj.weight"], kernel.T)
    np.testing.assert_array_equal(tensors["score.out_proj.bias"], bias)
    assert check_whole(tmp_path / "out")
    assert "pipeline_tag: text-classification" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("names", [["no", "yes", "perhaps"], None])
def test_a_head_comes_back(names, tmp_path):
    model = classifier(dropout=0.2, label_names=names, num_classes=None if names else 3)
    model.export_to_transformers(tmp_path / "out")
    again = EncDecTextClassifier.from_preset(tmp_path / "out")
    assert again.label_names == model.label_names
    assert (again.num_classes, again.dropout_rate, again.pooling) == (3, 0.2, "last")
    x = rows()
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(model(x)))
    again.export_to_transformers(tmp_path / "again")
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "again")]
    assert files[0].keys() == files[1].keys()
    for name, tensor in files[0].items():
        np.testing.assert_array_equal(files[1][name], tensor)


def test_another_head_is_a_new_one(tmp_path):
    model = classifier()
    model.export_to_transformers(tmp_path / "out")
    other = EncDecTextClassifier.from_preset(tmp_path / "out", num_classes=2)
    assert other.label_names is None
    assert not to_numpy(other.head.bias).any()
    encoder = EncoderBackbone.from_preset(tmp_path / "out")  # and its encoder can be had alone
    x = rows()
    np.testing.assert_array_equal(to_numpy(encoder(x)), to_numpy(model.backbone(x)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "no"}, r"Expected score.out_proj.weight of shape \(1, \d+\).*Received: \(2, "),
        ({"1": "no", "2": "yes"}, "Expected id2label with numbers from 0 to 1.*Received"),
    ],
)
def test_a_head_that_its_config_contradicts(labels, message, tmp_path):
    classifier().export_to_transformers(tmp_path / "out")
    write_json(tmp_path / "out" / "config.json", config_of(tmp_path / "out") | {"id2label": labels})
    with pytest.raises(ValueError, match=message):
        EncDecTextClassifier.from_preset(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"pooling": "mean"}, "pooling='last'"),
        ({"activation": "softmax"}, "activation='linear'"),
        ({"label_names": None, "num_choices": 2}, "num_choices=None"),
    ],
)
def test_heads_that_are_not_held(options, field, tmp_path):
    with pytest.raises(ValueError, match=f"Expected {field}.*Received"):
        classifier(**options).export_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_end_that_pads_is_not_held(qwen, tmp_path):
    """transformers takes the last token that is not the padding's for a text's last."""
    tokenizer = EncDecTextEmbedder.from_preset(qwen).preprocessor.tokenizer
    assert tokenizer.end_token_id == 0
    reads = EncDecTextClassifierPreprocessor(tokenizer, add_end_token=True)
    model = EncDecTextClassifier(tiny(vocabulary_size=320), 2, reads)
    with pytest.raises(ValueError, match="Expected add_end_token=False"):
        model.export_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_on_another_family(qwen, tmp_path):
    model = EncDecTextClassifier.from_preset(qwen, num_classes=2)
    with pytest.raises(ValueError, match=r"Expected model_type='t5gemma'.*Received: 'qwen2'"):
        model.export_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Embedders.


def test_a_folder_of_sentence_transformers(qwen, tmp_path):
    prompts = {"query": "q: ", "document": "", "code": "c: "}
    model = EncDecTextEmbedder.from_preset(
        qwen, projection=(24, 8), pooling="last", prompts=prompts, sequence_length=48
    )
    for _ in range(2):  # the second time it replaces its own files
        model.export_to_sentence_transformers(tmp_path / "out")
    modules = [
        module["type"].rpartition(".")[2] for module in config_of(tmp_path / "out", "modules.json")
    ]
    assert modules == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    for number, layer in enumerate(model.dense, 2):
        folder = tmp_path / "out" / f"{number}_Dense"
        kernel = load_file(folder / "model.safetensors")["linear.weight"]
        np.testing.assert_array_equal(kernel, to_numpy(layer.kernel).T)
        config = config_of(folder)
        assert (config["in_features"], config["out_features"]) == layer.kernel.shape
        assert config["bias"] is False
    about = config_of(tmp_path / "out", "config_sentence_transformers.json")
    assert about["prompts"] == prompts
    said = config_of(tmp_path / "out", "tokenizer_config.json")
    assert said["model_max_length"] == 48
    assert check_whole(tmp_path / "out")
    assert "library_name: sentence-transformers" in (tmp_path / "out" / "README.md").read_text()
    assert EncoderBackbone.from_preset(tmp_path / "out").spec == model.backbone.spec


def test_what_an_embedder_cannot_leave_behind(qwen, tmp_path):
    model = EncDecTextEmbedder.from_preset(qwen, projection=(8,))
    with pytest.raises(ValueError, match=r"Expected no projection.*export_to_sentence_transform"):
        model.export_to_transformers(tmp_path / "out")
    without = EncDecTextEmbedder(tiny())
    with pytest.raises(ValueError, match="Expected a preprocessor"):
        without.export_to_sentence_transformers(tmp_path / "out")
    without.export_to_transformers(tmp_path / "plain")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="Expected a handle with"):
        without.export_to_transformers(tmp_path / "out", license="mit")


def test_a_tokenizer_without_files_of_transformers(qwen, tmp_path, monkeypatch):
    model = EncDecTextEmbedder.from_preset(qwen)
    monkeypatch.setattr(model.preprocessor, "tokenizer", object())
    with pytest.raises(ValueError, match=r"Expected a GemmaTokenizer or a JsonTokenizer.*object"):
        model.export_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_leaves_no_folder(tmp_path):
    encoder = tiny()
    encoder.weights[3].assign(np.full(encoder.weights[3].shape, np.nan, "float32"))
    with pytest.raises(ValueError, match=encoder.weights[3].path):
        encoder.export_to_transformers(tmp_path / "out")
    assert not any(tmp_path.iterdir())
