"""Makes notebooks of guides, for Colab and Kaggle.

    pip install nbformat
    python scripts/make_notebooks.py build/notebooks
    python scripts/make_notebooks.py build/notebooks guides/generation.py

The rules are those of keras.io's tutobooks: a header, text in triple-quoted blocks, code
between them, and blocks that begin with \"\"\"shell for a command line. Notebooks are built,
never committed to the main branch. Their badges open them from the branch `notebooks` of the
repository, where a release puts them; its address is `[project.urls] Repository` of
pyproject.toml, and PLACEHOLDER as long as there is none.
"""

import argparse
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "https://github.com/OWNER/keras-encdec"
BRANCH = "notebooks"

FIELDS = ("Title", "Author", "Date created", "Last modified", "Description", "Accelerator")
INSTALL = "install"  # the tag of the cell that installs, for who runs notebooks without it
QUOTES = '"' * 3


class Block(NamedTuple):
    """A stretch of a guide: `"text"`, `"shell"` or `"code"`, and its lines."""

    kind: str
    source: str


def blocks(guide: str) -> list[Block]:
    """Cuts a guide into its blocks, the header first.

    Raises:
        ValueError: if a block has no end, an unknown kind, or begins and ends in one line.
    """
    found: list[Block] = []
    kind, lines = "code", []
    for number, line in enumerate(guide.splitlines(), start=1):
        if not line.startswith(QUOTES):
            lines.append(line)
            continue
        if line.count(QUOTES) > 1:
            raise ValueError(f"Expected text of more than one line. Received line {number}: {line}")
        found.append(Block(kind, "\n".join(lines).strip("\n")))
        opens = kind == "code"
        kind, lines = _kind(line, number) if opens else "code", []
    if kind != "code":
        raise ValueError("Expected text that ends. Received: a block that goes on to the end.")
    found.append(Block(kind, "\n".join(lines).strip("\n")))
    return [block for block in found if block.source]


def _kind(line: str, number: int) -> str:
    tag = line.removeprefix(QUOTES)
    if tag not in ("", "shell"):
        raise ValueError(f"Expected text or shell. Received line {number}: {line}")
    return tag or "text"


def header(block: Block) -> dict[str, str]:
    """The fields of a guide's first block.

    Raises:
        ValueError: if they are not keras.io's, in their order.
    """
    fields = dict(line.split(": ", 1) for line in block.source.splitlines())
    if block.kind != "text" or tuple(fields) != FIELDS:
        raise ValueError(f"Expected a header of {FIELDS}. Received: {block.source}")
    description = fields["Description"]
    if len(description) > 100 or not description.endswith("."):
        raise ValueError(f"Expected a sentence of at most 100 characters. Received: {description}")
    return fields


def repository() -> str:
    """The address of the repository, without a slash at its end."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project.get("urls", {}).get("Repository", PLACEHOLDER).rstrip("/")


def notebook(path: Path, address: str) -> nbformat.NotebookNode:
    """A guide as a notebook without outputs.

    Args:
        path: of the guide.
        address: of the repository, as `https://github.com/owner/name`.

    Raises:
        ValueError: if the guide breaks the rules.
    """
    first, *rest = blocks(path.read_text())
    fields = header(first)
    cells = [_markdown(_front(fields, path.stem, address))]
    for block in rest:
        if block.kind == "text":
            cells.append(_markdown(_with_addresses(block.source, address)))
        else:
            cells.append(_code(block))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    shown = {"name": path.stem, "provenance": [], "toc_visible": True}
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "accelerator": fields["Accelerator"],
        "colab": shown,
    }
    made = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(made)
    return made


def _front(fields: dict[str, str], name: str, address: str) -> str:
    """The first cell: title, badges and what the header says."""
    there = address.removeprefix("https://github.com/")
    colab = f"{_colab(there)}/{name}.ipynb"
    kaggle = f"https://kaggle.com/kernels/welcome?src={address}/blob/{BRANCH}/{name}.ipynb"
    about = [f"**{field}:** {fields[field]}<br>" for field in FIELDS[1:-1]]
    return "\n".join(
        [
            f"# {fields['Title']}\n",
            f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})",
            f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})\n",
            *about,
        ]
    )


def _colab(there: str) -> str:
    return f"https://colab.research.google.com/github/{there}/blob/{BRANCH}"


def _with_addresses(text: str, address: str) -> str:
    """Links to other guides and files of the repository, which a notebook has no paths to."""
    there = address.removeprefix("https://github.com/")
    text = re.sub(r"\]\((\w+)\.py\)", rf"]({_colab(there)}/\1.ipynb)", text)
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({address}/blob/main/\1)", text)


def _markdown(source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def _code(block: Block) -> nbformat.NotebookNode:
    if block.kind == "code":
        return nbformat.v4.new_code_cell(block.source)
    cell = nbformat.v4.new_code_cell("\n".join(f"!{line}" for line in block.source.splitlines()))
    if block.source.startswith("pip install"):
        cell["metadata"]["tags"] = [INSTALL]
    return cell


def main(argv: list[str] | None = None) -> None:
    """Writes a notebook for each guide."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where notebooks are written")
    parser.add_argument("guides", type=Path, nargs="*", help="by default all")
    options = parser.parse_args(argv)
    address = repository()
    if address == PLACEHOLDER:
        print(f"badges say {PLACEHOLDER}: pyproject.toml has no [project.urls] Repository")
    options.folder.mkdir(parents=True, exist_ok=True)
    for path in options.guides or sorted((ROOT / "guides").glob("*.py")):
        made = options.folder / f"{path.stem}.ipynb"
        nbformat.write(notebook(path, address), made)
        print(made)


if __name__ == "__main__":
    main()
