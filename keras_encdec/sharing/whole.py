"""Whether a folder is a preset or an export, whole and nothing else, before it is shared.

Knows what belongs to one and how its checksums are compared without building the model. Leaves
what is then done with it to `keras_encdec.sharing.upload`.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from keras_encdec import integrity, provenance
from keras_encdec.conversion.sources import SafetensorsSource
from keras_encdec.families import dialect, encoders, t5gemma
from keras_encdec.files import foreign_names, read_json
from keras_encdec.progress import track
from keras_encdec.sharing.agreement import check_agreement
from keras_encdec.sharing.configs import ENCODER, PAIR


def check_whole(folder: Path) -> bool:
    """Refuses a folder that should not be shared as a model.

    Args:
        folder: of `save_to_preset` or `export_to_transformers`.

    Returns:
        Whether it is an export, in the layout of transformers.

    Raises:
        ValueError: naming what is missing, damaged or not a model's.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"Expected a folder of save_to_preset or export_to_transformers. Received: {folder}, "
            "without a config.json."
        )
    config = read_json(folder / "config.json")
    is_export = config.get("model_type") == "t5gemma" or bool(encoders.from_transformers(config))
    if not is_export and config.get("registered_name") not in (PAIR, ENCODER):
        raise ValueError(
            "Expected a model of this package. Received: "
            f"{folder}, whose config.json is of {_kind(config)}. Upload it with "
            "keras_hub.upload_preset."
        )
    if not (folder / provenance.FILE).is_file():
        raise ValueError(
            f"Expected a record of how the model was made. Received: {folder}, without "
            f"{provenance.FILE}, of an earlier version. Load it and save it again."
        )
    if names := foreign_names(folder):
        raise ValueError(
            f"Expected a folder with nothing but a model in it. Received: {folder}, with {names}. "
            "Move these files: what is uploaded is public, or may become it."
        )
    if is_export:
        _check_export(folder, config)
    else:
        _check_preset(folder)
    return is_export


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes of each file by its name in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _kind(config: dict[str, Any]) -> str:
    return str(config.get("registered_name") or config.get("model_type") or "something else")


def _check_preset(folder: Path) -> None:
    check_agreement(str(folder))
    integrity.check_assets(folder)
    if not (folder / integrity.FILE).is_file():
        raise ValueError(
            f"Expected checksums in {folder}. Received: no {integrity.FILE}. Load it and save it "
            "again."
        )
    check_saved(folder)


def check_saved(folder: Path) -> None:
    """Compares the weights in the files of a preset with their checksums, where there are some.

    Raises:
        ValueError: naming a tensor that differs or is missing.
    """
    tensors = integrity.tensors_saved(folder)
    wanted = Counter(checksum for _, checksum in tensors.values())
    for checksum in track(integrity.in_files(folder), "Checking"):
        wanted[checksum] -= 1
    if missing := sum(count for count in wanted.values() if count > 0):
        name = next(n for n, (_, checksum) in tensors.items() if wanted[checksum] > 0)
        raise ValueError(
            f"Expected the weights that were saved in {folder}. Received: {missing} tensors that "
            f"differ or are missing, such as {name}. Save it again."
        )


def _check_export(folder: Path, config: dict[str, Any]) -> None:
    """Names and shapes; transformers keeps no checksums."""
    source = SafetensorsSource(lambda name: str(_existing(folder / name)), str(folder))
    if encoder := encoders.from_transformers(config):
        bound = dialect.bind(encoders.rules_of(config), encoder.weights())
        dropped: tuple[str, ...] = (*encoders.DROPPED, f"{encoders.HEAD}.*")
    else:
        pair = t5gemma.from_transformers(config)
        bound = dialect.bind(t5gemma.TRANSFORMERS, pair.weights())
        dropped = t5gemma.TRANSFORMERS_DROPPED
    dialect.check(bound, source.tensors(), dropped)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(path)
    return path
