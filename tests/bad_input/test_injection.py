"""No text of a user begins or ends a turn, a text or a span, whatever the tokenizer."""

import keras_hub
import numpy as np
import pytest
from byte_pair_tokenizers import CLASSES, pieces_and_merges, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwen_folder import write_qwen

from keras_encdec.data import tokenize
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.models.json_tokenizer import JsonTokenizer
from keras_encdec.objectives import chat
from keras_encdec.objectives.control import control_tokens, plain
from keras_encdec.objectives.tokenizer import encode, piece_id
from keras_encdec.sharing import catalog

TOKENIZERS = ["Gemma", "tokenizer.json", *CLASSES]
PIECES = (
    *("<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>", "<pad>", "<unused0>", "<unused98>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<think>", "</s>", "[INST]"),
)
FILLING = (
    "user\n",
    "model\n",
    "assistant",
    "\n",
    " ",
    "a",
    "<",
    "|>",
    "<end_of_",
    "turn>",
    "é",
    "＜",
)
TEXTS = st.lists(st.sampled_from(PIECES + FILLING), min_size=1, max_size=8).map("".join)
thoroughly = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request, tmp_path_factory):
    if request.param == "Gemma":
        folder = catalog.embedded("gemma2_tiny_docs")
        return keras_hub.models.Tokenizer.from_preset(folder)
    folder = tmp_path_factory.mktemp("qwen")
    if request.param == "tokenizer.json":
        path = write_qwen(folder) / "tokenizer.json"
        return JsonTokenizer(path, end_token="<|endoftext|>")
    return whole(request.param, pieces_and_merges(folder))


@pytest.fixture(scope="module")
def converter(tokenizer):
    return EncDecSeq2SeqLMPreprocessor(tokenizer, 512, 64).converter


def controls(tokenizer, ids):
    """The control tokens among some ids."""
    return [i for i in ids if i in {piece_id(tokenizer, t) for t in control_tokens(tokenizer)}]


def conversation(*texts):
    roles = ("system", "user", "assistant", "user")
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]


def test_there_are_control_tokens(tokenizer):
    """And a text that spells one would be one."""
    tokens = sorted(control_tokens(tokenizer))
    assert any(chat.format_of(tokenizer).end == token for token in tokens)
    for token, ids in zip(tokens, encode(tokenizer, tokens), strict=True):
        assert piece_id(tokenizer, token) in ids


@thoroughly
@given(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS))
def test_turns_are_those_of_the_messages(converter, texts):
    tokenizer = converter.tokenizer
    (expected, _), (found, _) = (
        converter.of_chat(conversation(*some)) for some in (["a"] * 4, texts)
    )
    assert controls(tokenizer, found) == controls(tokenizer, expected)


@thoroughly
@given(TEXTS)
def test_pairs_and_prompts_hold_none_of_their_own(converter, text):
    tokenizer = converter.tokenizer
    (example,) = converter.of_pairs([text], [text])
    assert controls(tokenizer, example.inputs) == []
    assert controls(tokenizer, example.targets[:-1]) == []
    ((read, written),) = converter.of_prompts([text], [text])
    assert controls(tokenizer, read) == controls(tokenizer, written[1:]) == []


@thoroughly
@given(TEXTS)
def test_the_characters_stay(tokenizer, text):
    (ids,) = encode(tokenizer, plain(tokenizer, [text]))
    assert tokenizer.detokenize(ids) == tokenizer.detokenize(encode(tokenizer, [text])[0])


def test_other_texts_are_tokenised_as_ever(tokenizer):
    texts = ["An end_of_turn, <b>bold</b>.", "a < b | c > d", "", " ", "é"]
    assert plain(tokenizer, texts) == texts


def test_in_training_too(tokenizer):
    token = chat.format_of(tokenizer).end
    tokens = np.asarray(tokenize([f"a {token} b"], tokenizer)[:])
    assert controls(tokenizer, tokens[:-1]) == []
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 64, 64)
    (example,) = preprocessor.converter.of_texts([f"a {token} b"])
    assert controls(tokenizer, [*example.inputs, *example.targets[:-1]]) == []


def test_who_builds_prompts_may(tokenizer):
    token = chat.format_of(tokenizer).end
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 64, 64, allow_special=True)
    assert preprocessor.get_config()["allow_special"] is True
    ((ids, _),) = preprocessor.converter.of_prompts([f"a{token}"])
    assert ids[-1] == piece_id(tokenizer, token)
    tokens = tokenize([f"a{token}"], tokenizer, allow_special=True)
    assert np.asarray(tokens[:])[-2] == piece_id(tokenizer, token)


def test_a_long_system_message_leaves_the_question_whole(tokenizer):
    """As a long question leaves its frame; and what was cut is said."""
    system, question = "Be brief. " * 40, "Sum of an array?"
    length = 112
    converter = EncDecSeq2SeqLMPreprocessor(tokenizer, length, 16).converter
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    with pytest.warns(UserWarning, match=r"Left out: \d+ of \d+ tokens of the system message\.$"):
        ids, _ = converter.of_chat(messages)
    assert len(ids) == length
    frame = chat.format_of(tokenizer)
    text = tokenizer.detokenize(ids)
    assert text.endswith(f"{question}{frame.closing}")
    assert "Be brief." in text
    with pytest.warns(UserWarning, match=r"of the last message, \d+ of \d+ .* system message\.$"):
        ids, _ = converter.of_chat([messages[0], {"role": "user", "content": system}])
    assert len(ids) == length
    assert tokenizer.detokenize(ids).endswith(frame.closing)
