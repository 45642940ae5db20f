"""Whether the files of a preset say the same.

KerasHub writes the config of a backbone twice, in config.json and inside task.json, and those
of preprocessor and tokenizer likewise, and reads one of the two. Where they differ, files of
several models were mixed, or one was edited that nobody would read.
"""

import contextlib
from typing import Any

from keras_encdec import check
from keras_encdec.files import read_json
from keras_encdec.sharing.fetch import file_of

_SAYS = "module", "class_name", "registered_name", "config"


def check_agreement(preset: str) -> None:
    """Compares what is said twice in a preset.

    Args:
        preset: folder or handle.

    Raises:
        ValueError: naming the file that is damaged, missing, or says something else.
    """
    task = _read(preset, "task.json")
    if task is None:
        return  # of a backbone alone
    parts = task.get("config")
    preprocessor = parts.get("preprocessor") if isinstance(parts, dict) else None
    if not isinstance(parts, dict) or not isinstance(parts.get("backbone"), dict):
        raise ValueError(
            f"Expected a task with its backbone in task.json of {preset!r}. Received: "
            f"{sorted(task)}. Download or save it again."
        )
    _compare(preset, "config.json", parts["backbone"])
    if preprocessor is not None:
        _compare(preset, "preprocessor.json", preprocessor)
        sides = preprocessor.get("config", {})
        for name in ("tokenizer", "encoder_tokenizer"):
            if sides.get(name) is not None:
                _compare(preset, f"{name}.json", sides[name])


def _compare(preset: str, name: str, said: dict[str, Any]) -> None:
    found = _read(preset, name)
    for key in _SAYS:
        ours = None if found is None else found.get(key)
        if ours != said.get(key):
            where, *both = check.difference(said.get(key), ours, key)
            one, other = (repr(str(value)[:80]) for value in both)
            raise ValueError(
                f"Expected task.json and {name} of {preset!r} to say the same. Received: another "
                f"{where}: {one} and {other}. Files of several presets were "
                "mixed, or one was edited or lost: download or save it again."
            )


def _read(preset: str, name: str) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError):
        return read_json(file_of(preset, name))
    return None
