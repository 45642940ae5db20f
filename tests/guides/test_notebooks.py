"""Notebooks hold what their guides hold, and run from top to bottom."""

import ast
import importlib.util

import nbclient
import nbformat
import pytest
from guide_runs import EXECUTED, GUIDES, ROOT, warnings_of_ours

SPEC = importlib.util.spec_from_file_location(
    "make_notebooks", ROOT / "scripts" / "make_notebooks.py"
)
make_notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_notebooks)
ADDRESS = "https://github.com/someone/something"


def code_of(source):
    """What Python runs of it, text left out."""
    body = [
        statement
        for statement in ast.parse(source).body
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
    ]
    return ast.dump(ast.Module(body, []))


def cells_of(made, kind, tagged=None):
    cells = [cell for cell in made.cells if cell.cell_type == kind]
    if tagged is None:
        return cells
    return [cell for cell in cells if (tagged in cell.metadata.get("tags", []))]


def test_cells_are_the_guide(guide):
    made = make_notebooks.notebook(guide, ADDRESS)
    nbformat.validate(made)
    assert (made.nbformat, made.nbformat_minor >= 5) == (4, True)
    code = [c.source for c in cells_of(made, "code") if not c.source.startswith("!")]
    assert code_of("\n".join(code)) == code_of(guide.read_text())
    texts = [
        node.value.value
        for node in ast.parse(guide.read_text()).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    shell = [c.source for c in cells_of(made, "code") if c.source.startswith("!")]
    assert len(texts) == len(shell) + len(cells_of(made, "markdown"))


def test_the_first_cells_open_and_install(guide):
    first, *_ = cells = make_notebooks.notebook(guide, ADDRESS).cells
    title = guide.read_text().splitlines()[1].removeprefix("Title: ")
    assert first.source.startswith(f"# {title}\n")
    there = f"someone/something/blob/notebooks/{guide.stem}.ipynb"
    assert f"(https://colab.research.google.com/github/{there})" in first.source
    assert f"src=https://github.com/{there})" in first.source
    (install,) = cells_of(make_notebooks.notebook(guide, ADDRESS), "code", "install")
    assert next(cell for cell in cells if cell.cell_type == "code") == install
    assert install.source.startswith('!pip install -q "keras-encdec[')


def test_links_lead_out_of_the_notebook(guide):
    for cell in cells_of(make_notebooks.notebook(guide, ADDRESS), "markdown"):
        assert "](../" not in cell.source
        assert ".py)" not in cell.source


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('"""\nTitle: A\n', "goes on to the end"),
        ('"""One line."""\n', "more than one line"),
        ('"""hidden\ntext\n"""\n', "Expected text or shell"),
    ],
)
def test_what_breaks_the_rules_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        make_notebooks.blocks(broken)


def test_a_header_is_keras_io_s(tmp_path):
    guide = tmp_path / "one.py"
    guide.write_text(GUIDES[0].read_text().replace("Author: ", "Writer: "))
    with pytest.raises(ValueError, match="Expected a header"):
        make_notebooks.notebook(guide, ADDRESS)


def test_all_of_them_are_written(tmp_path):
    make_notebooks.main([str(tmp_path)])
    assert sorted(p.stem for p in tmp_path.glob("*.ipynb")) == [p.stem for p in GUIDES]
    for path in tmp_path.iterdir():
        nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTED)
def test_a_notebook_executes(name, small, tmp_path):
    made = make_notebooks.notebook(ROOT / "guides" / f"{name}.py", ADDRESS)
    client = nbclient.NotebookClient(
        made,
        timeout=600,
        kernel_name="python3",
        skip_cells_with_tag=make_notebooks.INSTALL,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [output for cell in cells_of(made, "code") for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed
    assert not warnings_of_ours(printed, f"{name}.py")
