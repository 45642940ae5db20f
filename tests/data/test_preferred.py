"""Preferred answers in any form: the same inputs and answers, each input once."""

import datasets
import grain
import numpy as np
import pandas
import pytest

import keras_encdec
from keras_encdec.data.kinds import Pairs, Stream
from keras_encdec.data.preferred import Preferred, as_preferred, preferred_inputs
from keras_encdec.data.recognize import as_source
from keras_encdec.objectives import chat

PROMPTS = ["Returns the sum.", "Sort an array.", "Mean of values."]
CHOSEN = ["Of all values.", "In place.", "Of an axis."]
REJECTED = ["None.", "No.", "It is a mean."]
COLUMNS = {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}
JUDGED = {"prompt": PROMPTS, "completion": CHOSEN, "label": [True, False, True]}


@pytest.fixture(scope="module")
def converter():
    preprocessor = keras_encdec.from_preset("gemma2_tiny_tiny").preprocessor
    preprocessor.encoder_sequence_length, preprocessor.decoder_sequence_length = 40, 12
    return preprocessor.converter


def rows_of(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def talk(text, role="user"):
    return [{"role": role, "content": text}]


FORMS = {
    "dict": lambda c: c,
    "rows": rows_of,
    "dataset": datasets.Dataset.from_dict,
    "stream": lambda c: datasets.Dataset.from_dict(c).to_iterable_dataset(),
    "frame": pandas.DataFrame,
    "Grain": lambda c: grain.MapDataset.source(rows_of(c)),
    "generator": lambda c: (row for row in rows_of(c)),
    "batches": lambda c: iter([{k: v[:2] for k, v in c.items()}, {k: v[2:] for k, v in c.items()}]),
}


def same(one, other):
    for a, b in zip(one, other, strict=True):
        a, b = (x if isinstance(x, dict) else {"": x} for x in (a, b))
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def by_hand(converter, prompts=PROMPTS, answers=(CHOSEN, REJECTED)):
    """What is read, and what both answers are, of each row."""
    ids = [list(row) for row in converter.tokenizer(list(prompts))]
    end = converter.tokenizer.end_token_id
    both = [[[*row, end] for row in converter.tokenizer(list(some))] for some in answers]
    return ids, both


def laid(arrays):
    x, labels, _ = arrays
    rows = range(len(labels))
    read = [x["encoder_token_ids"][i][x["encoder_padding_mask"][i] > 0].tolist() for i in rows]
    there = x["decoder_padding_mask"] > 0
    return read, [[labels[i, k][there[i, k]].tolist() for i in rows] for k in range(2)]


def test_rows_by_hand(converter):
    found = preferred_inputs(as_preferred(COLUMNS), converter)
    assert found[0]["decoder_token_ids"].shape == (3, 2, 12)
    assert laid(found) == by_hand(converter)
    starts = found[0]["decoder_token_ids"][:, :, 0]
    assert (starts == converter.start_token_id).all()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same(form, converter):
    found = as_preferred(FORMS[form](COLUMNS))
    assert isinstance(found, Preferred)
    same(preferred_inputs(found, converter), preferred_inputs(as_preferred(COLUMNS), converter))
    judged = as_preferred(FORMS[form](JUDGED))
    assert judged.labels.tolist() == [1, 0, 1]
    assert not judged.compares


def test_labels_beside_the_data(converter):
    x = {k: v for k, v in JUDGED.items() if k != "label"}
    found = as_preferred(x, JUDGED["label"])
    assert found.labels.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="Expected labels in label or in y"):
        as_preferred(JUDGED, JUDGED["label"])


def test_the_second_answer_is_that_of_the_row_behind(converter):
    read, (own, others) = laid(preferred_inputs(as_preferred(JUDGED), converter))
    assert (read, own) == (by_hand(converter)[0], by_hand(converter)[1][0])
    assert others == [*own[1:], own[0]]
    with pytest.raises(ValueError, match="at least two rows"):
        preferred_inputs(as_preferred(JUDGED)[:1], converter)


def test_conversations(converter):
    """With prompts of messages, with whole conversations, and with answers as texts."""
    prompts = [talk(text) for text in PROMPTS]
    answers = [[talk(text, "assistant") for text in some] for some in (CHOSEN, REJECTED)]
    forms = [
        {"prompt": prompts, "chosen": answers[0], "rejected": answers[1]},
        {"prompt": prompts, "chosen": CHOSEN, "rejected": REJECTED},
        {
            name: [[*p, *a] for p, a in zip(prompts, some, strict=True)]
            for name, some in zip(("chosen", "rejected"), answers, strict=True)
        },
    ]
    frame = chat.FORMATS[0]
    framed = [frame.conversation("", [text]) for text in PROMPTS]
    ids = [list(row) for row in converter.tokenizer(framed)]
    end = list(converter.tokenizer([frame.end])[0])
    both = [[[*r, *end] for r in converter.tokenizer(some)] for some in (CHOSEN, REJECTED)]
    for form in (*forms, rows_of(forms[0]), iter(rows_of(forms[2]))):
        assert laid(preferred_inputs(as_preferred(form), converter)) == (ids, both)


def test_weights_and_margins():
    found = as_preferred({**COLUMNS, "margin": [1, 0.5, 2]}, sample_weight=[1, 0, 3])
    assert (found.margins.tolist(), found.weights.tolist()) == ([1, 0.5, 2], [1, 0, 3])
    part = found[1:]
    assert (len(part), part.margins.tolist(), part.weights.tolist()) == (2, [0.5, 2], [0, 3])


def test_other_data_is_what_it_was():
    pairs = {"prompt": PROMPTS, "completion": CHOSEN}
    assert isinstance(as_preferred(pairs), Pairs)
    assert isinstance(as_preferred(PROMPTS, CHOSEN), Pairs)
    for source in (as_source(PROMPTS), as_source(pairs)):
        assert as_preferred(source) is source
    stream = as_preferred(iter(rows_of(pairs)))
    assert isinstance(stream, Stream)
    assert stream.collected().encoder_text == PROMPTS


def test_what_is_cut_is_told(converter):
    long = {**COLUMNS, "chosen": ["word " * 30, *CHOSEN[1:]]}
    with pytest.warns(
        UserWarning, match="1 of 6 answers are longer than decoder_sequence_length = 12"
    ):
        preferred_inputs(as_preferred(long), converter)


def test_rows_that_teach_nothing_are_told():
    with pytest.warns(UserWarning, match=r"the same in 1 of 3 rows \(the first: 1\)"):
        as_preferred({**COLUMNS, "rejected": [REJECTED[0], CHOSEN[1], REJECTED[2]]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rejected": None}, r"Expected columns prompt, chosen and rejected.*\['rejected'\]"),
        ({"prompt": None}, "Expected a column prompt, or conversations as chosen and rejected"),
        ({"rejected": CHOSEN}, "Expected chosen and rejected to differ"),
        ({"rejected": CHOSEN[:2]}, "as many chosen as rejected. Received: 3 and 2"),
        ({"prompt": PROMPTS[:2]}, "as many chosen as prompts. Received: 3 and 2"),
        ({"chosen": ["", *CHOSEN[1:]]}, "Expected text as chosen of row 0"),
        ({"margin": ["a", "b", "c"]}, "a number as the margin"),
        ({"margin": [1.0, np.nan, 0.0]}, "a number as the margin"),
    ],
)
def test_what_cannot_be(columns, message):
    given = {k: v for k, v in {**COLUMNS, **columns}.items() if v is not None}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        as_preferred(given)


def test_labels_are_true_or_false():
    with pytest.raises(
        ValueError, match=r"Expected labels True or False, 1 or 0. Received: 2 in row 0"
    ):
        as_preferred({**JUDGED, "label": [2, 1, 0]})


def test_other_messages_before_the_last():
    one = [*talk("A"), *talk("b", "assistant")]
    other = [*talk("B"), *talk("c", "assistant")]
    with pytest.raises(ValueError, match=r"differ in their last message alone.*row 0"):
        as_preferred({"chosen": [one], "rejected": [other]})
