"""The column of two devices, for `test_matrix.py`, which starts it with two simulated ones."""

import json
import sys
import tempfile
from pathlib import Path

import keras
import keras_hub
from matrix import GROUPS, LOSSES
from test_matrix import Lab, outcome, same

from keras_encdec.sharing import catalog


def fitted(lab, make, folder):
    return lab.fit(make())


def main(folder):
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    alone, expected = {loss: Lab(tokenizer, loss) for loss in ("auto", *LOSSES.values())}, {}
    for group, rows in GROUPS.items():
        first = next(iter(rows.values()))
        expected[group] = alone[LOSSES.get(group, "auto")].fit(first(folder, tokenizer))
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    labs = {loss: Lab(tokenizer, loss) for loss in alone}
    marks = {}
    for group, rows in GROUPS.items():
        lab, start = (by[LOSSES.get(group, "auto")] for by in (labs, alone))
        lab.start = start.start
        for number, (name, make) in enumerate(rows.items()):
            own = folder / f"{group}{number}"
            found = outcome(fitted, lab, lambda make=make: make(folder, tokenizer), own)
            wrong = "x" if isinstance(found, ValueError) else "?"
            marks[f"{group}/{name}"] = "=" if same(found, expected[group]) else wrong
    print(json.dumps(marks))


if __name__ == "__main__":
    keras.config.disable_interactive_logging()
    main(Path(tempfile.mkdtemp(dir=sys.argv[1])))
