"""Text to model inputs: conventions, windows, and clear errors."""

import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
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


def test_tf_data_gives_the_same_rows(preprocessor):
    texts = [TEXT * 3, TEXT]
    x, y, weight = preprocessor(texts)
    for dataset in (tf.data.Dataset.from_tensor_slices(texts), tf.data.Dataset.from_tensors(texts)):
        batches = list(preprocessor.dataset(dataset, 100).as_numpy_iterator())
        assert len(batches) == 1
        for key in x:
            np.testing.assert_array_equal(batches[0][0][key], x[key])
        np.testing.assert_array_equal(batches[0][1], y)
        np.testing.assert_array_equal(batches[0][2], weight)


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
