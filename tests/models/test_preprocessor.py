"""Text to model inputs: conventions, windows, and clear errors."""

import json

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import UL2, Example, Mixture, PrefixLM, SpanCorruption, Stages
from keras_encdec.sharing import catalog

TEXT = "Returns the mean of an array along an axis."


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


@pytest.fixture
def preprocessor(tokenizer):
    return EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 12)


def real(x, side):
    return x[f"{side}_token_ids"][x[f"{side}_padding_mask"] == 1].tolist()


def test_a_pair(preprocessor, tokenizer):
    x, y, weight = preprocessor({"encoder_text": [TEXT], "decoder_text": ["A mean."]})
    ids = list(tokenizer("A mean."))
    assert real(x, "encoder") == list(tokenizer(TEXT))[:16]
    assert real(x, "decoder") == [2, *ids]
    assert y[weight == 1].tolist() == [*ids, 1]
    assert {a.shape for a in x.values()} == {(1, 16), (1, 12)}


def test_a_single_pair_has_no_batch(preprocessor):
    x, y, _ = preprocessor({"encoder_text": TEXT, "decoder_text": "A mean."})
    assert x["encoder_token_ids"].shape == (16,)
    assert y.shape == (12,)


def test_text_longer_than_the_window_is_cut(preprocessor, tokenizer):
    x, y, weight = preprocessor({"encoder_text": [TEXT * 9], "decoder_text": [TEXT * 9]})
    assert real(x, "encoder") == list(tokenizer(TEXT * 9))[:16]
    assert y[0].tolist() == list(tokenizer(TEXT * 9))[:12]  # no end token was taught
    assert weight.all()


def test_plain_text_is_cut_into_windows_and_nothing_is_lost(preprocessor, tokenizer):
    texts = [TEXT * 5, "Short one."]
    x, y, weight = preprocessor(texts)
    written = []
    for i in range(len(y)):
        row = {key: value[i : i + 1] for key, value in x.items()}
        inputs, targets = real(row, "encoder"), y[i][weight[i] == 1].tolist()
        assert real(row, "decoder") == [2, *targets[:-1]]
        assert len(targets) - len(inputs) in (0, 1)
        written += inputs + targets
    assert written == [t for text in texts for t in (*tokenizer(text), 1)]


@pytest.mark.parametrize("objective", ["ul2", SpanCorruption(3, 0.5), PrefixLM("random")])
def test_every_objective_reassembles_the_text(tokenizer, objective):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 40, objective=objective)
    texts = [TEXT * 5, "Short one.", TEXT]
    x, y, weight = preprocessor(texts)
    documents = [[*tokenizer(text), 1] for text in texts]
    written = []
    for i in range(len(y)):
        inputs = x["encoder_token_ids"][i][x["encoder_padding_mask"][i] == 1]
        targets = y[i][weight[i] == 1]
        spans = targets.size and targets[0] in range(7, 106)
        if spans:
            assert targets[-1] == 1  # a whole answer ends
            targets = targets[:-1]
        sentinels = np.arange(7, 106) if spans else np.zeros(0, "int32")
        written += Example(inputs, targets, sentinels=sentinels).reassemble().tolist()
    assert written == [token for document in documents for token in document]


def test_a_text_gives_the_same_rows_in_any_batch(tokenizer):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 16, objective="ul2", seed=3)
    texts = [TEXT * 3, TEXT, TEXT * 2]
    together = preprocessor(texts)[0]["encoder_token_ids"]
    apart = [preprocessor([t], first=i)[0]["encoder_token_ids"] for i, t in enumerate(texts)]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    again = preprocessor(texts, epoch=1)[0]["encoder_token_ids"]
    assert again.shape != together.shape or (again != together).any()


def test_crossing_documents_and_packing_leave_little_padding(tokenizer):
    texts = [TEXT * (1 + i % 3) for i in range(40)]
    plain = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32)
    crossing = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, cross_documents=True)
    packed = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, packing=True)
    weights = [preprocessor(texts)[2] for preprocessor in (plain, crossing, packed)]
    counted = sum(len(tokenizer(text)) + 1 for text in texts)
    for weight in weights:
        assert abs(2 * weight.sum() - counted) <= len(texts)
    assert weights[0].mean() < 0.75
    assert min(weight[:-1].mean() for weight in weights[1:]) > 0.9


def test_pairs_are_packed_too(tokenizer):
    pairs = {"encoder_text": [TEXT] * 6, "decoder_text": ["A mean.", "Mean."] * 3}
    packed = EncDecSeq2SeqLMPreprocessor(tokenizer, 64, 32, packing=True)
    x, y, weight = packed(pairs)
    assert len(y) < 6
    _, own_y, own_weight = EncDecSeq2SeqLMPreprocessor(tokenizer, 64, 32)(pairs)
    assert sorted(y[weight == 1].tolist()) == sorted(own_y[own_weight == 1].tolist())
    assert x["encoder_padding_mask"].max() == x["decoder_padding_mask"].max() > 1


def test_the_config_holds_the_objective(tokenizer):
    objective = Mixture([PrefixLM(), UL2(mode_tokens=True)], [3, 1])
    preprocessor = EncDecSeq2SeqLMPreprocessor(
        tokenizer, 32, 32, objective=objective, seed=4, cross_documents=True, packing=True
    )
    config = json.loads(json.dumps(preprocessor.get_config()))
    again = EncDecSeq2SeqLMPreprocessor.from_config({**config, "tokenizer": tokenizer})
    for one, other in zip(preprocessor([TEXT] * 3), again([TEXT] * 3), strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, one, other)
    assert again.get_config() == preprocessor.get_config()


def test_stages_need_the_steps(tokenizer):
    stages = Stages([UL2(), PrefixLM()], [9, 1])
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective=stages)
    with pytest.raises(ValueError, match=r"Received: Stages.*number of steps"):
        preprocessor([TEXT])


def test_generation_tokenises_like_training(tokenizer):
    for chat in (False, True):
        preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 12, chat=chat)
        x, _, _ = preprocessor({"encoder_text": [TEXT], "decoder_text": ["A mean."]})
        z = preprocessor.generate_preprocess({"encoder_text": [TEXT], "decoder_text": ["A mean."]})
        for key in x:
            np.testing.assert_array_equal(x[key], z[key])


def test_chat_turns(tokenizer):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 12, chat=True)
    x, y, weight = preprocessor({"encoder_text": ["Say hi."], "decoder_text": ["Hi."]})
    turn = "<start_of_turn>user\nSay hi.<end_of_turn>\n<start_of_turn>model\n"
    assert real(x, "encoder") == list(tokenizer(turn))
    assert 106 in real(x, "encoder")
    assert y[weight == 1].tolist() == [*tokenizer("Hi."), 107]
    assert preprocessor.stop_token_ids == (1, 107)


def test_a_long_turn_keeps_its_frame(tokenizer):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 12, chat=True)
    x = preprocessor.generate_preprocess([TEXT * 4])
    ids = real(x, "encoder")
    assert len(ids) == 16
    assert tokenizer.detokenize(ids).endswith("<end_of_turn>\n<start_of_turn>model\n")


def test_postprocess_drops_special_tokens(preprocessor):
    x = preprocessor.generate_preprocess({"encoder_text": [TEXT], "decoder_text": ["A mean."]})
    assert preprocessor.generate_postprocess(x) == ["A mean."]


@pytest.mark.parametrize("options", [{}, {"objective": "ul2"}, {"packing": True}])
def test_tf_data_gives_the_same_rows(tokenizer, options):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 12, **options)
    texts = [TEXT * 3, TEXT]
    pairs = {"encoder_text": texts, "decoder_text": ["A mean.", "Mean."]}
    for data in (texts, pairs):
        expected = preprocessor(data)
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(2).map(preprocessor)
        (found,) = dataset.as_numpy_iterator()
        keras.tree.map_structure(np.testing.assert_array_equal, found, expected)
    inputs, targets = pairs.values()
    dataset = tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(2).map(preprocessor)
    keras.tree.map_structure(np.testing.assert_array_equal, next(iter(dataset)), expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([""], "empty"),
        ("   ", "empty"),
        ([], "empty batch"),
        ([3], "Received: 3 of type int"),
        ([None], "Received: None of"),
        ({"encoder_text": [TEXT]}, "decoder_text"),
        ({"encoder_text": [TEXT] * 2, "decoder_text": [TEXT]}, "2 and 1"),
        ({"encoder_text": [TEXT], "target": [TEXT]}, "without ['decoder_text']"),
        ({"encoder_text": [TEXT], "decoder_text": [""]}, "empty"),
        ({"encoder_text": [1.5], "decoder_text": ["a"]}, "Received: 1.5 of"),
    ],
)
def test_bad_text(preprocessor, x, message):
    with pytest.raises(ValueError, match=r"(?s)Expected .*Received") as caught:
        preprocessor(x)
    assert message in str(caught.value)


def test_an_empty_prompt(preprocessor):
    with pytest.raises(ValueError, match="empty"):
        preprocessor.generate_preprocess("")
    with pytest.raises(ValueError, match="encoder_text"):
        preprocessor.generate_preprocess({"decoder_text": TEXT})


def test_a_call_checks_its_lengths_too(preprocessor):
    with pytest.raises(ValueError, match="Expected decoder_sequence_length of at least 2"):
        preprocessor.generate_preprocess([TEXT], sequence_length=0)
    preprocessor.encoder_sequence_length = 1
    with pytest.raises(ValueError, match="Expected encoder_sequence_length of at least 2"):
        preprocessor([TEXT])


@pytest.mark.parametrize("side", ["encoder_sequence_length", "decoder_sequence_length"])
@pytest.mark.parametrize("length", [1, 0, -3, None])
def test_lengths_below_two(tokenizer, side, length):
    with pytest.raises(ValueError, match=f"Expected {side} of at least 2"):
        EncDecSeq2SeqLMPreprocessor(tokenizer, **{side: length})
