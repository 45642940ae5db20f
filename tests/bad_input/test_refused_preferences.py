"""Conversations and preferences that are wrong: refused by row, or counted; nothing is touched."""

import dataclasses

import numpy as np
import pytest

from keras_encdec import training
from keras_encdec.data.preferred import as_preferred, preferred_inputs
from keras_encdec.models import EncDecBackbone, EncDecRewardModel, EncDecSeq2SeqLM
from keras_encdec.testing.models import to_numpy

PROMPTS, CHOSEN, REJECTED = ["Sum?", "Sort?", "Mean?"], ["All.", "Yes.", "Of it."], ["No", "x", "y"]
COLUMNS = {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}
JUDGED = {"prompt": PROMPTS, "completion": CHOSEN, "label": [1, 0, 1]}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def talks(last):
    return {"messages": [[user("Sum?"), assistant("All.")], last]}


def compared(prompt):
    """Columns of messages, of which the second prompt is given."""
    answers = {name: [[assistant(t)] for t in COLUMNS[name]] for name in ("chosen", "rejected")}
    return {"prompt": [[user("Sum?")], prompt, [user("Mean?")]], **answers}


def changed(columns, name, *values):
    """The columns with other values in the last rows of one."""
    return {**columns, name: [*columns[name][: -len(values)], *values]}


SUPERVISED = {
    "the assistant first": (talks([assistant("All."), user("Sum?")]), "the user first.*sation 1"),
    "an empty completion": (talks([user("Sum?"), assistant("")]), "text in each .*sation 1"),
    "an empty question": (talks([user(" "), assistant("a")]), "text in each .*conversation 1"),
    "two answers": (talks([user("a"), assistant("b"), assistant("c")]), "in turn.*conversation 1"),
    "half a character": (talks([user("a\ud800"), assistant("b")]), "UTF-8.*conversation 1"),
}
PREFERENCES = {
    "the assistant first": (compared([assistant("a"), user("b")]), "user first.*conversation 1"),
    "the assistant last": (compared([user("a"), assistant("b")]), "in turn.*conversation 1"),
    "no prompt": (compared([]), "the user first.*conversation 1"),
    "an empty prompt": (changed(COLUMNS, "prompt", "", "a"), "text as prompt of row 1"),
    "an empty answer": (changed(COLUMNS, "rejected", "\n"), "text as rejected of row 2"),
    "no text": (changed(COLUMNS, "chosen", 5), r"text \(str\).*row 2"),
    "all the same": ({**COLUMNS, "rejected": CHOSEN}, "chosen and rejected to differ"),
    "a margin with DPO": ({**COLUMNS, "margin": [1, 2, 3]}, "no margin with DPO"),
    "a margin of NaN": ({**COLUMNS, "margin": [1, np.nan, 3]}, "nan in row 1, and 0 others"),
    "labels with DPO": (JUDGED, "columns prompt, chosen and rejected with DPO"),
    "texts with DPO": (PROMPTS, "columns prompt, chosen and rejected with DPO"),
    "weights of tokens": ((COLUMNS, np.ones((3, 2))), r"one sample_weight for each of 3 rows"),
    "a weight of NaN": ((COLUMNS, [1, np.nan, 1]), "sample_weight, finite and 0 or more"),
    "too few weights": ((COLUMNS, [1.0, 1.0]), "sample_weight.* for each of 3 rows"),
}
LABELS = {
    "a label of 2": (changed(JUDGED, "label", 2, -1), "Received: 2 in row 1, and 1 others"),
    "a label of NaN": (changed(JUDGED, "label", np.nan), "nan in row 2"),
    "labels as texts": (changed(JUDGED, "label", "good"), "a number as the label"),
    "too few labels": ({**JUDGED, "label": [1, 0]}, "a label for each of 3 rows. Received: 2"),
    "one row": ({name: column[:1] for name, column in JUDGED.items()}, "at least two rows"),
}
CASES = [
    pytest.param(loss, *case, id=f"{name}, {loss or 'supervised'}")
    for loss, cases in ((None, SUPERVISED), ("DPO", PREFERENCES), ("KTO", LABELS))
    for name, case in cases.items()
]


@pytest.fixture
def lm(world):
    """The model of all cases, which is compiled as it was when one has ended."""
    yield world.lm
    world.lm.compile(sampler="greedy")


@pytest.mark.parametrize(("loss", "data", "message"), CASES)
def test_it_is_refused_before_anything_is_touched(lm, folder, loss, data, message):
    """Neither weights, nor a folder for the reference, nor a checkpoint."""
    if loss is not None:
        lm.compile(loss=getattr(training, loss)(path="reference"))
    x, weight = data if isinstance(data, tuple) else (data, None)
    before = [to_numpy(v) for v in lm.weights]
    callbacks = [training.Checkpoint("run")]
    with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
        lm.fit(x, sample_weight=weight, verbose=0, callbacks=callbacks)
    assert list(folder.iterdir()) == []
    for variable, value in zip(lm.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_a_reference_of_other_words(lm, folder):
    spec = lm.backbone.spec
    sides = [dataclasses.replace(s, vocabulary_size=64) for s in (spec.encoder, spec.decoder)]
    other = EncDecSeq2SeqLM(EncDecBackbone(*sides))
    for reference in (other, "first", 3):
        lm.compile(loss=training.DPO(reference=reference, path="reference"))
        with pytest.raises(ValueError, match=r"'initial' or a task of the same vocabularies"):
            lm.fit(COLUMNS, verbose=0)
    assert list(folder.iterdir()) == []


def test_answers_longer_than_a_row(world):
    """They are cut, counted and told; so are rows whose answers are the same then."""
    converter = world.pre.converter.resized(decoder=6)
    long = "the mean of all the values " * 3
    columns = {**COLUMNS, "chosen": [long, "Yes.", long + "a"], "rejected": ["No", long, long]}
    told = (
        r"^4 of 6 answers are longer than decoder_sequence_length = 6 tokens; the longest has "
        r"\d+\. They were cut, and their end is not learnt\. 1 rows have the same answer twice"
    )
    with pytest.warns(UserWarning, match=told):
        x, labels, _ = preferred_inputs(as_preferred(columns), converter)
    assert labels.shape == x["decoder_token_ids"].shape == (3, 2, 6)
    assert (labels[2, 0] == labels[2, 1]).all()
    end = world.tokenizer.end_token_id
    assert end not in labels[2]
    assert end in labels[0, 1]
    with pytest.raises(
        ValueError, match=r"differ in their first 6 tokens.*decoder_sequence_length"
    ):
        preferred_inputs(as_preferred(columns)[2:], converter)


def test_a_reward_model_refuses_likewise(world, folder):
    model = EncDecRewardModel(world.lm.backbone, world.pre)
    with pytest.raises(ValueError, match="nan in row 1"):
        model.fit({**COLUMNS, "margin": [1, np.nan, 3]}, verbose=0)
    with pytest.raises(ValueError, match="prompt, chosen and rejected"):
        model.fit(JUDGED, verbose=0)
    with pytest.raises(ValueError, match="text as prompt of row 1"):
        model.fit(changed(COLUMNS, "prompt", "", "a"), verbose=0)
