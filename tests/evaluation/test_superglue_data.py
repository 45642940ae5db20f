"""What is read of SuperGLUE's files, and what is refused, with file, line and key."""

import copy

import numpy as np
import pytest
from superglue_files import LINES, write

from keras_encdec.evaluation.superglue_data import TASKS, read_task, tasks_of

# By hand: the texts of the lines above, and the numbers of their classes.
READ = {
    "BoolQ": ([("Water wets what it touches.", "is water wet")], [1]),
    "CB": ([("He said that she left.", "She left.")], [2]),
    "COPA": ([("The cup fell.", "What happened as a result?")], [0]),
    "MultiRC": (
        [
            ("Ann sings. Bob reads.", "Who sings?", "Ann"),
            ("Ann sings. Bob reads.", "Who sings?", "Bob"),
            ("Ann sings. Bob reads.", "Who reads?", "Bob"),
        ],
        [1, 0, 1],
    ),
    "RTE": ([("Ann has two cats.", "Ann has a cat.")], [0]),
    "WiC": ([("The *bank* lends.", "On a river *bank*", "bank")], [0]),
    "WSC": ([("Ann thanked Eve because *she* had helped.", "she: Eve")], [1]),
}


def read(tmp_path, task, lines):
    write(tmp_path / task / "train.jsonl", lines)
    write(tmp_path / task / "val.jsonl", [LINES[task]])
    return read_task(tmp_path, TASKS[task])


def test_there_are_seven():
    assert list(TASKS) == list(READ) == list(LINES)


@pytest.mark.parametrize("task", READ)
def test_lines_become_texts_and_labels(tmp_path, task):
    texts, labels = READ[task]
    train, val = read(tmp_path, task, [LINES[task]] * 2)
    assert train.data.rows == texts * 2
    assert train.labels.tolist() == labels * 2
    assert val.data.rows == texts
    assert val.labels.tolist() == labels


def test_choices_of_copa(tmp_path):
    other = {**LINES["COPA"], "question": "cause", "label": 1}
    train, _ = read(tmp_path, "COPA", [LINES["COPA"], other])
    assert train.data.choices == [("It broke.", "It flew.")] * 2
    assert train.data.rows[1] == ("The cup fell.", "What was the cause of this?")
    assert train.labels.tolist() == [0, 1]


def test_answers_belong_to_questions(tmp_path):
    train, _ = read(tmp_path, "MultiRC", [LINES["MultiRC"]] * 2)
    np.testing.assert_array_equal(train.questions, [0, 0, 1, 2, 2, 3])


def changed(task, path, value):
    """A line with another value at a path such as `"passage.questions.0.idx"`; None removes it."""
    line = copy.deepcopy(LINES[task])
    *parents, last = path.split(".")
    place = line
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return line


REFUSED = [
    ("BoolQ", "label", None, "a key label in"),
    ("BoolQ", "label", 1, "false or true as label of"),
    ("BoolQ", "passage", "  ", "some text as passage of"),
    ("BoolQ", "question", 3, "some text as question of"),
    ("CB", "label", "entails", 'Received: "entails"'),
    ("COPA", "label", 2, "0 or 1 as label of"),
    ("COPA", "label", True, "0 or 1 as label of"),
    ("COPA", "question", "why", '"cause" or "effect" as question of'),
    ("MultiRC", "passage.questions", [], "a list as passage.questions of"),
    (
        "MultiRC",
        "passage.questions.1.answers.0.label",
        None,
        "passage.questions[1].answers[0].label",
    ),
    ("MultiRC", "passage.questions.0.answers.1.text", "", "passage.questions[0].answers[1].text"),
    ("RTE", "hypothesis", None, "a key hypothesis in"),
    ("RTE", "label", -1, '"entailment" or "not_entailment" as label of'),
    ("WiC", "start2", 15, "start2 and end2 around a word of sentence2, which has 15"),
    ("WiC", "end1", "8", "a whole number as end1 of"),
    ("WSC", "target", None, "a key target in"),
    ("WSC", "target.span1_text", None, "a key target.span1_text in"),
    ("WSC", "target.span2_index", 7, "target.span2_index from 0 to 6"),
    ("WSC", "target.span1_index", True, "a whole number as target.span1_index"),
]


@pytest.mark.parametrize(("task", "path", "value", "says"), REFUSED, ids=lambda x: str(x)[:24])
def test_another_format_is_refused(tmp_path, task, path, value, says):
    with pytest.raises(ValueError, match="Expected") as error:
        read(tmp_path, task, [LINES[task], changed(task, path, value)])
    assert says in str(error.value)
    assert f"{tmp_path / task / 'train.jsonl'}:2" in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{'premise': 1}", "Expected JSON in"),
        (b"[1]", "Expected an object as the line of"),
        (b'{"premise": "\xff"}', "text in UTF-8 in"),
    ],
)
def test_a_line_that_is_no_json_is_refused(tmp_path, text, says):
    read(tmp_path, "RTE", [LINES["RTE"]])
    path = tmp_path / "RTE" / "val.jsonl"
    path.write_bytes(path.read_bytes() + b"\n" + text + b"\n")
    with pytest.raises(ValueError, match=says) as error:
        read_task(tmp_path, TASKS["RTE"])
    assert f"{path}:3" in str(error.value)


def test_files_must_be_there_and_hold_something(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CB/train\.jsonl"):
        read_task(tmp_path, TASKS["CB"])
    with pytest.raises(ValueError, match=r"one example in .*CB/train\.jsonl"):
        read(tmp_path, "CB", [])


def test_tasks_by_name():
    assert [task.name for task in tasks_of(None)] == list(TASKS)
    assert [task.name for task in tasks_of(["wic", "CB", "WiC"])] == ["WiC", "CB"]
    for names, says in ((["boolqq"], "Did you mean 'boolq'"), ([], "Received: none"), ([3], "3")):
        with pytest.raises(ValueError, match=says):
            tasks_of(names)
