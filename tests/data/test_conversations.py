"""Conversations in any form: each answer after all that was said before it, and nothing else."""

import json

import datasets
import grain
import keras
import numpy as np
import pandas
import pytest

import keras_encdec
from keras_encdec import data
from keras_encdec.data.batching import Batching, batch_source
from keras_encdec.objectives import chat

GEMMA = chat.FORMATS[0]


def said(*texts, system=None):
    """Messages of user and assistant in turn."""
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


TALKS = [
    said("Add.", "Sum of all.", "Sort.", "In order."),
    said("Mean?", "Of an array.", system="Be brief."),
    said("Write it.", "To a file.", "And read?", "Open it.", "Close?", "At the end."),
]
COMPLETED = {"prompt": [talk[:-1] for talk in TALKS], "completion": [talk[-1:] for talk in TALKS]}


@pytest.fixture(scope="module")
def preprocessor():
    found = keras_encdec.from_preset("gemma2_tiny_tiny").preprocessor
    found.encoder_sequence_length, found.decoder_sequence_length = 96, 16
    return found


@pytest.fixture
def converter(preprocessor):
    return preprocessor.converter


def ids_of(converter, text):
    return list(converter.tokenizer([text])[0])


def rows_of(source, converter, **options):
    """Each row of an epoch: what is read, what is written and what it counts."""
    batching = Batching(batch_size=2, shuffle=False, **options)
    found = []
    for x, y, weight in batch_source(data.as_source(source), converter, batching).read(0):
        for i in range(len(y)):
            kept = weight[i] > 0
            if kept.any():
                read = x["encoder_token_ids"][i][x["encoder_padding_mask"][i] > 0]
                found.append((read.tolist(), y[i][kept].tolist(), weight[i][kept].tolist()))
    return found


def by_hand(converter, talks=TALKS, last=False):
    end = ids_of(converter, GEMMA.end)
    found = []
    for talk in talks:
        system = talk[0]["content"] if talk[0]["role"] == "system" else ""
        texts = [m["content"] for m in talk if m["role"] != "system"]
        for at in range(len(texts) - 1 if last else 1, len(texts), 2):
            target = ids_of(converter, texts[at]) + end
            read = ids_of(converter, GEMMA.conversation(system, texts[:at]))
            found.append((read, target, [1.0] * len(target)))
    return found


def written(folder):
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    return data.read(path, field="messages")


FORMS = {
    "dict": lambda _: {"messages": TALKS},
    "rows": lambda _: [{"messages": talk, "id": i} for i, talk in enumerate(TALKS)],
    "dataset": lambda _: datasets.Dataset.from_dict({"messages": TALKS, "id": [1, 2, 3]}),
    "stream": lambda _: datasets.Dataset.from_dict({"messages": TALKS}).to_iterable_dataset(),
    "frame": lambda _: pandas.DataFrame({"messages": TALKS}),
    "frame of arrays": lambda _: pandas.DataFrame({"messages": [np.array(t) for t in TALKS]}),
    "Grain": lambda _: grain.MapDataset.source([{"messages": talk} for talk in TALKS]),
    "generator": lambda _: ({"messages": talk} for talk in TALKS),
    "jsonl": written,
}


def test_answers_by_hand(converter):
    expected = by_hand(converter)
    assert len(expected) == 6
    assert rows_of({"messages": TALKS}, converter) == expected


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same(form, converter, tmp_path):
    assert rows_of(FORMS[form](tmp_path), converter) == by_hand(converter)


def test_one_conversation(converter):
    assert rows_of({"messages": TALKS[0]}, converter) == by_hand(converter, TALKS[:1])


def test_the_last_answers(converter):
    expected = by_hand(converter, last=True)
    assert rows_of(data.Conversations(TALKS, "last"), converter) == expected
    assert rows_of(COMPLETED, converter) == expected
    assert rows_of(datasets.Dataset.from_dict(COMPLETED), converter) == expected


def test_prompt_and_completion_of_text_are_pairs(converter):
    columns = {"prompt": ["Add.", "Sort."], "completion": ["Sum.", "Order."]}
    pairs = {"encoder_text": columns["prompt"], "decoder_text": columns["completion"]}
    assert rows_of(columns, converter) == rows_of(pairs, converter)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert rows_of(rows, converter) == rows_of(pairs, converter)
    with pytest.raises(ValueError, match=r"Expected columns.*prompt and completion.*\['prompt'\]"):
        data.as_source({"prompt": ["Add."]})


def test_weights_are_of_conversations(converter):
    source = data.as_source({"messages": TALKS}, sample_weight=[2.0, 0.0, 0.5])
    found = [(row[1], row[2][0]) for row in rows_of(source, converter)]
    targets = [row[1] for row in by_hand(converter)]
    assert found == [(t, 2.0) for t in targets[:2]] + [(t, 0.5) for t in targets[3:]]
    with pytest.raises(ValueError, match="for each of 3 conversations"):
        data.as_source({"messages": TALKS}, sample_weight=np.ones((3, 2)))


def test_the_oldest_turns_are_left_out_and_counted(preprocessor):
    converter = preprocessor.converter
    longest = max(len(row[0]) for row in by_hand(converter))
    short = converter.resized(encoder=longest - 1)
    with pytest.warns(UserWarning, match=r"1 of 6 answers follow more than encoder_sequence_len"):
        found = rows_of({"messages": TALKS}, short)
    expected = by_hand(converter)
    expected[-1] = by_hand(converter, [TALKS[2][2:]], last=True)[0]
    assert found == expected


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        (said("Add.", "Sum.", "Sort."), r"assistant last.*conversation 1"),
        (said("Add.", "Sum.")[::-1], r"the user first.*'assistant', 'user'.*conversation 1"),
        ([], r"Expected user and assistant in turn.*conversation 1"),
        (said("Add.", " "), r"Expected text in each message.*conversation 1"),
        ([{"role": "user"}], r"Expected messages as.*conversation 1"),
        ("Add.", r"Expected messages as a list in conversation 1. Received: str"),
    ],
)
def test_out_of_turn(talk, message, converter):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        rows_of({"messages": [TALKS[0], talk]}, converter)


def test_what_cannot_be(converter, tmp_path):
    with pytest.raises(ValueError, match=r"Expected at least one conversation"):
        data.as_source({"messages": []})
    with pytest.raises(ValueError, match=r"Messages of conversations are a column"):
        data.as_source(TALKS)
    with pytest.raises(ValueError, match="Expected y inside the data"):
        data.as_source({"messages": TALKS}, ["Sum."] * 3)
    with pytest.raises(ValueError, match=r"as many prompts as completions. Received: 3 and 2"):
        data.as_source({**COMPLETED, "completion": COMPLETED["completion"][:2]})
    with pytest.raises(ValueError, match=r"Expected conversations throughout. Received: pairs"):
        rows_of(
            iter([{"messages": TALKS[0]}, {"encoder_text": "a", "decoder_text": "b"}]), converter
        )
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": said("Add.")}) + "\n")
    with pytest.raises(ValueError, match=r"assistant last.*talks.jsonl:1"):
        rows_of(data.read(path, field="messages"), converter)


@pytest.mark.long
def test_training_is_that_of_framed_pairs():
    """And conversations of one turn are what the preprocessor's `chat` makes of pairs."""

    def losses(x, chat, **options):
        keras.utils.set_random_seed(0)
        lm = keras_encdec.from_preset("gemma2_tiny_tiny")
        lm.preprocessor.chat = chat
        lm.preprocessor.encoder_sequence_length = lm.preprocessor.decoder_sequence_length = 32
        lm.compile(keras.optimizers.SGD(0.01))
        history = lm.fit(x, batch_size=2, epochs=2, verbose=0, **options).history
        return history["loss"], lm

    pairs = {
        "encoder_text": ["Add.", "Sort it.", "Mean?"],
        "decoder_text": ["Sum.", "Order.", "A."],
    }
    talks = [said(*row) for row in zip(*pairs.values(), strict=True)]
    expected, _ = losses(pairs, True)
    found, lm = losses({"messages": talks}, False)
    assert found == expected
    assert lm.provenance["history"][-1]["data"]["kind"] == "conversations"
    score = lm.evaluate({"messages": talks}, batch_size=2, verbose=0, return_dict=True)
    assert score["loss"] < expected[0]
    asked = [talk[:1] for talk in talks]
    lm.compile(sampler="greedy")
    assert lm.generate({"messages": asked}, 12) == [lm.chat(talk, 12) for talk in asked]
