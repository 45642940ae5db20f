"""The stand-in tasks: seeded, balanced, and each label true of its text."""

import collections
import re

import pytest

from keras_encdec.data import docstrings
from keras_encdec.evaluation import stand_in, write_stand_in
from keras_encdec.evaluation.superglue_data import TASKS, read_task

PACKAGES = ("numpy", "keras", "keras_hub")
SIZE, VAL_SIZE = 18, 12


@pytest.fixture(scope="module")
def found():
    return docstrings.load(PACKAGES)


@pytest.fixture(autouse=True)
def read_once(found, monkeypatch):
    """The docstrings of these packages, read once for all tests."""
    monkeypatch.setattr(docstrings, "load", lambda packages, progress: found)


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "stand_in"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings, "load", lambda packages, progress: found)
        write_stand_in(path, SIZE, VAL_SIZE)
    return path


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.jsonl")}


def text(part):
    return " ".join(" ".join(doc.text.split()) for doc in part)


def rows(folder, name):
    """(texts, label) of both splits."""
    for split in read_task(folder, TASKS[name]):
        yield from zip(split.data.rows, split.labels, strict=True)


@pytest.mark.long
def test_all_seven_are_read_and_balanced(folder):
    for task in TASKS.values():
        for split, size in zip(read_task(folder, task), (SIZE, VAL_SIZE), strict=True):
            if task.name == "MultiRC":
                assert len(set(split.questions)) == size
                continue
            counts = collections.Counter(split.labels.tolist())
            assert set(counts.values()) == {size // len(task.classes)}


def test_a_seed_gives_the_same_bytes(folder, tmp_path):
    write_stand_in(tmp_path / "same", SIZE, VAL_SIZE)
    assert bytes_of(tmp_path / "same") == bytes_of(folder)
    write_stand_in(tmp_path / "other", SIZE, VAL_SIZE, seed=1)
    other = bytes_of(tmp_path / "other")
    assert all(other[name] != kept for name, kept in bytes_of(folder).items())


def test_development_sets_are_of_other_files(folder, found):
    held_out = {" ".join(d.summary_and_body[0].split()) for d in found[1] if d.summary_and_body}
    for name in ("RTE", "CB"):
        train, val = read_task(folder, TASKS[name])
        assert {row[1] for row in val.data.rows} <= held_out
        assert not {row[0] for row in val.data.rows} & {row[0] for row in train.data.rows}


def test_summaries_belong_to_bodies(folder, found):
    own = {}
    for part in found:
        for doc in part:
            if doc.summary_and_body:
                summary, body = doc.summary_and_body
                own.setdefault(" ".join(body.split())[:600], set()).add(summary)
    for (body, summary), label in rows(folder, "RTE"):
        assert (summary in own[body]) == (label == 0)
    for split in read_task(folder, TASKS["COPA"]):
        for (body, _), choices, label in zip(
            split.data.rows, split.data.choices, split.labels, strict=True
        ):
            assert [choice in own[body] for choice in choices] == [label == 0, label == 1]


def test_questions_name_parameters(folder):
    for (passage, question), label in rows(folder, "BoolQ"):
        name = question.rpartition(" ")[2]
        assert bool(re.search(rf"\b{name}\b", passage)) == label


def test_sentences_belong(folder, found):
    every = text(found[0]) + text(found[1])
    for (passage, _, answer), _label in rows(folder, "MultiRC"):
        assert answer in every
        assert answer not in passage


def test_words_stand_where_they_are_said_to(folder):
    for (*sentences, word), _label in rows(folder, "WiC"):
        assert all(f"*{word}*" in sentence for sentence in sentences)
    for (marked, asked), _label in rows(folder, "WSC"):
        assert "*It*" in marked
        name = asked.removeprefix("It: ")
        assert marked.split()[2] == name or marked.split()[4] == name


def test_it_is_what_the_description_is_of(folder, found):
    described = {}
    for part in found:
        for doc in filter(None, map(stand_in._doc, part)):
            for name, text in doc.parameters:
                described.setdefault(re.sub(rf"\b{name}\b", "it", text), set()).add(name)
    for (marked, asked), label in rows(folder, "WSC"):
        name = asked.removeprefix("It: ")
        assert not label or name in described[marked.partition("It* is this: ")[2]]


def test_packages_that_have_too_few(tmp_path, found, monkeypatch):
    with pytest.raises(ValueError, match=r"for 90000 lines of .* Choose a smaller size"):
        write_stand_in(tmp_path / "new", 90000)
    monkeypatch.setattr(docstrings, "load", lambda packages, progress: ([], []))
    with pytest.raises(ValueError, match=r"docstrings of three packages. Received: \[\]"):
        write_stand_in(tmp_path / "new")
    with pytest.raises(ValueError, match="Expected size of at least 6"):
        write_stand_in(tmp_path / "new", 5)
    assert not (tmp_path / "new").exists()
