"""Writes a pair in the released layouts of T5Gemma and T5Gemma 2, which transformers loads.

Knows the files of such a folder. Leaves names and layouts to
`keras_encdec.families.pairs`.
"""

import errno
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from keras_encdec import check, hosts
from keras_encdec.conversion.execute import export
from keras_encdec.families import pairs
from keras_encdec.files import atomic_folder, final_of, write_json
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.sharing.card import write_card
from keras_encdec.sharing.tokenizers import check_writable, write_tokenizer
from keras_encdec.spec import Shape

_GB = 1024**3
_NAME = 4096  # bytes of a file that name and describe a tensor, at most


@hosts.by_first
def export_to_transformers(
    lm: EncDecSeq2SeqLM, path: str | os.PathLike, max_shard_size: float = 5.0
) -> None:
    """Writes config, tensors and tokenizer of a task to a folder, whole or not at all.

    Tensors are what the model computes with: LoRA is merged, and quantised weights are
    written as floats, scale times codes. That int8 also rounds activations the layout cannot
    say, so there the export is a little more exact than the model.

    Args:
        lm: `EncDecSeq2SeqLM`.
        path: the folder; new, empty, or a preset to replace.
        max_shard_size: of one file, in GiB; one tensor is never cut.

    Raises:
        ValueError: naming the field that the layout cannot hold, or a layer whose
            quantisation is not known.
        OSError: if there is no room or no right to write there.
    """
    max_shard_size = check.real("max_shard_size", max_shard_size, above=0)
    backbone = lm.backbone
    if lm.preprocessor is not None and lm.preprocessor.has_two_vocabularies:
        raise ValueError(
            "Expected one tokenizer, all that a layout of transformers holds. Received: an "
            "encoder_tokenizer. save_to_preset keeps any pair."
        )
    layout = pairs.layout_of(backbone.spec, backbone.variable_dtype)
    if lm.preprocessor is not None:
        check_writable(lm.preprocessor.tokenizer)
    shapes = {**backbone.spec.weights(), **layout.blank}
    size, largest = bytes_of(shapes, backbone.variable_dtype, max_shard_size)
    with atomic_folder(path, size, largest=largest) as folder:
        write_json(folder / "config.json", layout.config)
        write_json(folder / "generation_config.json", _generation_config(lm.preprocessor))
        shards = Shards(folder, max_shard_size)
        export(backbone, layout.rules, shards.add)
        for name, shape in layout.blank.items():
            shards.add(name, np.zeros(shape, backbone.variable_dtype))
        shards.close()
        if lm.preprocessor is not None:
            template = lm.preprocessor.chat_template
            turns = {} if template is None else {"chat_template": template}
            write_tokenizer(folder, lm.preprocessor.tokenizer, **turns)
        backbone.record.write(folder, *backbone.merged_in_files(), {"what": "exported"})
        write_card(folder, final_of(path))


def bytes_of(weights: Mapping[str, Shape], dtype: str, max_shard_size: float) -> tuple[int, int]:
    """Of the files of some weights, at most: of all of them, and of the largest."""
    itemsize = np.dtype(dtype).itemsize
    sizes = [math.prod(shape) * itemsize + _NAME for shape in weights.values()]
    limit = int(max_shard_size * _GB) + _NAME * len(sizes)
    return sum(sizes), min(sum(sizes), max(limit, *sizes))


class Shards:
    """Safetensors files of limited size, and their index where there are several.

    Args:
        folder: that they are written to.
        max_shard_size: of one file, in GiB; one tensor is never cut.
    """

    def __init__(self, folder: Path, max_shard_size: float):
        self._folder, self._max_bytes = folder, int(max_shard_size * _GB)
        self._pending: dict[str, np.ndarray] = {}
        self._written: list[list[str]] = []
        self._total = 0

    def add(self, name: str, array: np.ndarray) -> None:
        pending = sum(a.nbytes for a in self._pending.values())
        if self._pending and pending + array.nbytes > self._max_bytes:
            self._flush()
        self._pending[name] = array
        self._total += array.nbytes

    def close(self) -> None:
        self._flush()
        count = len(self._written)
        if count == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for i, names in enumerate(self._written):
            file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            self._part(i).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        write_json(self._folder / "model.safetensors.index.json", index)

    def _flush(self) -> None:
        path = self._part(len(self._written))
        try:
            save_file(self._pending, path, metadata={"format": "pt"})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(
                int(number[1]) if number else errno.EIO,
                f"Expected to write {path.name} of {path.parent}. Received: {error}. Nothing was "
                "replaced: make room, or choose another folder",
            ) from error
        self._written.append(list(self._pending))
        self._pending = {}

    def _part(self, i: int) -> Path:
        return self._folder / f"part-{i}"


def _generation_config(preprocessor: Any) -> dict[str, Any]:
    # Instruction-tuned releases stop at a list of ids, the others at <eos> alone.
    stops = list(preprocessor.stop_token_ids) if preprocessor and preprocessor.chat else 1
    return {
        "bos_token_id": 2,
        "decoder_start_token_id": 2,
        "eos_token_id": stops,
        "pad_token_id": 0,
    }
