"""Chat templates of tokenizers: ids of transformers, what ends an answer, and what is refused."""

import pytest
from chat_templates import CHATML, GEMMA, TEMPLATES, TOKENS, write_tokenizer

import keras_encdec
from keras_encdec import data
from keras_encdec.data.conversations import examples_of_conversations as examples_of
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives.control import plain
from keras_encdec.objectives.tokenizer import encode
from keras_encdec.sharing.tokenizers import chat_template_of_files, tokenizer_of_files


def said(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


QUESTIONS = {
    "one turn": said("Add 1 & 2."),
    "white space": said(" Add.\n", " 3 \n", "\tAnd é < 2?  "),
    "turns": said("Add.", "Sum.", "Sort.", "In order.", "Mean?"),
    "system": said("Add.", "Sum.", "Sort.", system="Be brief."),
    "empty system": said("Add.", system=""),
}


def preprocessor_of(folder, length=512):
    return EncDecSeq2SeqLMPreprocessor(
        tokenizer_of_files(str(folder)),
        length,
        64,
        chat_template=chat_template_of_files(str(folder)),
    )


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request, tmp_path_factory):
    """A name, its folder, and its converter."""
    name = request.param
    folder = write_tokenizer(tmp_path_factory.mktemp(name), name, TEMPLATES[name])
    return name, folder, preprocessor_of(folder).converter


def takes(name, messages):
    return name != "gemma" or messages[0]["role"] != "system"


@pytest.mark.transformers
def test_ids_are_those_of_transformers(family):
    """Of prompts; and of prompt, answer and its end together."""
    transformers = pytest.importorskip("transformers")
    name, folder, converter = family
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for messages in (m for m in QUESTIONS.values() if takes(name, m)):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert converter.of_chat(messages)[0] == expected
        answered = [*messages, {"role": "assistant", "content": " It is so. "}]
        (example,), _, _ = converter.of_conversations([_turns(answered)], last=True)
        whole = theirs.apply_chat_template(answered)["input_ids"]
        found = [*example.inputs, *example.targets]
        if name == "mistral" and messages[0]["role"] == "system":
            continue  # whose prompts alone hold the system message
        assert found == whole[: len(found)]
        assert theirs.decode(whole[len(found) :]).strip() == ""
        assert example.targets[-1] == theirs.convert_tokens_to_ids(TOKENS[name][2])


def _turns(messages):
    (found,) = data.Conversations([messages]).answered()
    return found


def test_what_ends_an_answer(family):
    name, _, converter = family
    end = TOKENS[name][2]
    assert converter.frame.end == end
    assert converter.tokenizer.token_to_id(end) in converter.stop_token_ids


def test_every_way_in_is_framed_alike(family):
    """Messages, pairs with `chat`, prompts with `chat` and `of_chat`."""
    _, folder, converter = family
    preprocessor = preprocessor_of(folder)
    preprocessor.chat = True
    (prompt,) = preprocessor.converter.of_prompts(["Add."])
    assert prompt == converter.of_chat("Add.")
    (pair,) = preprocessor.converter.of_pairs(["Add."], [" Sum."])
    (example,), _, _ = converter.of_conversations([_turns(said("Add.", " Sum."))])
    for side in ("inputs", "targets"):
        assert getattr(pair, side).tolist() == getattr(example, side).tolist()
    assert example.inputs.tolist() == prompt[0]


def test_a_long_turn_keeps_its_frame(family):
    name, folder, converter = family
    whole, _ = converter.of_chat("Add.")
    short = preprocessor_of(folder, len(whole) - 2).converter
    with pytest.warns(UserWarning, match="2 of 4 tokens of the last message"):
        ids, _ = short.of_chat("Add.")
    assert ids == converter.of_chat("Ad")[0]
    if takes(name, QUESTIONS["system"]):
        told, _ = converter.of_chat(said("Add.", system="Brief."))
        short = preprocessor_of(folder, len(told) - 1).converter
        with pytest.warns(UserWarning, match="1 of 6 tokens of the system message"):
            ids, _ = short.of_chat(said("Add.", system="Brief."))
        assert ids == converter.of_chat(said("Add.", system="Brief"))[0]


def test_the_oldest_turns_are_left_out(family):
    _, folder, converter = family
    whole, _ = converter.of_chat(QUESTIONS["turns"])
    short = preprocessor_of(folder, len(whole) - 1).converter
    with pytest.warns(UserWarning, match="the oldest 2 of 5 messages"):
        assert short.of_chat(QUESTIONS["turns"])[0] == converter.of_chat(QUESTIONS["turns"][2:])[0]


def test_nobody_opens_a_turn_in_anothers_name(family):
    _, _, converter = family
    tokenizer = converter.tokenizer
    special = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens}

    def control(text):
        return [i for i in converter.of_chat(text)[0] if i in special]

    spelled = "".join(tokenizer.special_tokens)
    assert control(f"Add. {spelled}") == control("Add.")
    assert encode(tokenizer, plain(tokenizer, [spelled]))[0] != encode(tokenizer, [spelled])[0]
    (example,), _, _ = converter.of_conversations([_turns(said("Add.", spelled))])
    assert set(example.targets[:-1].tolist()).isdisjoint(special)


def test_a_default_system_turn_is_there(tmp_path):
    converter = preprocessor_of(write_tokenizer(tmp_path, "chatml", CHATML)).converter
    read = converter.tokenizer.detokenize(converter.of_chat("Add.")[0])
    assert read == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_gemmas_sentencepiece_reads_the_start_token():
    """Which it would take for text, as `<bos>` is no piece that a text can hold there."""
    preprocessor = keras_encdec.from_preset("gemma2_tiny_tiny").preprocessor
    ids, _ = preprocessor.converter.of_chat("Add.")
    preprocessor.chat_template = GEMMA
    assert preprocessor.converter.of_chat("Add.")[0] == [preprocessor.start_token_id, *ids]
    spelled, _ = preprocessor.converter.of_chat("<bos>Add.")
    assert spelled.count(preprocessor.start_token_id) == 1


@pytest.mark.parametrize("decoder", ["llama3", "mistral"])
def test_with_two_vocabularies_the_decoder_ends_its_way(tmp_path, decoder):
    """By the piece of its format; by `<eos>` where it has none."""
    folders = [tmp_path / name for name in ("chatml", decoder)]
    for folder in folders:
        folder.mkdir()
        write_tokenizer(folder, folder.name)
    reads, writes = (tokenizer_of_files(str(folder)) for folder in folders)
    converter = EncDecSeq2SeqLMPreprocessor(
        writes, 512, 64, chat=True, encoder_tokenizer=reads, chat_template=CHATML
    ).converter
    (example,) = converter.of_pairs(["Add."], ["Sum."])
    assert reads.detokenize(example.inputs).endswith("Add.<|im_end|>\n<|im_start|>assistant\n")
    assert writes.detokenize(example.targets) == f"Sum.{TOKENS[decoder][2]}"


def test_a_refusal_names_the_conversation_and_the_reason(tmp_path):
    converter = preprocessor_of(write_tokenizer(tmp_path, "gemma", GEMMA)).converter
    talks = [said("Add.", "Sum."), said("Sort.", "In order.", system="Be brief.")]
    with pytest.raises(ValueError, match=r"(?s)System role not supported.*It is in conversation 1"):
        examples_of(data.Conversations(talks), converter)
    placed = data.Conversations(talks, places=["talks.jsonl:1", "talks.jsonl:2"])
    with pytest.raises(ValueError, match=r"(?s)System role not supported.*It is in talks.jsonl:2"):
        examples_of(placed, converter)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", "Expected a chat template of Jinja.*in its line 1"),
        ("Hello", "Expected a chat template that writes what each turn says"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "says, once"),
        ("{{ messages[7].content }}", "Expected a conversation that the chat template takes"),
        ("{{ messages.append(1) }}", "takes.*unsafe"),
        ("{{ ''.__class__.__mro__ }}", "takes.*unsafe"),
        ("{{ 1 / 0 }}", "takes.*division by zero"),
    ],
)
def test_what_is_no_template(template, message, tmp_path):
    converter = preprocessor_of(write_tokenizer(tmp_path, "chatml", template)).converter
    with pytest.raises(ValueError, match=f"(?s){message}.*chat_template = None"):
        converter.of_chat("Add.")


def test_a_template_is_text(tmp_path):
    tokenizer = tokenizer_of_files(str(write_tokenizer(tmp_path, "chatml")))
    with pytest.raises(ValueError, match=r"Expected text \(str\) in chat_template"):
        EncDecSeq2SeqLMPreprocessor(tokenizer, chat_template=["a"])
