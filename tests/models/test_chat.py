"""Conversations: who speaks when, how it is framed, and what is left out of a long one."""

import pytest

import keras_encdec
from keras_encdec.objectives import chat

GEMMA = chat.FORMATS[0]
FIRST = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi."}
SECOND = {"role": "user", "content": "Sort."}


@pytest.fixture(scope="module")
def lm():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler="greedy")
    return lm


def framed(messages):
    return GEMMA.conversation(*chat.turns(messages))


def test_one_turn_is_that_of_the_preprocessor(lm):
    assert framed("Hello") == framed([FIRST])
    chatty = keras_encdec.from_preset("gemma2_tiny_tiny")
    chatty.preprocessor.chat = True
    assert chatty.preprocessor.converter.of_prompts(["Hello"]) == [
        lm.preprocessor.converter.of_chat("Hello")
    ]


def test_turns():
    assert framed([{"role": "system", "content": "Be brief."}, FIRST, ANSWER, SECOND]) == (
        "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n"
        "<start_of_turn>model\nHi.<end_of_turn>\n"
        "<start_of_turn>user\nSort.<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    assert framed([FIRST, {**ANSWER, "role": "model"}, SECOND]) == framed([FIRST, ANSWER, SECOND])


def test_turns_of_gemma_4():
    frame = next(each for each in chat.FORMATS if each.end == "<turn|>")
    said = [{"role": "system", "content": "Be brief."}, FIRST, ANSWER, SECOND]
    assert frame.conversation(*chat.turns(said)) == (
        "<|turn>system\nBe brief.<turn|>\n"
        "<|turn>user\nHello<turn|>\n<|turn>model\nHi.<turn|>\n"
        "<|turn>user\nSort.<turn|>\n<|turn>model\n"
    )


@pytest.mark.slow
def test_an_answer(lm):
    chatty = keras_encdec.from_preset("gemma2_tiny_tiny")
    chatty.preprocessor.chat = True
    chatty.compile(sampler="greedy")
    answer = lm.chat("Sort an array.", 16)
    assert answer == chatty.generate("Sort an array.", 16) != lm.generate("Sort an array.", 16)
    assert lm.chat([FIRST, ANSWER, SECOND], 16) != lm.chat([SECOND], 16)


def test_the_oldest_turns_are_left_out(lm):
    preprocessor = keras_encdec.from_preset("gemma2_tiny_tiny").preprocessor
    system = {"role": "system", "content": "Be brief."}
    whole, _ = preprocessor.converter.of_chat([system, FIRST, ANSWER, SECOND])
    kept, _ = preprocessor.converter.of_chat([system, SECOND])
    preprocessor.encoder_sequence_length = len(whole) - 1
    with pytest.warns(UserWarning, match="2 of 3 messages"):
        assert preprocessor.converter.of_chat([system, FIRST, ANSWER, SECOND])[0] == kept
    preprocessor.encoder_sequence_length = len(kept) - 2
    shorter, _ = preprocessor.converter.of_chat([system, SECOND])
    assert len(shorter) == len(kept) - 2
    closing = preprocessor.tokenizer([GEMMA.closing])[0]
    assert list(shorter[-len(closing) :]) == list(closing)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ANSWER],
        [FIRST, SECOND],
        [FIRST, ANSWER],
        [FIRST, {"role": "system", "content": "a"}, SECOND],
        [{"role": "tool", "content": "a"}],
        ["Hello"],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
    ],
)
def test_out_of_turn(lm, messages):
    with pytest.raises(ValueError, match="Expected"):
        lm.chat(messages)


def test_a_tokenizer_without_turns(lm, monkeypatch):
    preprocessor = keras_encdec.from_preset("gemma2_tiny_tiny").preprocessor
    monkeypatch.setattr(chat, "FORMATS", (chat.Format("<|over|>", "", "", None, ""),))
    with pytest.raises(ValueError, match=r"<\|over\|>"):
        preprocessor.converter.of_chat("Hello")
