"""Every kind of data through everything that takes data: the same numbers, or one clear error.

`python -m pytest tests/journeys/test_matrix.py -s` prints the table.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from matrix import ARRAY_ROWS, BATCH, GROUPS, LENGTH, LOSSES, PAIRS, TEXTS, Given, arrays

from keras_encdec import training
from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.testing.specs import tiny_pair
from keras_encdec.testing.stops import StopAfter, Stopped

TABLE: dict[tuple[str, str], dict[str, str]] = {}
LEGEND = "= as the first row, o as it without shuffling, x refused with what to do instead"


class Lab:
    """One compiled model for all cells of a loss: each begins with the same weights."""

    def __init__(self, tokenizer, loss="auto"):
        keras.utils.set_random_seed(0)
        pair = tiny_pair()
        sides = [dataclasses.replace(s, vocabulary_size=4096) for s in (pair.encoder, pair.decoder)]
        preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, LENGTH, LENGTH, objective="ul2")
        self.lm = EncDecSeq2SeqLM(EncDecBackbone(*sides), preprocessor)
        self.start = [np.array(w) for w in self.lm.weights]
        self.loss = loss if loss == "auto" else getattr(training, loss)()
        self.compile()

    def compile(self, **options):
        self.lm.compile(keras.optimizers.SGD(0.3), self.loss, sampler="greedy", **options)

    def reset(self):
        for weight, value in zip(self.lm.weights, self.start, strict=True):
            weight.assign(value)
        self.lm.optimizer.iterations.assign(0)
        return self.lm

    def run(self, given, **kwargs):
        """The history of `fit`."""
        options = {"verbose": 0, "batch_size": BATCH, "shuffle": given.shuffle, **kwargs}
        lm = self.reset()
        return lm.fit(given.x, given.y, sample_weight=given.weight, **options).history

    def fit(self, given, **kwargs):
        """The weights after `fit`."""
        self.run(given, **kwargs)
        return [np.array(w) for w in self.lm.weights]

    def val_loss(self, given, **kwargs):
        return self.run(given, **kwargs)["val_loss"]


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


@pytest.fixture(scope="module")
def lab_of(tokenizer):
    """The lab of a group."""
    labs = functools.cache(functools.partial(Lab, tokenizer))
    return lambda group: labs(LOSSES.get(group, "auto"))


def resumed(lab, make, folder):
    """Stopped in the second epoch, and the same call again."""
    callbacks = [training.Checkpoint(folder / "run", every=1), StopAfter(2)]
    with pytest.raises(Stopped):
        lab.fit(make(), callbacks=callbacks)
    return lab.fit(make(), callbacks=[training.Checkpoint(folder / "run")])


def packed(lab, given):
    lab.lm.preprocessor.packing = True
    try:
        return lab.fit(given, epochs=2)
    finally:
        lab.lm.preprocessor.packing = False


def evaluated(lab, given):
    """Without the perplexity: 1e-6 of a loss of 9 is 1e-5 of that."""
    options = {"batch_size": 3, "verbose": 0, "return_dict": True}
    found = lab.reset().evaluate(given.x, given.y, sample_weight=given.weight, **options)
    return [value for name, value in found.items() if name != "perplexity"]


def weighted(given):
    return dataclasses.replace(given, weight=np.linspace(0.5, 2, 10))


def as_validation(given):
    return given.x if given.y is None else (given.x, given.y, given.weight)


# Each column: a function of (lab, make, folder), where `make()` gives the row's data anew.
COLUMNS = {
    "fit": lambda lab, make, _: lab.fit(make()),
    "epochs=2": lambda lab, make, _: lab.fit(make(), epochs=2),
    "shuffle=False": lambda lab, make, _: lab.fit(make(), shuffle=False),
    "steps_per_epoch": lambda lab, make, _: lab.fit(make(), steps_per_epoch=1, epochs=3),
    "sample_weight": lambda lab, make, _: lab.fit(weighted(make())),
    "class_weight": lambda lab, make, _: lab.fit(make(), class_weight={5: 0.5, 300: 3.0}),
    "validation: texts": lambda lab, make, _: lab.val_loss(make(), validation_data=TEXTS[:5]),
    "validation: pairs": lambda lab, make, _: lab.val_loss(make(), validation_data=PAIRS),
    "validation: (x, y)": lambda lab, make, _: lab.val_loss(
        make(), validation_data=tuple(PAIRS.values())
    ),
    "validation: arrays": lambda lab, make, _: lab.val_loss(make(), validation_data=arrays()),
    "as validation": lambda lab, make, _: lab.val_loss(
        ARRAY_ROWS["arrays"](), validation_data=as_validation(make())
    ),
    "validation_split": lambda lab, make, _: lab.val_loss(make(), validation_split=0.3),
    "Checkpoint": resumed,
    "packing": lambda lab, make, _: packed(lab, make()),
    "evaluate": lambda lab, make, _: evaluated(lab, make()),
    "predict": lambda lab, make, _: lab.reset().predict(make().x, batch_size=BATCH, verbose=0),
    "generate": lambda lab, make, _: lab.reset().generate(make().x, 20),
    "score": lambda lab, make, _: lab.reset().score(make().x).total,
    "encode": lambda lab, make, _: np.asarray(lab.reset().encode(make().x).token_ids),
}
QUICK = ("texts", "fit"), ("texts", "generate")
LONG = ["epochs=2", "shuffle=False", "steps_per_epoch", "class_weight", "Checkpoint"]
LONG += ["validation_split", "validation: pairs", "validation: (x, y)", "validation: arrays"]
LONG += ["validation: texts", "as validation", "accumulation", "two devices"]
OF_X_ALONE = ("predict", "generate", "score", "encode")


def same(found, expected):
    """Whether they are equal to 1e-6."""
    flat = keras.tree.flatten(found), keras.tree.flatten(expected)
    if len(flat[0]) != len(flat[1]):
        return False
    for one, other in zip(*flat, strict=True):
        if isinstance(other, str):
            if one != other:
                return False
        elif np.shape(one) != np.shape(other) or not np.allclose(one, other, rtol=1e-6, atol=1e-6):
            return False
    return True


class References:
    """What the cells of a column are to give."""

    def __init__(self, do, lab, make, folder):
        self.do, self.lab, self.make, self.folder = do, lab, make, folder
        self.found = {}

    def __call__(self, name):
        makes = {
            "first": self.make,
            "in order": lambda: dataclasses.replace(self.make(), shuffle=False),
            "texts": lambda: Given(TEXTS),
        }
        if name not in self.found:
            self.found[name] = outcome(self.do, self.lab, makes[name], self.folder / name)
        return self.found[name]


def outcome(do, lab, make, folder):
    """What a cell gives: its result, or the error that refuses it."""
    folder.mkdir(parents=True)
    try:
        return do(lab, make, folder)
    except ValueError as error:
        if not re.search(r"(?s)Expected .*Received", str(error)):
            raise
        return error


def mark(found, reference, given, group, column):
    if isinstance(found, ValueError):
        return "x"
    alone = group == "pairs" and given.y is not None and column in OF_X_ALONE
    if same(found, reference("texts" if alone else "first")):
        return "="
    if column == "steps_per_epoch" and same(found, reference("in order")):
        return "o"
    return "?"


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    columns = [*COLUMNS, "accumulation", "two devices"]
    for group, rows in GROUPS.items():
        print(f"\n\n{group:27s}" + "".join(f"{i:>3}" for i in range(len(columns))))
        for name in rows:
            marks = TABLE.get((group, name), {})
            print(f"{name:27s}" + "".join(f"{marks.get(c, ''):>3}" for c in columns))
    print(f"\n{LEGEND}. Columns:")
    print(", ".join(f"{i} {name}" for i, name in enumerate(columns)))


def pytest_generate_tests(metafunc):
    """All cells where this file is asked for by name; else most of them are slow or long ones."""
    asked = any("test_matrix" in str(argument) for argument in metafunc.config.args)

    def cell(*names):
        far = pytest.mark.long if names[-1] in LONG else pytest.mark.slow
        return pytest.param(*names, marks=[] if asked or names in QUICK else far)

    if "column" in metafunc.fixturenames:
        cells = [cell(group, column) for group in GROUPS for column in COLUMNS]
        metafunc.parametrize(("group", "column"), cells)
    if "whole_column" in metafunc.fixturenames:
        metafunc.parametrize("whole_column", [cell("accumulation"), cell("two devices")])


def test_cells(lab_of, tokenizer, tmp_path, group, column):
    rows, do, lab = GROUPS[group], COLUMNS[column], lab_of(group)
    first = next(iter(rows.values()))
    reference = References(do, lab, lambda: first(tmp_path, tokenizer), tmp_path / "references")
    for number, (name, make) in enumerate(rows.items()):
        folder = tmp_path / str(number)

        def anew(make=make, folder=folder):
            return make(folder, tokenizer)

        found = outcome(do, lab, anew, folder)
        TABLE.setdefault((group, name), {})[column] = mark(found, reference, anew(), group, column)
        if isinstance(found, ValueError):
            print(group, "|", column, "|", name, "|", str(found)[:200])
    wrong = [name for name in rows if TABLE[group, name][column] == "?"]
    assert not wrong


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="on JAX only")
def test_columns(tokenizer, tmp_path, whole_column):
    """What one `compile` or one process of its own holds, of all rows: as `fit` alone."""
    marks = {"accumulation": in_parts, "two devices": on_devices}[whole_column](tokenizer, tmp_path)
    for (group, name), found in marks.items():
        TABLE.setdefault((group, name), {})[whole_column] = found
    assert set(marks.values()) == {"="}


def in_parts(tokenizer, folder):
    marks = {}
    for group, rows in GROUPS.items():
        plain, lab = (Lab(tokenizer, LOSSES.get(group, "auto")) for _ in range(2))
        lab.compile(gradient_accumulation_steps=2)
        expected = plain.fit(next(iter(rows.values()))(folder, tokenizer))
        for name, make in rows.items():
            same_as_whole = same(lab.fit(make(folder, tokenizer)), expected)
            marks[group, name] = "=" if same_as_whole else "?"
    return marks


def on_devices(tokenizer, folder):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    script = Path(__file__).with_name("matrix_on_devices.py")
    command = [sys.executable, "-W", "ignore", script, folder]
    run = subprocess.run(
        command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    marks = json.loads(run.stdout.splitlines()[-1])
    return {tuple(key.split("/", 1)): found for key, found in marks.items()}
