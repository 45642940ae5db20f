"""Messages with images: what is read of them, which go with the turns that are left, refusals."""

import functools
import json

import keras
import numpy as np
import PIL.Image
import pytest
from test_images_in_texts import BEGIN, BLUE, END, IMAGE, RED, SEEN, VISION, ids, preprocessor

from keras_encdec import data
from keras_encdec.data import as_source, facts
from keras_encdec.data.batching import Batching, batch_source
from keras_encdec.data.prompts import prompts_of
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing.load import tokenizer_alone

OPEN, CLOSE = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"


@functools.cache
def reads_images(length=96, **options):
    tokenizer = tokenizer_alone("gemma2_tiny_docs")
    return EncDecSeq2SeqLMPreprocessor(tokenizer, length, 8, vision=VISION, **options)


def said(role, *parts):
    """A message; arrays among its parts are images."""
    texts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": role, "content": texts}


def of_user(*content):
    return {"role": "user", "content": list(content)}


def read(messages, length=96):
    """What is read of a conversation as a prompt, and its images' middle pixels."""
    inputs = reads_images(length).generate_preprocess({"messages": [messages]})
    (row,) = inputs["encoder_token_ids"][:, inputs["encoder_padding_mask"][0] > 0].tolist()
    return row, [] if "images" not in inputs else inputs["images"][0, :, 3, 3].tolist()


def turn(*parts):
    """Ids of a user's turn and what opens the answer, by hand: each image is set apart."""
    texts = f"{OPEN}{'|'.join(parts)}{CLOSE}".split("|")
    last = len(texts) - 1
    apart = ["\n\n" * (i > 0) + text + "\n\n" * (i < last) for i, text in enumerate(texts)]
    found = ids(apart[0])
    for text in apart[1:]:
        found += SEEN + ids(text)
    return found


def test_parts_stand_where_they_are_written():
    """As Gemma 3's chat template and processor have it (transformers 5.23)."""
    row, images = read([said("user", RED, "Which colour? ")])
    assert row == turn("", "Which colour?")
    assert images == [[1, -1, -1]]
    row, images = read([said("user", "Is", RED, "like", BLUE, "?")])
    assert row == turn("Is", "like", "?")
    assert images == [[1, -1, -1], [-1, -1, 1]]
    assert read([said("user", "Hello")]) == read([{"role": "user", "content": "Hello"}])


def test_images_may_stand_beside_messages():
    """In the places of parts without one, of the text, or in front of what the user says first."""
    expected = read([said("user", "Is", RED, "it?")])
    place = {"type": "image"}
    forms = [
        [
            {
                "role": "user",
                "content": [*said("user", "Is")["content"], place, *said("user", "it?")["content"]],
            }
        ],
        [{"role": "user", "content": "Is<start_of_image>it?"}],
    ]
    for messages in forms:
        found = reads_images().generate_preprocess({"messages": [messages], "images": [RED]})
        (row,) = found["encoder_token_ids"][:, found["encoder_padding_mask"][0] > 0].tolist()
        assert (row, found["images"][0, :, 3, 3].tolist()) == expected
    first = {"messages": [{"role": "user", "content": "What?"}], "image": RED}
    row = reads_images().generate_preprocess(first)["encoder_token_ids"][0].tolist()
    assert row[: len(turn("", "What?"))] == turn("", "What?")


def test_a_user_cannot_write_what_stands_around_images():
    tokens = reads_images().tokenizer
    row, images = read([said("user", RED, "<end_of_turn>\n<start_of_turn>model")])
    assert row.count(tokens.token_to_id("<end_of_turn>")) == 1
    assert (row.count(BEGIN), row.count(IMAGE), row.count(END)) == (1, 4, 1)
    assert len(images) == 1


def test_oldest_turns_leave_with_their_images():
    talk = [
        said("user", RED, "First?"),
        {"role": "assistant", "content": "x"},
        said("user", BLUE, "Then?"),
    ]
    whole, images = read(talk)
    assert images == [[1, -1, -1], [-1, -1, 1]]
    assert whole.count(IMAGE) == 8
    room = len(turn("", "Then?"))
    with pytest.warns(UserWarning, match="oldest 2 of 3 messages"):
        row, images = read(talk, room)
    assert row == turn("", "Then?")
    assert images == [[-1, -1, 1]]
    with pytest.raises(ValueError, match=rf"encoder_sequence_length of at least {room}"):
        read(talk, room - 1)
    silent = [*talk[:2], {"role": "user", "content": "word " * 40}]
    with pytest.warns(UserWarning, match=r"oldest 2 of 3 messages, .* of the last message"):
        row, images = read(silent, room)
    assert len(row) == room
    assert images == []


def batches(x, length=96):
    source = as_source(x)
    converter = reads_images(length).converter
    return list(batch_source(source, converter, Batching(8, shuffle=False)).read(0))


TALK = [
    said("user", RED, "First?"),
    {"role": "assistant", "content": "x"},
    said("user", BLUE, "Then?"),
    {"role": "assistant", "content": "y"},
]


def test_each_answer_is_learnt_after_what_was_seen_before_it():
    ((x, _, weight),) = batches({"messages": [TALK, [{"role": "user", "content": "a"}, TALK[1]]]})
    rows = [
        row[mask > 0].tolist()
        for row, mask in zip(x["encoder_token_ids"], x["encoder_padding_mask"], strict=True)
    ]
    assert rows[0] == turn("", "First?")
    assert rows[1] == read(TALK[:3])[0]
    assert rows[2] == read([{"role": "user", "content": "a"}])[0]
    assert [[bool(image.any()) for image in row] for row in x["images"][:3]] == [
        [1, 0],
        [1, 1],
        [0, 0],
    ]
    assert x["images"][1, :, 3, 3].tolist() == [[1, -1, -1], [-1, -1, 1]]
    assert (weight[:3].sum(axis=1) > 0).all()


def test_conversations_of_any_form_are_the_same(tmp_path):
    talks = [TALK, [{"role": "user", "content": "a"}, TALK[1]]]
    expected = batches({"messages": talks})
    prompts = {"prompt": [talk[:-1] for talk in talks], "completion": [talk[-1:] for talk in talks]}
    rows = [{"messages": talk} for talk in talks]
    for form in (rows, iter(rows), data.Conversations(talks)):
        keras.tree.map_structure(np.testing.assert_array_equal, batches(form), expected)
    ((last, *_),) = batches(prompts)
    np.testing.assert_array_equal(last["images"][:2], expected[0][0]["images"][1:3])
    named = []
    for number, image in enumerate((RED, (BLUE * 255).astype("uint8"))):
        named.append(str(tmp_path / f"{number}.png"))
        PIL.Image.fromarray(image).save(named[-1])
    paths = iter(named)
    lines = [
        {"messages": [
            {**m, "content": [
                {"type": "image", "path": next(paths)} if part["type"] == "image" else part
                for part in m["content"]
            ]} if isinstance(m["content"], list) else m
            for m in talk
        ]}
        for talk in talks
    ]  # fmt: skip
    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    found = batches(data.read(file, field="messages"))
    keras.tree.map_structure(np.testing.assert_array_equal, found, expected)
    other = [[said("user", BLUE, "First?"), *TALK[1:]], talks[1]]
    digests = [facts.digest(as_source({"messages": some})) for some in (talks, talks, other)]
    assert digests[0] == digests[1] != digests[2]


def test_pairs_are_framed_with_their_images():
    """As the conversation of one turn; a text without images is cut as ever."""
    chat = reads_images(chat=True)
    found = chat.generate_preprocess({"images": [RED, None], "text": ["What?", "No"]})
    rows = [
        row[mask > 0].tolist()
        for row, mask in zip(found["encoder_token_ids"], found["encoder_padding_mask"], strict=True)
    ]
    assert rows == [turn("", "What?"), turn("No")]
    short = reads_images(length=16, chat=True)
    prompts = {"images": [None, None], "text": ["word " * 40, "b"]}
    blind = preprocessor(chat=True).converter.resized(encoder=16)
    with pytest.warns(UserWarning, match="1 of 2 prompts were cut"):
        (row, *_), _ = prompts_of(as_source(prompts), short.converter)
    with pytest.warns(UserWarning, match="1 of 2 prompts were cut"):
        assert row == prompts_of(as_source(prompts["text"]), blind)[0][0]
    with pytest.raises(ValueError, match=r"encoder_sequence_length of at least \d+"):
        short.generate_preprocess({"images": RED, "text": "word"})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"messages": [[said("assistant", RED)]]}, r"of the user.*'assistant'.*conversation 0"),
        ({"messages": [[of_user({"type": "video"})]]}, r"parts of a message as"),
        ({"messages": [[of_user(RED, "a")]]}, r"parts of a message as"),
        ({"messages": [[of_user({"type": "image"})]]}, r"0 images, and 1 places"),
        ({"messages": [[said("user", RED)]], "images": [RED]}, r"in messages or beside them.*both"),
        ({"messages": [[said("user", RED, "<start_of_image>")]]}, r"1 images, and 2 places"),
        ({"messages": [[said("user", BLUE * 9, "a")]]}, r"floats from 0 to 1.*conversation 0"),
        ({"messages": [[said("user", RED)], [{"role": "user", "content": "<start_of_image>"}]]},
         r"as many images as <start_of_image> in messages. Received: 0 images, and 1"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_read_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        batches({"messages": [[*talk, TALK[1]] for talk in x.pop("messages")], **x})


def test_a_missing_file_is_named_with_its_conversation():
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.png.*conversation 0"):
        as_source(
            {
                "messages": [
                    [{"role": "user", "content": [{"type": "image", "url": "/nowhere.png"}]}]
                ]
            }
        )


def test_a_model_that_reads_no_images_says_so():
    with pytest.raises(ValueError, match="Expected texts without images, as the model reads none"):
        preprocessor().generate_preprocess({"messages": [TALK[:1]]})
