"""Our exports of encoders in transformers and in sentence-transformers: the same numbers."""

import json

import numpy as np
import pytest
from qwen_folder import TEXTS, write_qwen
from reference_folder import write_folder

from keras_encdec.models import EncDecTextClassifier, EncDecTextEmbedder, EncoderBackbone
from keras_encdec.testing.models import assert_close, make_inputs, tiny_backbone, to_numpy

pytestmark = pytest.mark.transformers
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

FAMILIES = ["gemma", "gemma2", "gemma3", "llama", "smollm2", "mistral", "qwen2", "qwen3", "smollm3"]
EVERY = [(n, a) for n in FAMILIES for a in ("bidirectional", "causal")]
LATER = ("olmo2", "granite", "phi4", "gemma4", "gemma4_e2b", "gemma4_moe", "qwen2_moe")
EVERY += [(n, "bidirectional") for n in LATER]
EVERY += [("gpt_oss", attention) for attention in ("bidirectional", "causal")]
ODD = [
    "  two  spaces\n\n\tand tabs  ",
    "naïve café 日本",
    "say <eos> and <|im_end|> now",
    "<start_of_turn>user <unused3><bos>",
    "[@BOS@] <2mass> are pieces, no control tokens",
]


def rows(lengths=(40, 13, 1)):
    inputs = make_inputs(lengths)
    return {name: inputs[f"encoder_{name}"] for name in ("token_ids", "padding_mask")}


def loaded(folder, auto):
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def states(model, x):
    with torch.no_grad():
        ids, mask = (torch.tensor(x[name]).long() for name in ("token_ids", "padding_mask"))
        return model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()


def check_states(encoder, model):
    """Rows longer than every window with their padding, and the longest without any."""
    x, tolerance = rows(), 1e-5 * encoder.spec.encoder.num_layers  # 1e-5 a layer
    there = x["padding_mask"] == 1
    ours = to_numpy(encoder(x))
    if encoder.spec.encoder.longest_written is None:  # else a batch's longest text decides there
        assert_close(states(model, x)[there], ours[there], tolerance)
    for row, length in enumerate(there.sum(axis=1)):
        alone = {name: array[row : row + 1, :length] for name, array in x.items()}
        assert_close(states(model, alone)[0], ours[row, :length], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attention"), EVERY)
def test_states_are_ours_past_the_window(name, attention, tmp_path):
    source = write_folder(tmp_path / name, name)
    encoder = EncoderBackbone.from_preset(source, encoder_attention=attention)
    encoder.export_to_transformers(tmp_path / "out")
    t5gemma = (name, attention) == ("gemma2", "bidirectional")
    auto = transformers.T5GemmaEncoderModel if t5gemma else transformers.AutoModel
    check_states(encoder, loaded(tmp_path / "out", auto))


@pytest.mark.slow
def test_the_encoder_of_a_pair(tmp_path):
    encoder = EncoderBackbone.from_preset(tiny_backbone())
    encoder.export_to_transformers(tmp_path / "out")
    check_states(encoder, loaded(tmp_path / "out", transformers.T5GemmaEncoderModel))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), [("mistral", 1), ("gemma2", 1), ("gemma3", -1)])
def test_one_key_more_or_less_is_seen(name, change, tmp_path):
    """The tests above would notice a window that is off by one."""
    encoder = EncoderBackbone.from_preset(write_folder(tmp_path / name, name))
    encoder.export_to_transformers(tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config.get("encoder", config)["sliding_window"] += change
    path.write_text(json.dumps(config))
    auto = transformers.T5GemmaEncoderModel if name == "gemma2" else transformers.AutoModel
    x = rows((40,))
    moved = np.abs(states(loaded(tmp_path / "out", auto), x) - to_numpy(encoder(x)))
    assert moved.max() > 1e-2


@pytest.mark.slow
def test_a_classifier(tmp_path):
    texts = ["Return the sum.", "Open a file and read it. " * 9, "Add.", *ODD]
    model = EncDecTextClassifier.from_preset(
        "gemma2_mini_docs", label_names=["no", "yes", "perhaps"], sequence_length=24
    )
    model.head.bias.assign([0.3, -0.2, 0.1])
    model.export_to_transformers(tmp_path / "out")
    theirs = loaded(tmp_path / "out", transformers.AutoModelForSequenceClassification)
    assert type(theirs).__name__ == "T5GemmaForSequenceClassification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**inputs).logits.numpy()
    assert_close(logits, model.predict(texts))
    said = [theirs.config.id2label[int(i)] for i in logits.argmax(-1)]
    assert said == model.classify(texts)


SETTINGS = [
    {},
    {"pooling": "last", "add_start_token": True, "add_end_token": True},
    {"pooling": "first", "add_start_token": True, "allow_special": True},
    {"encoder_attention": "causal", "pooling": "last", "add_end_token": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("source", ["gemma2", "qwen2"])
@pytest.mark.filterwarnings("ignore:.* texts were cut to sequence_length")
def test_sentence_transformers_makes_our_vectors(source, settings, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = "gemma2_mini_docs"
    if source == "qwen2":  # whose window is shorter than the texts
        (tmp_path / source).mkdir()
        folder = with_start_token(write_qwen(tmp_path / source))
    options = {"projection": (24, 12), "sequence_length": 32, "prompts": PROMPTS} | settings
    model = EncDecTextEmbedder.from_preset(folder, **options)
    model.export_to_sentence_transformers(tmp_path / "out")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"))
    texts = [*TEXTS, " ".join(TEXTS), "Add.", *ODD]
    for prompt in (None, *PROMPTS):
        found = theirs.encode(texts, prompt_name=prompt)
        assert_close(found, model.encode_text(texts, prompt=prompt))
    assert_close(theirs.encode_query(texts[0]), model.encode_text(texts[0], "query")[0])
    assert_close(theirs.encode_document(texts[0]), model.encode_text(texts[0], "document")[0])


def test_without_a_norm(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = EncDecTextEmbedder.from_preset("gemma2_mini_docs", normalize=False)
    model.export_to_sentence_transformers(tmp_path / "out")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"))
    assert [type(module).__name__ for module in theirs] == ["Transformer", "Pooling"]
    assert_close(theirs.encode(TEXTS), model.encode_text(TEXTS))


PROMPTS = {"query": "task: search result | query: ", "document": "", "sts": "similar: "}


def with_start_token(folder):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"bos_token": "<|im_start|>"}
    path.write_text(json.dumps(config))
    return folder
