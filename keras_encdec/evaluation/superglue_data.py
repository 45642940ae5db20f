"""SuperGLUE's seven classification tasks as texts and labels, out of its official JSONL files.

Knows the fields of each file and what an encoder reads of them. Leaves scores to
`keras_encdec.evaluation.superglue_metrics`. The templates are ours: the paper does not disclose
its own (arXiv 2504.06225, section 4).
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.data.labelled import Labelled

SPLITS = "train.jsonl", "val.jsonl"
Record = dict[str, Any]
_LABEL = "label"
# What COPA asks for, in words (arXiv 1905.00537, table 2).
_ASKED = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


@dataclasses.dataclass(frozen=True)
class Example:
    """One thing to be classified.

    Args:
        texts: read one after another.
        label: as the file has it.
        choices: each read behind the texts; or none.
        question: which of its line's it answers.
    """

    texts: tuple[str, ...]
    label: Any
    choices: tuple[str, ...] = ()
    question: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task: what its files hold and what is made of them.

    Args:
        name: of its folder.
        fields: of a line; a type, values that there may be, or fields in turn.
        labels: values of a label, in the order of the classes.
        classes: their names.
        examples: makes those of a line, given where it stands.
        metrics: official ones, whose mean is the score.
        num_choices: of each example, or None.
    """

    name: str
    fields: Mapping[str, Any]
    labels: tuple[Any, ...]
    classes: tuple[str, ...]
    examples: Callable[[Record, str], Iterable[Example]]
    metrics: tuple[str, ...] = ("accuracy",)
    num_choices: int | None = None


@dataclasses.dataclass(frozen=True)
class Split:
    """What one file holds.

    Args:
        data: texts with the numbers of their classes.
        questions: (n,) the number of the line, or in MultiRC of the question, that each is of.
        digest: of the file's bytes.
    """

    data: Labelled
    questions: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.data)

    @property
    def labels(self) -> np.ndarray:
        """(n,) int32."""
        return np.asarray(self.data.labels, "int32")


def _boolq(record: Record, where: str) -> Iterable[Example]:
    yield Example((record["passage"], record["question"]), record[_LABEL])


def _pair(record: Record, where: str) -> Iterable[Example]:
    yield Example((record["premise"], record["hypothesis"]), record[_LABEL])


def _copa(record: Record, where: str) -> Iterable[Example]:
    texts = record["premise"], _ASKED[record["question"]]
    yield Example(texts, record[_LABEL], (record["choice1"], record["choice2"]))


def _multirc(record: Record, where: str) -> Iterable[Example]:
    passage = record["passage"]["text"]
    for number, question in enumerate(record["passage"]["questions"]):
        for answer in question["answers"]:
            texts = passage, question["question"], answer["text"]
            yield Example(texts, answer[_LABEL], question=number)


def _wic(record: Record, where: str) -> Iterable[Example]:
    texts = [_marked_characters(record, number, where) for number in "12"]
    yield Example((*texts, record["word"]), record[_LABEL])


def _wsc(record: Record, where: str) -> Iterable[Example]:
    target = record["target"]
    words = record["text"].split()
    for number in "12":
        name, last = f"span{number}_index", len(words) - 1
        if not 0 <= target[name] <= last:
            raise ValueError(
                f"Expected target.{name} from 0 to {last}, the number of a word, in {where}. "
                f"Received: {target[name]}."
            )
    at = target["span2_index"]
    said = [f"*{word}*" if i == at else word for i, word in enumerate(words)]
    asked = f"{target['span2_text']}: {target['span1_text']}"
    yield Example((" ".join(said), asked), record[_LABEL])


def _marked_characters(record: Record, number: str, where: str) -> str:
    """A sentence of WiC, its word between asterisks."""
    text = record[f"sentence{number}"]
    start, end = record[f"start{number}"], record[f"end{number}"]
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"Expected start{number} and end{number} around a word of sentence{number}, which has "
            f"{len(text)} characters, in {where}. Received: {start} and {end}."
        )
    return f"{text[:start]}*{text[start:end]}*{text[end:]}"


def _no_yes(name: str, fields: Mapping[str, Any], examples: Any) -> Task:
    """A task whose labels are false and true."""
    return Task(name, fields, (False, True), ("no", "yes"), examples)


_ANSWER = {"text": str, "idx": int, _LABEL: (0, 1)}
_QUESTION = {"question": str, "idx": int, "answers": [_ANSWER]}
_WIC = {
    **{"word": str, "sentence1": str, "sentence2": str, "idx": int, _LABEL: (False, True)},
    **{"start1": int, "start2": int, "end1": int, "end2": int},
}
_TARGET = {"span1_index": int, "span1_text": str, "span2_index": int, "span2_text": str}


def _fields(label: tuple[Any, ...], **fields: Any) -> dict[str, Any]:
    return {**fields, "idx": int, _LABEL: label}


def _named(name: str, names: tuple[str, ...], **more: Any) -> Task:
    """A task of premise and hypothesis."""
    fields = _fields(names, premise=str, hypothesis=str)
    return Task(name, fields, names, names, _pair, **more)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _no_yes("BoolQ", _fields((False, True), passage=str, question=str), _boolq),
        _named("CB", ("entailment", "contradiction", "neutral"), metrics=("accuracy", "f1")),
        Task(
            "COPA",
            _fields((0, 1), premise=str, choice1=str, choice2=str, question=tuple(_ASKED)),
            labels=(0, 1),
            classes=("choice1", "choice2"),
            examples=_copa,
            num_choices=2,
        ),
        Task(
            "MultiRC",
            {"idx": int, "passage": {"text": str, "questions": [_QUESTION]}},
            labels=(0, 1),
            classes=("no", "yes"),
            examples=_multirc,
            metrics=("f1a", "em"),
        ),
        _named("RTE", ("entailment", "not_entailment")),
        _no_yes("WiC", _WIC, _wic),
        _no_yes("WSC", _fields((False, True), text=str, target=_TARGET), _wsc),
    )
}


def tasks_of(names: str | Sequence[str] | None) -> list[Task]:
    """Tasks by name, whatever its case, each once; all of them for None.

    Raises:
        ValueError: if there is no such task, with the nearest one.
    """
    if names is None:
        return list(TASKS.values())
    given = [names] if isinstance(names, str) else list(names)
    known = {name.lower(): task for name, task in TASKS.items()}
    for name in given:
        if not isinstance(name, str) or name.lower() not in known:
            near = check.nearest(name.lower() if isinstance(name, str) else name, known)
            raise ValueError(f"Expected tasks among {', '.join(TASKS)}. Received: {name!r}.{near}")
    if not given:
        raise ValueError(f"Expected tasks among {', '.join(TASKS)}. Received: none.")
    return list(dict.fromkeys(known[name.lower()] for name in given))


def read_task(folder: str | os.PathLike, task: Task) -> tuple[Split, Split]:
    """What a task trains on, and its development set.

    Args:
        folder: with `BoolQ/train.jsonl`, `BoolQ/val.jsonl` and so on, as the official archive
            unpacks. `test.jsonl`, whose labels are not public, is not read.
        task: of `TASKS`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file, line and key of what is not that format.
    """
    train, val = (_split(Path(folder) / task.name / name, task) for name in SPLITS)
    return train, val


def _split(path: Path, task: Task) -> Split:
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {path}, as the official {task.name}.zip of SuperGLUE unpacks. Received: no "
            "such file. Name the folder that holds the folders of the tasks."
        )
    examples: list[Example] = []
    questions: list[tuple[str, int]] = []
    for where, record in _records(path):
        _check_fields(task.fields, record, where)
        for example in task.examples(record, where):
            examples.append(example)
            questions.append((where, example.question))
    if not examples:
        raise ValueError(f"Expected at least one example in {path}. Received: none.")
    data = Labelled(
        [example.texts for example in examples],
        [example.choices for example in examples] if task.num_choices else None,
        np.array([task.labels.index(example.label) for example in examples], "int32"),
    )
    number_of = {question: number for number, question in enumerate(dict.fromkeys(questions))}
    numbers = np.array([number_of[question] for question in questions])
    return Split(data, numbers, hashlib.sha256(path.read_bytes()).hexdigest())


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    """Each line that is not empty, with where it stands."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            text = check.text(where, line).strip()
            if not text:
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # also of huge numbers
                raise ValueError(f"Expected JSON in {where}. Received: {error}.") from error
            yield where, record


def _check_fields(fields: Any, found: Any, where: str, key: str = "") -> None:
    """Refuses what does not have these fields; others beside them mean nothing here.

    Args:
        fields: a type, values that there may be, fields by name, or a list of one of these.
        found: in the file.
        where: file and line.
        key: that leads there, such as `"passage.questions[0].idx"`.
    """
    if isinstance(fields, Mapping):
        _expect(isinstance(found, dict), "an object", found, where, key)
        for name, kind in fields.items():
            path = f"{key}.{name}" if key else name
            if name not in found:
                raise ValueError(f"Expected a key {path} in {where}. Received: {sorted(found)}.")
            _check_fields(kind, found[name], where, path)
    elif isinstance(fields, list):
        _expect(isinstance(found, list) and len(found) > 0, "a list", found, where, key)
        for number, one in enumerate(found):
            _check_fields(fields[0], one, where, f"{key}[{number}]")
    elif isinstance(fields, tuple):
        known = any(type(found) is type(value) and found == value for value in fields)
        _expect(known, " or ".join(map(json.dumps, fields)), found, where, key)
    elif fields is str:
        _expect(isinstance(found, str) and bool(found.strip()), "some text", found, where, key)
        check.text(f"{key} of {where}", found)
    else:
        _expect(type(found) is fields, "a whole number", found, where, key)


def _expect(fits: bool, what: str, found: Any, where: str, key: str) -> None:
    if not fits:
        said = json.dumps(found)
        said = said if len(said) <= 60 else f"{said[:60]} ..."
        raise ValueError(f"Expected {what} as {key or 'the line'} of {where}. Received: {said}.")
