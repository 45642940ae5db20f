"""The model card: README.md of a preset, part of it ours and all else its author's.

Knows front matter, the two marks that our part stands between, and that nothing outside of
them is ever written over. Leaves what is said to `keras_encdec.sharing.card_text`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from keras_encdec import provenance
from keras_encdec.files import read_json
from keras_encdec.sharing import card_text, licenses
from keras_encdec.sharing.configs import spec_of_config
from keras_encdec.warn import warn

FILE, NOTICE = "README.md", "NOTICE"
BEGIN = (
    "<!-- keras_encdec: begin. What stands between here and the end is written anew at each save; "
    "all else is yours. -->"
)
END = "<!-- keras_encdec: end -->"
_BEGIN = re.compile(r"<!-- keras_encdec: begin.*?-->", re.DOTALL)
_FRONT = re.compile(
    r"\A(\ufeff?---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE
)

_RELATIONS = "adapter", "merge", "quantized", "finetune"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_FIELDS: Mapping[str, Any] = {
    "license": lambda value: value in licenses.KNOWN,
    "base_model": lambda value: all(
        isinstance(v, str) and _NAME.fullmatch(v) for v in _list(value)
    ),
    "base_model_relation": lambda value: value in _RELATIONS,
    "language": lambda value: all(
        isinstance(v, str) and _LANGUAGE.fullmatch(v) for v in _list(value)
    ),
    "tags": lambda value: all(isinstance(v, str) and v for v in _list(value)),
    "library_name": lambda value: isinstance(value, str),
    "pipeline_tag": lambda value: isinstance(value, str),
}


def write_card(folder: Path, final: Path) -> None:
    """Writes README.md of a preset or an export, and what sources' terms want in NOTICE.

    A card that stands at `final` keeps its author's text: its front matter and all that is
    outside of the marks. One without marks is its author's alone.

    Args:
        folder: whose config.json and provenance.json are written already.
        final: the name that it will have, where a card may stand.
    """
    old = _read(final / FILE)
    if isinstance(old, bytes):
        (folder / FILE).write_bytes(old)
    else:
        if old is not None:
            _warn_of_front_matter(old, final / FILE)
        put(folder, _with_part(folder, old, final.name, f"./{final.name}", final / FILE))
    _write_notice(folder, final, licenses.notices(_record(folder)["sources"]))


def written(folder: Path, handle: str, there: str | None) -> str:
    """The card of a folder as it will stand on a hub.

    Args:
        folder: a preset or an export.
        handle: what it will be loaded by.
        there: the card that stands on the hub now, or None. It is taken in place of the
            folder's where that is as it was written, without an edit.

    """
    own: Any = _read(folder / FILE)
    title = handle.rpartition("/")[2]
    if there is not None and (own is None or _is_unedited(folder, own)):
        own = there
    return _with_part(folder, own, title, handle, folder / FILE)


def fields_of(folder: Path) -> dict[str, Any]:
    """The front matter of the card in a folder; none where there is no card.

    Raises:
        ValueError: as `front_matter`, or if it is not in UTF-8.
    """
    text = _read(folder / FILE)
    if isinstance(text, bytes):
        raise ValueError(f"Expected a card in UTF-8. Received: {folder / FILE}.")
    return front_matter(text or "", folder / FILE)


def put(folder: Path, text: str) -> None:
    """Writes the card of a folder, line ends as they are."""
    (folder / FILE).write_bytes(text.encode())


def front_matter(text: str, where: Any) -> dict[str, Any]:
    """The fields at the top of a card; none where it has no front matter.

    Args:
        text: the card.
        where: its file, for messages.

    Raises:
        ValueError: naming the line that is no YAML, or the field that the hubs would not know.
    """
    found = _FRONT.match(text)
    if found is None:
        if text.lstrip("\ufeff").startswith("---"):
            raise _broken(where, 1, "front matter that begins with --- and does not end with it")
        return {}
    try:
        fields = yaml.safe_load(found[2])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = 2 + (mark.line if mark is not None else 0)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise _broken(where, line, problem) from error
    if not isinstance(fields, dict):
        if fields is None:
            return {}
        raise _broken(where, 2, f"{type(fields).__name__} instead of fields such as license: mit")
    for name, knows in _FIELDS.items():
        if fields.get(name) is not None and not knows(fields[name]):
            line = next((i for i, t in enumerate(text.splitlines(), 1) if t.startswith(name)), 2)
            raise _broken(where, line, f"{name}: {fields[name]!r}, which the hubs do not know")
    return fields


def with_field(text: str, name: str, value: str) -> str:
    """A card with a field of its front matter set, and no other character changed."""
    found = _FRONT.match(text)
    end = "\r\n" if "\r\n" in text else "\n"
    if found is None:
        return f"---{end}{name}: {value}{end}---{end}{end}{text}"
    of_field = re.compile(rf"^{name}:.*\r?\n(?:[ \t-].*\r?\n)*", re.MULTILINE)
    inside, count = of_field.subn(lambda _: f"{name}: {value}{end}", found[2], 1)
    inside = inside if count else f"{inside}{name}: {value}{end}"
    return found[1] + inside + text[found.start(3) :]


def _with_part(folder: Path, old: str | None, title: str, load: str, where: Path) -> str:
    """A card, new or old, that says of a folder's model what is true now."""
    record, config = _record(folder), read_json(folder / "config.json")
    is_export = "model_type" in config
    kind, spec = kind_of(folder, config), spec_of_config(config)
    assert spec is not None  # a model of ours or an export
    part = card_text.marked_part(record, spec, load, is_export, kind)
    if old is not None:
        return _renewed(old, part, where)
    return _new(record, title, part, is_export, kind)


def _is_unedited(folder: Path, text: str) -> bool:
    """Whether a card is as it was written, but for its title and licence."""
    config = read_json(folder / "config.json")
    new = _new(_record(folder), "", "", "model_type" in config, kind_of(folder, config))

    def bare(text: str) -> str:
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        return re.sub(r"^(license:|# ).*\n", "", before, flags=re.MULTILINE) + after

    return bare(text) == bare(new)


def _new(record: Mapping[str, Any], title: str, part: str, is_export: bool, kind: str) -> str:
    fields = card_text.front_matter(record, is_export, kind)
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    blanks = "\n".join(f"\n## {name}\n\n{card_text.BLANK}" for name in card_text.BLANKS)
    return f"---\n{front}---\n\n# {title}\n\n{BEGIN}\n\n{part}\n\n{END}\n{blanks}\n"


def _renewed(old: str, part: str, where: Path) -> str:
    """A card with our part written anew; as it is where the marks are not two."""
    begins, ends = list(_BEGIN.finditer(old)), list(re.finditer(re.escape(END), old))
    if not begins and not ends:
        return old
    if len(begins) != 1 or len(ends) != 1 or ends[0].start() < begins[0].end():
        warn(
            f"The card {where} was kept as it is: it has {len(begins)} marks 'keras_encdec: begin' "
            f"and {len(ends)} 'keras_encdec: end', in place of one of each, in this order."
        )
        return old
    text = f"\n\n{part}\n\n"
    if "\r\n" in old:
        text = text.replace("\n", "\r\n")
    return old[: begins[0].end()] + text + old[ends[0].start() :]


def _read(path: Path) -> str | bytes | None:
    """A card; as bytes where it is not UTF-8."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        warn(f"The card {path} was kept as it is: it is not in UTF-8.")
        return data


def _warn_of_front_matter(text: str, where: Path) -> None:
    try:
        front_matter(text, where)
    except ValueError as error:
        warn(f"{error} Your text was kept.")


def _write_notice(folder: Path, final: Path, sentences: list[str]) -> None:
    """Adds what the terms of sources want to what stands there."""
    path = final / NOTICE
    text = path.read_text() if path.exists() else ""
    missing = [sentence for sentence in sentences if sentence not in text]
    if text or missing:
        (folder / NOTICE).write_text(text + "".join(f"{sentence}\n" for sentence in missing))


def _record(folder: Path) -> dict[str, Any]:
    return read_json(folder / provenance.FILE)


def kind_of(folder: Path, config: Mapping[str, Any]) -> str:
    """The class of the task in a folder, or of its backbone; of an export the one there."""
    if (folder / "modules.json").exists():
        return "SentenceTransformer"
    try:
        return str(read_json(folder / "task.json").get("class_name"))
    except FileNotFoundError:
        return str(config.get("class_name") or config.get("architectures", [""])[0])


def _broken(where: Any, line: int, problem: str) -> ValueError:
    return ValueError(
        f"Expected a card whose front matter the hubs can read. Received: line {line} of {where}: "
        f"{problem}."
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
