"""KerasHub's tokenizers of other families serve a pair as Gemma's does."""

import keras_hub
import numpy as np
import pytest
from byte_pair_tokenizers import CLASSES, made, pieces_and_merges, whole
from qwen_folder import TEXTS

import keras_encdec
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.testing.models import to_numpy

STARTS = {"Llama3Tokenizer": "<|begin_of_text|>", "Qwen3Tokenizer": "<|im_end|>"}
STARTS |= {"QwenTokenizer": "<|endoftext|>", "SmolLM3Tokenizer": "<|end_of_text|>"}


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    return pieces_and_merges(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(params=CLASSES)
def tokenizer(request, byte_pairs):
    return whole(request.param, byte_pairs)


def test_pairs_prompts_and_outputs(tokenizer):
    name = type(tokenizer).__name__
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 64, 32)
    x, y, weight = preprocessor({"encoder_text": TEXTS, "decoder_text": ["A sum."] * 3})
    start = tokenizer.token_to_id(STARTS[name])
    assert (x["decoder_token_ids"][:, 0] == start).all()
    target = y[0][weight[0] == 1]
    assert target[-1] == tokenizer.end_token_id
    ids, mask = x["encoder_token_ids"][0], x["encoder_padding_mask"][0]
    assert tokenizer.detokenize(ids[mask == 1].tolist()) == TEXTS[0]
    outputs = {"decoder_token_ids": np.array([[start, *target]])}
    outputs["decoder_padding_mask"] = np.ones_like(outputs["decoder_token_ids"])
    assert preprocessor.generate_postprocess(outputs) == ["A sum."]


def test_the_first_piece_may_be_written(tokenizer):
    """Padding has the id 0 with some tokenizers, where it is a piece like others."""
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 64, 32)
    piece = next(i for i in range(10, 40) if tokenizer.detokenize([i]).isprintable())
    ids = np.array([[preprocessor.start_token_id, piece, 0]])
    outputs = {"decoder_token_ids": ids, "decoder_padding_mask": np.array([[1, 1, 0]])}
    assert preprocessor.generate_postprocess(outputs) == [tokenizer.detokenize([piece])]


def test_turns(tokenizer):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 64, 32, chat=True)
    ids, _ = preprocessor.converter.of_chat("Sum?")
    end = "<|eot_id|>" if "Llama3" in type(tokenizer).__name__ else "<|im_end|>"
    assert ids.count(tokenizer.token_to_id(end)) == 1
    assert tokenizer.token_to_id(end) in preprocessor.stop_token_ids
    _, y, weight = preprocessor({"encoder_text": ["Sum?"], "decoder_text": ["A sum."]})
    assert y[0][weight[0] == 1][-1] == tokenizer.token_to_id(end)


def test_turns_that_would_be_split_are_refused(byte_pairs):
    tokenizer = made("QwenTokenizer", byte_pairs)
    with pytest.raises(ValueError, match=r"keeps <\|im_end\|> whole.*QwenTokenizer, which splits"):
        EncDecSeq2SeqLMPreprocessor(tokenizer).converter.of_chat("Sum?")


@pytest.mark.slow
def test_a_pair_with_it_comes_back(byte_pairs, tmp_path):
    tokenizer = made("QwenTokenizer", byte_pairs)
    backbone = keras_hub.models.QwenBackbone(320, 2, 4, 2, 16, 32)
    preprocessor = keras_hub.models.QwenCausalLMPreprocessor(tokenizer)
    lm = keras_encdec.adapt(keras_hub.models.QwenCausalLM(backbone, preprocessor))
    lm.preprocessor.encoder_sequence_length = lm.preprocessor.decoder_sequence_length = 24
    lm.compile(sampler="greedy")
    lm.fit(TEXTS, verbose=0)
    lm.save_to_preset(tmp_path / "pair")
    again = keras_encdec.from_preset(tmp_path / "pair")
    again.compile(sampler="greedy")
    x = lm.preprocessor(TEXTS)[0]
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(lm(x)))
    assert again.generate(TEXTS, 12) == lm.generate(TEXTS, 12)
