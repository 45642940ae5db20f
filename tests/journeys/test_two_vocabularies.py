"""A Qwen-shaped encoder with a Gemma-shaped decoder, each with its own tokenizer."""

import keras
import keras_hub
import numpy as np
import pytest
from qwen_folder import PIECES, TEXTS, write_qwen

import keras_encdec
from keras_encdec import data, objectives, training
from keras_encdec.models import JsonTokenizer
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import to_numpy

PAIRS = {"encoder_text": TEXTS, "decoder_text": ["A sum.", "A sorted array.", "A table."]}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def lm(qwen):
    lm = keras_encdec.adapt(qwen, "gemma2_mini_docs")
    lm.preprocessor.encoder_sequence_length = 48
    lm.preprocessor.decoder_sequence_length = 24
    lm.compile(optimizer=keras.optimizers.Adam(1e-3), sampler="greedy")
    return lm


def test_each_side_has_its_own_tokens(lm):
    x, y, weight = lm.preprocessor(PAIRS)
    sides = lm.preprocessor.encoder_tokenizer, lm.preprocessor.tokenizer
    assert [type(t).__name__ for t in sides] == ["JsonTokenizer", "GemmaTokenizer"]
    first = x["encoder_token_ids"][0][x["encoder_padding_mask"][0] == 1]
    assert sides[0].detokenize(first) == TEXTS[0][: len(sides[0].detokenize(first))]
    target = y[1][weight[1] == 1]
    assert sides[1].detokenize(target[:-1].tolist()) == "A sorted array."
    assert target[-1] == sides[1].end_token_id
    assert x["encoder_token_ids"].max() < PIECES


@pytest.mark.slow
def test_trains_generates_and_comes_back_bit_for_bit(lm, tmp_path):
    before = to_numpy(lm.predict_on_batch(lm.preprocessor(PAIRS)[0]))
    lm.fit(PAIRS, batch_size=3, epochs=2, verbose=0)
    lm.fit(TEXTS, batch_size=2, verbose=0)
    x = lm.preprocessor(PAIRS)[0]
    logits, written = to_numpy(lm.predict_on_batch(x)), lm.generate(TEXTS, 16)
    assert np.abs(logits - before).max() > 1e-3
    lm.save_to_preset(tmp_path / "pair")
    for load in (keras_encdec.from_preset, keras_hub.models.Seq2SeqLM.from_preset):
        again = load(str(tmp_path / "pair"))
        again.compile(sampler="greedy")
        assert again.preprocessor.has_two_vocabularies
        for key, ids in again.preprocessor(PAIRS)[0].items():
            np.testing.assert_array_equal(ids, x[key])
        np.testing.assert_array_equal(to_numpy(again.predict_on_batch(x)), logits)
        assert again.generate(TEXTS, 16) == written


def test_plain_text_is_split_between_them(lm):
    lm.preprocessor.encoder_sequence_length = lm.preprocessor.decoder_sequence_length = 16
    (example, *_) = lm.preprocessor.examples(TEXTS[:1])
    read = lm.preprocessor.encoder_tokenizer.detokenize(example.inputs)
    wrote = lm.preprocessor.tokenizer.detokenize(example.targets.tolist())
    assert len(example.inputs) <= 16
    assert TEXTS[0].startswith((read + wrote).strip()[:40]) or (read + wrote) in TEXTS[0]


def test_what_needs_one_vocabulary_is_refused(lm, tmp_path):
    lm.preprocessor.objective = objectives.UL2()
    with pytest.raises(ValueError, match=r"Expected PrefixLM.*two vocabularies.*UL2"):
        lm.fit(TEXTS)
    lm.preprocessor.objective = None
    source = keras_hub.models.CausalLM.from_preset(catalog.embedded("gemma2_mini_docs"))
    lm.compile(distillation=training.Distillation(source))
    with pytest.raises(ValueError, match=r"one vocabulary for a teacher.*two tokenizers"):
        lm.fit(TEXTS)
    tokens = data.tokenize(TEXTS, lm.preprocessor.tokenizer)
    with pytest.raises(ValueError, match=r"one vocabulary for a teacher.*two tokenizers"):
        data.write_teacher(tmp_path / "teacher", source, tokens, lm.preprocessor, k=4)
    with pytest.raises(ValueError, match=r"Expected one tokenizer, .*layout"):
        lm.export_to_transformers(tmp_path / "export")
    assert not (tmp_path / "export").exists()
    with pytest.raises(ValueError, match="one vocabulary and a tied output for tied_embeddings"):
        keras_encdec.adapt(
            lm.backbone and "gemma2_tiny_docs", "gemma2_mini_docs", tied_embeddings=True
        )


def test_chat_in_each_sides_frame(lm):
    ids, start = lm.preprocessor.converter.of_chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sum?"}]
    )
    text = lm.preprocessor.encoder_tokenizer.detokenize(ids)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSum?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert start == [lm.preprocessor.tokenizer.start_token_id]
    assert lm.preprocessor.stop_token_ids == (1, 107)


def test_a_tokenizer_that_does_not_fit_the_embedding(qwen):
    tokenizer = JsonTokenizer(qwen / "tokenizer.json", end_token="<|endoftext|>")
    preprocessor = keras_hub.models.QwenCausalLMPreprocessor(tokenizer)
    backbone = keras_hub.models.QwenBackbone(96, 1, 2, 1, 16, 32)
    task = keras_hub.models.QwenCausalLM(backbone, preprocessor)
    with pytest.raises(ValueError, match=r"at most 96 tokens.*Received: one of 320"):
        keras_encdec.adapt(task)


def test_a_decoder_without_a_start_token_begins_with_its_end_token(qwen):
    preprocessor = keras_encdec.adapt(qwen).preprocessor
    assert not preprocessor.has_two_vocabularies
    x = preprocessor.generate_preprocess(["Sum"])
    assert x["decoder_token_ids"][0, 0] == preprocessor.tokenizer.end_token_id == 0
    assert preprocessor.stop_token_ids == (0, 2)
