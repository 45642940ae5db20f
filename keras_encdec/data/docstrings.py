"""The text that every machine has: docstrings of the installed packages.

Knows where docstrings lie, how to read them without importing anything, and
which of them are held out. Leaves tokens, windows and examples to
`keras_encdec.objectives` and to the preprocessors.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PACKAGES = ("numpy", "keras", "keras_hub", "jax", "scipy", "tensorflow", "stdlib")

# One file in 32 is held out, by a hash of its name: neighbours in a file share
# phrases, so a split by docstring would leak them.
HELD_OUT_IN = 32
MIN_CHARS = 80
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "__pycache__", "idlelib"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Docstring:
    """One docstring: the file it came from (package/relative/path) and its text."""

    file: str
    text: str

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.file.encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_IN == 0

    @property
    def summary_and_body(self) -> tuple[str, str] | None:
        """`(summary line, body)`, or None where the docstring is not of that form.

        A summary is one line of 20 to 120 characters that ends a sentence,
        followed by a blank line and a body of at least 200 characters.
        """
        summary, blank, body = self.text.partition("\n\n")
        summary, body = summary.strip(), body.strip()
        one_line = "\n" not in summary and 20 <= len(summary) <= 120
        if blank and one_line and summary.endswith(".") and len(body) >= 200:
            return summary, body
        return None


def load(
    packages: Iterable[str] = PACKAGES,
    progress: Callable[[list[Path]], Iterable[Path]] = iter,
) -> tuple[list[Docstring], list[Docstring]]:
    """Returns `(training, held-out)` docstrings, without duplicates, in a fixed order.

    Args:
        packages: names of installed packages; `"stdlib"` is Python's own.
            A package that is not installed is skipped.
        progress: wraps the list of files, to draw a bar over it.
    """
    roots = [root for name in packages if (root := _root(name))]
    files = {path: root for root in roots for path in _source_files(root)}
    seen: set[str] = set()
    split: tuple[list[Docstring], list[Docstring]] = ([], [])
    for path in progress(list(files)):
        root = files[path]
        name = f"{root.name}/{path.relative_to(root).as_posix()}"
        for text in _docstrings_of(path):
            if len(text) >= MIN_CHARS and text not in seen:
                seen.add(text)
                doc = Docstring(name, text)
                split[doc.held_out].append(doc)
    return split


@functools.cache
def _root(package: str) -> Path | None:
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _source_files(root: Path) -> list[Path]:
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)
        and not path.name.endswith("_test.py")
    ]


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and files of another version
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield inspect.cleandoc(text)
