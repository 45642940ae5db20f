"""Seven tasks in SuperGLUE's formats, made of the docstrings of installed packages.

For trying and timing what runs on SuperGLUE, offline: the text is that of the machine, none is
shipped. The formats are the official ones, the questions are not, and scores compare with
nothing but scores on the same folder. Knows what each task asks of docstrings.
"""

import dataclasses
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_encdec import check
from keras_encdec.data import docstrings
from keras_encdec.evaluation.superglue_data import SPLITS, TASKS, Record
from keras_encdec.files import atomic_folder
from keras_encdec.progress import track

_LONGEST = 600  # characters of a text
# "    axis: Integer, ..." of Google's style, "axis : int" with its text below of NumPy's.
_GOOGLE = re.compile(r"^ {4}(\w+)(?: \([^)\n]*\))?: +(\S.{19,})$", re.MULTILINE)
_NUMPY = re.compile(r"^(\w+) : [^\n]+\n {4}(\S.{19,})$", re.MULTILINE)
_SENTENCE_ENDS = re.compile(r"(?<=[a-z)`]\.)(?<!i\.e\.)(?<!e\.g\.) +(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z].{38,198}\.")
_NAME = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b|(?<=`)[A-Za-z_]{3,}(?=`)")
_PASSES = 4  # over docstrings, each with other draws


@dataclasses.dataclass(frozen=True)
class _Doc:
    """A docstring with what tasks ask for.

    Args:
        file: `package/relative/path`.
        summary: its first line.
        body: the rest, in one line of at most so many characters.
        parameters: (name, first line of its description) of those that the body names.
        sentences: of its prose.
    """

    file: str
    summary: str
    body: str
    parameters: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]

    @property
    def package(self) -> str:
        return self.file.partition("/")[0]


class _Docs:
    """Docstrings, and draws among them.

    Args:
        docs: to draw of.
        packages: the three that CB tells apart.
    """

    def __init__(self, docs: Sequence[_Doc], packages: Sequence[str]):
        self.all, self.packages = docs, packages
        self.of_file: dict[str, list[_Doc]] = defaultdict(list)
        for doc in docs:
            self.of_file[doc.file].append(doc)

    def other(self, doc: _Doc, rng: np.random.Generator) -> _Doc:
        """Another docstring, of the same file where there is one that says something else."""

        def differs(other: _Doc) -> bool:
            return other.summary != doc.summary and other.body != doc.body

        near = list(filter(differs, self.of_file[doc.file]))
        return _one(near or list(filter(differs, self.all)), rng)


def write_stand_in(
    folder: str | os.PathLike,
    size: int = 512,
    val_size: int = 128,
    seed: int = 0,
    packages: Sequence[str] = docstrings.PACKAGES,
) -> None:
    """Writes a folder that `superglue` reads, out of docstrings of installed packages.

    The tasks: is this the summary of this text (RTE); which of two summaries is (COPA); has it a
    parameter of this name (BoolQ); which sentences are of the same docstring (MultiRC); do two
    sentences with one identifier stand in the same file (WiC); which of two parameters a
    description calls "it" (WSC); which of three packages it is of (CB).
    Development sets are of files that nothing is trained on.

    Args:
        folder: new or empty.
        size: lines of each `train.jsonl`, as many of each label as of any other, or one more.
        val_size: of each `val.jsonl`.
        seed: what is drawn follows from; the same seed and packages give the same bytes.
        packages: names of installed packages, at least three of which are there.

    Raises:
        ValueError: if the packages have too few docstrings for so many lines, or the folder
            holds something.
    """
    sizes = check.whole("size", size, least=6), check.whole("val_size", val_size, least=6)
    check.whole("seed", seed, least=0)
    found = docstrings.load(packages, lambda files: track(files, "Reading docstrings"))
    docs = [[doc for d in part if (doc := _doc(d))] for part in found]
    frequent = Counter(doc.package for doc in docs[1]).most_common(3)  # of these there are few
    if len(frequent) < 3:
        raise ValueError(
            f"Expected docstrings of three packages. Received: {[name for name, _ in frequent]}."
        )
    chosen = [name for name, _ in frequent]
    with atomic_folder(folder) as new:
        for name, records in _MAKERS.items():
            (new / name).mkdir()
            for number, split in enumerate(SPLITS):
                source = _Docs(docs[number], chosen)
                rng = np.random.default_rng([seed, number, list(TASKS).index(name)])
                lines = _lines(name, records(source, rng), sizes[number], rng)
                _write(new / name / split, lines)


def _doc(found: docstrings.Docstring) -> _Doc | None:
    if not found.summary_and_body:
        return None
    summary, body = found.summary_and_body
    matches = [*_GOOGLE.findall(body), *_NUMPY.findall(body)]
    shown = " ".join(body.split())[:_LONGEST]
    return _Doc(
        found.file,
        summary,
        shown,
        tuple(
            (name, " ".join(text.split())[:200])
            for name, text in matches
            if re.search(rf"\b{name}\b", shown)
        ),
        _sentences(body),
    )


def _sentences(body: str) -> tuple[str, ...]:
    """Those of its prose, each once, in their order."""
    paragraphs = [" ".join(lines.split()) for lines in body.split("\n\n")]
    every = (x for text in paragraphs for x in _SENTENCE_ENDS.split(text))
    return tuple(dict.fromkeys(x for x in every if _SENTENCE.fullmatch(x) and ">>>" not in x))


def _lines(
    name: str, records: Iterator[tuple[Any, Record]], size: int, rng: np.random.Generator
) -> list[Record]:
    """So many records, their labels in turn, in a drawn order and numbered."""
    kept: dict[Any, list[Record]] = defaultdict(list)
    kinds = {"CB": 3, "MultiRC": 1}.get(name, 2)
    most = -(-size // kinds)
    seen: set[str] = set()
    for label, record in records:
        text = json.dumps(record)
        if len(kept[label]) < most and text not in seen:
            kept[label].append(record)
            seen.add(text)
        if len(kept) == kinds and all(len(some) == most for some in kept.values()):
            break
    else:
        least = min((len(some) for some in kept.values()), default=0) * (len(kept) == kinds)
        raise ValueError(
            f"Expected docstrings for {size} lines of {name}. Received: enough for "
            f"{least * kinds}. Choose a smaller size, or more packages."
        )
    turns = [record for some in zip(*kept.values(), strict=True) for record in some][:size]
    order = rng.permutation(size)
    return [{**turns[i], "idx": number} for number, i in enumerate(order)]


def _write(path: Path, lines: Sequence[Record]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def _one(some: Sequence[Any], rng: np.random.Generator) -> Any:
    return some[int(rng.integers(len(some)))]


def _drawn(docs: Sequence[_Doc], rng: np.random.Generator) -> Iterator[_Doc]:
    """All docstrings in a drawn order, again and again."""
    for _ in range(_PASSES):
        for i in rng.permutation(len(docs)):
            yield docs[i]


# Each yields (label, record) for as long as there are docstrings.


def _rte(docs: _Docs, rng: np.random.Generator) -> Iterator[tuple[Any, Record]]:
    for doc in _drawn(docs.all, rng):
        label = _one(TASKS["RTE"].labels, rng)
        said = doc.summary if label == "entailment" else docs.other(doc, rng).summary
        yield label, {"premise": doc.body, "hypothesis": said, "label": label}


def _copa(docs: _Docs, rng: np.random.Generator) -> Iterator[tuple[Any, Record]]:
    for doc in _drawn(docs.all, rng):
        label, other = int(rng.integers(2)), docs.other(doc, rng).summary
        first, second = (other, doc.summary) if label else (doc.summary, other)
        record = {"premise": doc.body, "choice1": first, "choice2": second, "question": "effect"}
        yield label, {**record, "label": label}


def _boolq(docs: _Docs, rng: np.random.Generator) -> Iterator[tuple[Any, Record]]:
    having = [doc for doc in docs.all if doc.parameters]
    for doc in _drawn(having, rng):
        label, own = bool(rng.integers(2)), {name for name, _ in doc.parameters}
        name = _one(sorted(own), rng) if label else _one(_one(having, rng).parameters, rng)[0]
        if label or not re.search(rf"\b{name}\b", doc.body):
            question = f"is there a parameter called {name}"
            yield label, {"question": question, "passage": doc.body, "label": label}


def _multirc(docs: _Docs, rng: np.random.Generator) -> Iterator[tuple[Any, Record]]:
    having = [doc for doc in docs.all if len(doc.sentences) >= 3]
    for doc in _drawn(having, rng):
        own = [doc.sentences[i] for i in rng.permutation(len(doc.sentences))]
        right = int(rng.integers(1, 3))
        wrong = [_one(_one(having, rng).sentences, rng) for _ in range(4 - right)]
        if set(wrong) & set(own) or len(set(wrong)) < len(wrong):
            continue
        answers = [(text, 1) for text in own[:right]] + [(text, 0) for text in wrong]
        drawn = [answers[i] for i in rng.permutation(4)]
        said = [{"text": t, "idx": i, "label": label} for i, (t, label) in enumerate(drawn)]
        question = {"question": "Which sentences belong here?", "answers": said, "idx": 0}
        passage = " ".join([doc.summary, *own[right:]])[:_LONGEST]
        yield None, {"passage": {"text": passage, "questions": [question]}, "version": 1.1}


def _wic(docs: _Docs, rng: np.random.Generator) -> Iterator[tuple[Any, Record]]:
    places: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for doc in docs.all:
        for sentence in doc.sentences:
            for match in _NAME.finditer(sentence):
                places[match[0]].append((doc.file, sentence, match.start()))
    words = sorted(word for word, some in places.items() if len(some) > 1)
    for _ in range(_PASSES * len(docs.all)):
        word, near = _one(words, rng), bool(rng.integers(2))
        one = _one(places[word], rng)
        others = [x for x in places[word] if x[1] != one[1] and (x[0] == one[0]) == near]
        if not others:
            continue
        other, label = _one(others, rng), near
        record: Record = {"word": word, "label": label, "version": 1.1}
        for number, (_, sentence, start) in enumerate((one, other), start=1):
            at = {f"start{number}": start, f"end{number}": start + len(word)}
            record |= {f"sentence{number}": sentence, **at}
        yield label, record


def _wsc(docs: _Docs, rng: np.random.Generator) -> Iterator[tuple[Any, Record]]:
    for doc in _drawn([doc for doc in docs.all if len(doc.parameters) >= 2], rng):
        first, second = (doc.parameters[i] for i in rng.permutation(len(doc.parameters))[:2])
        told, asked = int(rng.integers(2)), int(rng.integers(2))
        names = first[0], second[0]
        if names[0] == names[1]:
            continue
        said = re.sub(rf"\b{names[told]}\b", "it", (first, second)[told][1])
        text = f"There are {names[0]} and {names[1]} here. It is this: {said}"
        target = {"span1_index": (2, 4)[asked], "span1_text": names[asked]}
        target |= {"span2_index": 6, "span2_text": "It"}
        yield told == asked, {"text": text, "target": target, "label": told == asked}


def _cb(docs: _Docs, rng: np.random.Generator) -> Iterator[tuple[Any, Record]]:
    names = dict(zip(docs.packages, TASKS["CB"].labels, strict=True))
    for doc in _drawn([doc for doc in docs.all if doc.package in names], rng):
        label = names[doc.package]
        yield label, {"premise": doc.body, "hypothesis": doc.summary, "label": label}


_MAKERS: Mapping[str, Callable[[_Docs, np.random.Generator], Iterator[tuple[Any, Record]]]] = {
    "BoolQ": _boolq,
    "CB": _cb,
    "COPA": _copa,
    "MultiRC": _multirc,
    "RTE": _rte,
    "WiC": _wic,
    "WSC": _wsc,
}
