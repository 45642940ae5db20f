"""`keras-encdec eval`: tasks from a folder, offline, models side by side, after a kill too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from made_tasks import COUNT, documents, written

import keras_encdec
import keras_encdec_cli
from keras_encdec.evaluation.harness_tasks import Tasks

SCRIPT = Path(__file__).with_name("run_eval.py")
MODELS = ["gemma2_tiny_tiny", "gemma2_tiny_docs"]
TASKS = "docs_choice,docs_summary,docs_text,docs_last"


def options(folder, *more, tasks=TASKS):
    return ["eval", *MODELS, "--tasks", tasks, "--include-path", str(folder), *more]


def run(capfd, *arguments):
    """The exit status, and what was printed to a user."""
    status = keras_encdec_cli.main(list(arguments))
    found = capfd.readouterr()
    return status, found.out + found.err


@pytest.mark.slow
def test_a_table_and_its_numbers(capfd, folder, tmp_path):
    output = tmp_path / "out.json"
    more = "--limit", "5", "--max-length", "100", "--output", str(output)
    status, said = run(capfd, *options(folder, *more, tasks="docs_choice,docs_last"))
    assert status == 0, said
    found = json.loads(output.read_text())
    assert list(found) == MODELS
    for model, cut in zip(MODELS, (True, True), strict=True):
        assert bool(found[model]["cut_contexts"]) == cut
        results = found[model]["results"]["docs_choice"]
        assert found[model]["n-samples"]["docs_choice"] == {"original": COUNT, "effective": 5}
        assert f"{results['acc,none']:.4f} ± {results['acc_stderr,none']:.4f}" in said
        assert found[model]["results"]["docs_last"]["perplexity,none"] > 1
        assert f"{model}: " in said
    assert "contexts lost their beginning, beyond 100 tokens" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json"]
    before = output.read_bytes()
    status, said = run(capfd, *options(folder, "--output", str(output)))
    assert status == 2
    assert "Expected a new file for results" in said
    assert output.read_bytes() == before


@pytest.mark.long
def test_kill_and_go_on(folder, tmp_path):
    """Killed while it scores and while it writes, it ends with the table of one left alone."""

    def start(name, dies_after):
        output = tmp_path / f"{name}.json"
        arguments = [MODELS[0], "--tasks", "docs_choice,docs_summary", "--include-path", folder]
        arguments += ["--output", output, "--limit", "6", "--batch-size", "1"]
        ended = subprocess.run(
            [sys.executable, SCRIPT, str(dies_after), "eval", *map(str, arguments)],
            capture_output=True,
            text=True,
        )
        table = [
            line for line in ended.stdout.splitlines() if line.startswith(("task", " ", "docs"))
        ]
        return ended, output, table

    # 24 choices and then 6 texts, at most 4 between two writes: 6 writes, then 2.
    for kill in (2, 5):
        ended, output, table = start("killed", kill)
        assert (ended.returncode, output.exists(), table) == (-9, False, []), ended.stderr
        assert output.with_name("killed.json.answers").exists()
    ended, output, table = start("killed", 0)
    alone, expected, other = start("alone", 0)
    assert (ended.returncode, alone.returncode) == (0, 0), ended.stderr + alone.stderr
    assert table == other
    assert len(table) == 5
    assert json.loads(output.read_text()) == json.loads(expected.read_text())
    assert not output.with_name("killed.json.answers").exists()


WITHOUT = """
import importlib.machinery, socket, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            return None
        return super().find_spec(name, path, target)

def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"no network: {address}")

sys.meta_path[:] = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
socket.socket.connect = refuse
import keras_encdec
import keras_encdec_cli
status = keras_encdec_cli.main(sys.argv[1:])
print("status", status, "torch" in sys.modules, "transformers" in sys.modules)
"""


@pytest.mark.long
def test_without_torch_and_without_network(folder):
    arguments = options(folder, "--limit", "2", tasks="docs_choice,docs_text")
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True
    )
    assert ended.stdout.splitlines()[-1] == "status 0 False False", ended.stdout + ended.stderr


# What cannot be asked.


@pytest.mark.long
def test_unknown_names(capfd, folder):
    status, said = run(capfd, *options(folder, tasks="docs_chioce"))
    assert (status, "Did you mean 'docs_choice'" in said) == (2, True), said
    status, said = run(capfd, "eval", "gemma2_tiny_tinny", *options(folder, tasks="docs_last")[3:])
    assert (status, "Did you mean 'gemma2_tiny_tiny'" in said) == (2, True), said
    status, said = run(capfd, *options(folder / "nowhere"))
    assert (status, "Expected a folder of tasks" in said) == (2, True), said


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{body}}\nSummary:",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
}


def damaged(folder, change):
    """A task whose third row is changed; where that is."""
    rows = list(documents(4))
    rows[2] = change(rows[2])
    data = written(folder, "bad", rows, **CHOICE)
    return f"{data}:3"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["body", "choices", "label"])
def test_a_row_without_a_key(tmp_path, key):
    where = damaged(tmp_path, lambda row: {k: v for k, v in row.items() if k != key})
    with pytest.raises(ValueError, match="without") as error:
        Tasks(["bad"], tmp_path)
    assert where in str(error.value)
    assert f"without ['{key}']" in str(error.value)
    assert "task 'bad'" in str(error.value)


@pytest.mark.slow
def test_a_row_that_is_no_json(tmp_path):
    where = damaged(tmp_path, lambda row: row)
    path = Path(where.rpartition(":")[0])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:-5], *lines[3:]]))
    with pytest.raises(ValueError, match="Expected JSON") as error:
        Tasks(["bad"], tmp_path)
    assert where in str(error.value)
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="Received: none"):
        Tasks(["bad"], tmp_path)


@pytest.mark.slow
def test_data_that_is_not_there(tmp_path):
    damaged(tmp_path, lambda row: row)
    (tmp_path / "bad.jsonl").unlink()
    with pytest.raises(ValueError, match=r"bad.*FileNotFoundError"):
        Tasks(["bad"], tmp_path)


@pytest.mark.slow
def test_an_empty_answer_is_named(capfd, tmp_path):
    rows = list(documents(4))
    rows[1]["choices"][2] = ""
    written(tmp_path, "bad", rows, **CHOICE, target_delimiter="")
    output = tmp_path / "out.json"
    more = options(tmp_path, "--output", str(output), tasks="bad")
    status, said = run(capfd, *more)
    assert (status, "document 1 of task 'bad'" in said) == (2, True), said
    assert not output.exists()


def test_without_lm_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "keras_encdec.evaluation.harness")
    with pytest.raises(ImportError, match=r'pip install "keras-encdec\[eval\]"'):
        keras_encdec.evaluation.LM  # noqa: B018
