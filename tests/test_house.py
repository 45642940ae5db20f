"""The house holds its plan: who imports whom, and rooms that fit in the head."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_encdec"

# What each room may import at the top of its files, itself and `check` aside.
MAY_IMPORT = {
    "spec": set(),
    "check": set(),
    "disk": set(),
    "files": {"disk", "warn"},
    "formats": {"check"},
    "provenance": {"files", "formats"},
    "integrity": {"files", "hosts", "provenance"},
    "progress": set(),
    "quiet": set(),
    "private": set(),
    "programs": set(),
    "accelerators": {"warn"},
    "hosts": {"spec", "private"},
    "warn": set(),
    "layout": {"spec"},
    "layers": {"spec", "layout", "private", "warn"},
    "objectives": {"warn"},
    "data": {"objectives", "disk", "files", "formats", "progress", "warn"},
    "training": {"spec", "layout", "private", "warn", "formats", "provenance"},
    "generation": {"spec", "disk", "hosts", "layout", "layers", "objectives", "data", "progress"},
    "models": {
        *("spec", "layout", "layers", "files", "objectives", "data", "training", "generation"),
        *("integrity", "formats", "provenance"),
        *("private", "hosts", "accelerators", "warn", "progress", "disk"),
    },
    "families": {"spec"},
    "conversion": {
        "spec",
        "layers",
        "files",
        "integrity",
        "families",
        "models",
        "progress",
        "layout",
        "private",
    },
    "sharing": {
        "accelerators",
        "spec",
        "hosts",
        "files",
        "integrity",
        "families",
        "models",
        "conversion",
        "layout",
        "private",
        *("formats", "provenance", "progress", "warn"),
    },
    "testing": {"spec", "models"},
    "evaluation": {
        *("spec", "disk", "files", "formats", "hosts", "provenance", "progress", "warn"),
        *("layers", "objectives", "data", "training", "generation", "models", "conversion"),
        "sharing",
    },
    "cli": {"", "spec", "files", "progress", "data", "models", "sharing", "evaluation"},
    "": {"quiet", "programs", "data", "generation", "models", "objectives", "sharing", "training"},
}
# One method hands over to a later room: `lm.export_to_transformers` is a name of the door; and
# the door opens `evaluation` when it is asked for.
LATE = {("models", "sharing"), ("", "evaluation")}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported_rooms(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] == "keras_encdec":
                rooms = name.split(".")[1:2]
                yield rooms[0] if rooms and rooms[0] in MAY_IMPORT else "", node.col_offset > 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    for imported, late in imported_rooms(path):
        allowed = imported in {room, "check"} or imported in MAY_IMPORT[room]
        assert allowed or (late and (room, imported) in LATE), f"{room} imports {imported}"


def test_every_room_is_in_the_plan():
    assert {room_of(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_fit_in_the_head(path):
    source = path.read_text()
    assert source.count("\n") <= 450
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 60, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_say_what_they_know(path):
    assert ast.get_docstring(ast.parse(path.read_text())) or not path.read_text().strip()


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.rglob("test_*.py")), ids=lambda p: p.name
)
def test_parameters_have_an_order(path):
    """Workers of one run must collect the same tests, and each orders a set by itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "parametrize":
            values = node.args[1]
            several = (ast.Set, ast.SetComp)
            made = isinstance(values, ast.BinOp) and any(
                isinstance(part, several) for part in ast.walk(values)
            )
            assert not isinstance(values, several), ast.unparse(values)
            assert not made, ast.unparse(values)


def test_what_is_left_to_the_hand_exists():
    tests = Path(__file__).parent
    for line in (tests / "by_hand.txt").read_text().splitlines():
        path, name = line.split("[")[0].split("::")
        assert f"def {name}(" in (tests.parent / path).read_text(), line


def test_no_two_files_of_tests_share_a_name():
    """One process of pytest imports them by their names alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names))
