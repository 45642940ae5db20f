"""Files to documents, in order, each with its place; and what is wrong with a file."""

import json

import pytest

from keras_encdec.data import read
from keras_encdec.data.recognize import documents

TEXTS = ["First.", "", "Über\nzwei Zeilen.", "Last."]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"text": t, "n": 1}) + "\n" for t in TEXTS)
    )
    (tmp_path / "a.txt").write_text("One document.\nOf two lines.\n", encoding="utf-8")
    return tmp_path


def test_formats(folder):
    assert [d.text for d in read(folder / "b.jsonl")] == TEXTS
    assert [d.text for d in read(folder / "a.txt")] == ["One document.\nOf two lines.\n"]
    lines = list(read(folder / "a.txt", lines=True))
    assert [d.text for d in lines] == ["One document.", "Of two lines."]
    assert lines[1].where == f"{folder}/a.txt:2"


def test_parquet(folder):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"body": TEXTS}), folder / "c.parquet")
    found = list(read(folder / "c.parquet", field="body"))
    assert [d.text for d in found] == TEXTS
    assert found[2].where.endswith("c.parquet:3")
    with pytest.raises(ValueError, match=r"Expected a column 'text' in .*c.parquet.*\['body'\]"):
        list(read(folder / "c.parquet"))
    (folder / "d.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"Expected Parquet in .*d.parquet"):
        list(read(folder / "d.parquet"))


def test_patterns_come_in_the_order_of_their_names(folder):
    (folder / "a2.txt").write_text("Two.")
    assert [p.name for p in read(f"{folder}/*.txt").paths] == ["a.txt", "a2.txt"]
    both = read([folder / "b.jsonl", f"{folder}/*.txt"])
    assert len(list(both)) == 6
    assert list(both) == list(both)  # read anew


def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": TEXTS, "n": [1] * 4})
    assert [d.text for d in documents(data)] == TEXTS
    assert [d.text for d in documents(data.to_iterable_dataset())] == TEXTS
    unknown = datasets.IterableDataset.from_generator(lambda: ({"text": t} for t in TEXTS))
    assert unknown.column_names is None
    assert [d.text for d in documents(unknown)] == TEXTS
    with pytest.raises(ValueError, match=r"Expected a column 'body'.*\['text', 'n'\]"):
        list(documents(data, field="body"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "Expected JSON in .*b.jsonl:5"),
        ('{"body": "x"}', r"Expected an object with 'text' in .*b.jsonl:5.*\['body'\]"),
        ("[1]", "Expected an object with 'text' in .*b.jsonl:5"),
        ('{"text": 5}', r"Expected text \(str\) in .*b.jsonl:5. Received: 5 of type int"),
        ('{"text": null}', r"Expected text \(str\) in .*b.jsonl:5. Received: None"),
    ],
)
def test_a_bad_record_is_named(folder, line, message):
    with open(folder / "b.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        list(documents(read(folder / "b.jsonl")))


def test_bytes_that_are_no_text(folder):
    (folder / "a.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"Expected text in UTF-8 in .*a.txt"):
        list(read(folder / "a.txt"))


def test_missing_vanished_and_unknown_files(folder):
    with pytest.raises(FileNotFoundError, match=r"Expected files at .*nothing"):
        read(folder / "nothing.txt")
    with pytest.raises(FileNotFoundError, match="Expected files at"):
        read(f"{folder}/*.md")
    (folder / "x.md").write_text("x")
    with pytest.raises(ValueError, match=r"Expected one of \('.txt', '.jsonl', '.parquet'\).*x.md"):
        read(folder / "x.md")
    opened = read(f"{folder}/*.txt")
    (folder / "a.txt").unlink()
    with pytest.raises(OSError, match=r"Expected to read .*a.txt.*put it back"):
        list(opened)
