"""Saves a pair with a limit on the size of a file, from hardly any to enough; prints JSON lines.

`python run_full_disk.py FOLDER`: for each way to save over an older one and each limit `[way,
share, number of the error or "saved", what stands there]`. HDF5 ends a process that cannot write
what it began, so a limit that is not seen before ends this one.
"""

import hashlib
import json
import resource
import sys
from pathlib import Path

import numpy as np

import keras_encdec
from keras_encdec.testing.models import tiny_lm

SHARES = (0.02, 0.2, 0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 1.3, 4.0)  # of the largest file


def ways(lm):
    """Name of a way to save, and the call."""
    return {
        "task": lm.save_to_preset,
        "shards": lambda path: lm.save_to_preset(path, max_shard_size=2e-4),
        "backbone": lm.backbone.save_to_preset,
        "export": lm.export_to_transformers,
        "export of shards": lambda path: lm.export_to_transformers(path, max_shard_size=2e-4),
        "lora": lambda path: lm.backbone.save_lora_weights(f"{path}.lora.h5"),
    }


def contents(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def attempt(save, path, limit):
    """What came of it: the error's number, or "saved"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save(path)
    except OSError as error:
        return error.errno
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return "saved"


def main(folder):
    lm = tiny_lm()
    lm.backbone.enable_lora(2)
    moved = next(v for v in lm.trainable_variables if "cross_attention" in v.path)
    first = moved.numpy() + 1
    for name, save in ways(lm).items():
        parent = folder / name
        parent.mkdir(parents=True)
        save(parent / "it")
        old, size = contents(parent), max(p.stat().st_size for p in parent.rglob("*"))
        before = moved.numpy()
        moved.assign(before + 1)
        for share in SHARES:
            found = attempt(save, parent / "it", int(share * size))
            now = contents(parent)
            left = "old" if now == old else "new" if list(now) == list(old) else "broken"
            assert np.array_equal(moved.numpy(), before + 1)
            print(json.dumps([name, share, found, left]), flush=True)
    lm = keras_encdec.from_preset(str(folder / "task" / "it"))
    loaded = next(v for v in lm.weights if v.path == moved.path)
    print(json.dumps(np.array_equal(loaded.numpy(), first)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
