"""Kills calls that write, at random moments, and looks at what they leave; prints a line of JSON.

    python run_killed.py FOLDER 20 save export tokenize teacher documents outputs checkpoint

The process imports everything once and computes nothing: each call runs in a fork of it, which
says when the call begins and is killed after a random share of the time that a whole one takes.
"""

import collections
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
from safetensors.numpy import load_file

from keras_encdec.data import teacher as teachers
from keras_encdec.data import tokenize, tokenizing, write_teacher
from keras_encdec.models import EncDecReranker, EncDecSeq2SeqLMPreprocessor
from keras_encdec.models import reranker as rerankers
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import make_inputs, tiny_lm
from keras_encdec.training import Checkpoint

DOCS = catalog.embedded("gemma2_tiny_docs")
TEXTS = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 7) for i in range(600)]
FILE_LIMIT = 2000  # bytes: a disk that is full for all but small files


# Calls: each prepares, and returns what is to be killed. `number` tells one from the last.


def save(folder, number):
    lm = constant(number)
    return lambda: lm.save_to_preset(folder)


def export(folder, number):
    lm = constant(number)
    return lambda: lm.export_to_transformers(folder)


def constant(number):
    lm = tiny_lm()
    for weight in lm.weights:
        weight.assign(np.full(weight.shape, number))
    return lm


def tokens(folder, number):
    tokenizer = keras_hub.models.Tokenizer.from_preset(DOCS)
    tokenizing._TOGETHER = 8  # or all of them would be tokens before the first shard
    return lambda: finished(folder) or tokenize(TEXTS, tokenizer, folder, shard_size=1500)


def teacher(folder, number):
    lm = keras_hub.models.CausalLM.from_preset(DOCS)
    preprocessor = EncDecSeq2SeqLMPreprocessor(lm.preprocessor.tokenizer, 24, 20)
    text = tokenize(TEXTS[:60], lm.preprocessor.tokenizer)
    teachers._SHARD_BATCHES = 1
    return lambda: finished(folder) or write_teacher(folder, lm, text, preprocessor, k=4)


def documents(folder, number):
    model = EncDecReranker.from_preset(
        "gemma2_mini_docs", words=("True", "False"), encoder_sequence_length=16
    )
    rerankers._SHARD_BATCHES = 1
    return lambda: finished(folder) or model.encode_documents(TEXTS[:96], folder, batch_size=4)


def finished(folder):
    """Whether a kill came too late: a finished folder is not written again."""
    index = folder / "shards.json"
    return index.exists() and json.loads(index.read_text())["finished"] is not None


def outputs(folder, number):
    lm, inputs = tiny_lm(), make_inputs(range(1, 61), [2] * 60)
    lm.compile(sampler="greedy")
    folder.mkdir(exist_ok=True)
    path, options = folder / "outputs.jsonl", {"stop_token_ids": None, "batch_size": 2}
    return lambda: path.exists() or lm.generate(inputs, 24, path=path, **options)


def checkpoint(folder, number):
    """Every second time on a disk that is full."""
    lm, x = tiny_lm(), make_inputs(range(1, 31), range(30, 0, -1))
    lm.compile(keras.optimizers.AdamW(1e-2))
    y, weight = np.roll(x["decoder_token_ids"], -1, 1), x["decoder_padding_mask"] * 1.0
    options = {"sample_weight": weight, "batch_size": 2, "epochs": 4, "verbose": 0}

    def fit():
        if number % 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.RLIM_INFINITY))
        with contextlib.suppress(OSError) if number % 2 else contextlib.nullcontext():
            lm.fit(x, y, callbacks=[Checkpoint(folder, every=2)], **options)
            state = [keras.ops.convert_to_numpy(v) for v in lm.weights]
            digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in state))
            folder.with_suffix(".end").write_text(digest.hexdigest())

    return fit


# What is left.


def number_of(folder):
    """The one number that all weights of a saved or exported model are; None where none is."""
    if not folder.exists():
        return None
    found = set()

    def look(name, item):
        if isinstance(item, h5py.Dataset):
            found.update(np.unique(item))

    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            file.visititems(look)
    for path in folder.glob("*.safetensors"):
        for array in load_file(path).values():
            found.update(np.unique(array))
    (number,) = found
    return int(number)


def digests(folder):
    """Of each file, but locks."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# Kills.


def start(call, folder, number):
    """A fork that makes a call; returns when the call itself begins."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
        try:
            act = call(folder, number)
            os.write(write, b"!")
            act()
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return child


def finish(call, folder, number):
    """How long a whole call takes."""
    child, begun = start(call, folder, number), time.perf_counter()
    assert os.waitpid(child, 0)[1] == 0, call.__name__
    return time.perf_counter() - begun


def kill(call, folder, number, seconds):
    """Whether the call was killed before it ended."""
    child = start(call, folder, number)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def replaced(call, folder, kills, rng):
    """Kills over an old folder: it is the old one, or the new one."""
    longest, old = finish(call, folder, 0), 0
    left = collections.Counter()
    for number in range(1, kills + 1):
        kill(call, folder, number, rng.uniform(0, longest))
        found = number_of(folder)
        left["new" if found == number else "old" if found == old else "broken"] += 1
        old = found
    finish(call, folder, kills + 1)
    rest = [p.name for p in folder.parent.iterdir() if p.name.startswith(".incomplete")]
    return {**left, "same call": number_of(folder) == kills + 1, "rest": rest}


def resumed(call, folder, kills, rng):
    """Kills of a job that goes on: it ends with the files of one that nobody killed."""
    alone, left, number = folder.with_name(f"{folder.name}-alone"), collections.Counter(), 0
    longest, left["same"] = finish(call, alone, 0), 0
    while left["killed"] < kills:
        number += 1
        if kill(call, folder, number, rng.uniform(0, longest)):
            left["killed"] += 1
            left["went on"] += bool(digests(folder)) if folder.exists() else 0
        if number % 4 == 0 or left["killed"] == kills:
            finish(call, folder, 0)
            left["runs"] += 1
            left["same"] += ended(folder) == ended(alone)
            shutil.rmtree(folder)
            folder.with_suffix(".end").unlink(missing_ok=True)
    return dict(left)


def ended(folder):
    end = folder.with_suffix(".end")
    return end.read_text() if end.exists() else digests(folder)


CALLS = {
    "save": (save, replaced),
    "export": (export, replaced),
    "tokenize": (tokens, resumed),
    "teacher": (teacher, resumed),
    "documents": (documents, resumed),
    "outputs": (outputs, resumed),
    "checkpoint": (checkpoint, resumed),
}


def main(folder, kills, *names):
    rng, found = random.Random(0), {}
    for name in names:
        call, look = CALLS[name]
        (Path(folder) / name).mkdir(parents=True)
        found[name] = look(call, Path(folder) / name / "it", int(kills), rng)
        print(name, found[name], file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
