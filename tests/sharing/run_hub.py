"""Calls of the package's, one after another, in a process whose clients look at loopback.

`python run_hub.py CASES`: CASES is JSON, a list of `[name, call, arguments]`. Prints a line of
JSON for each: what was printed, and the warnings and the error that came.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import time
import warnings

import kagglesdk.kaggle_env

if url := os.environ.get("KAGGLE_ON_LOOPBACK"):  # kagglesdk has no variable for it
    kagglesdk.kaggle_env._env_to_endpoint[kagglesdk.kaggle_env.KaggleEnv.LOCAL] = url

import keras_encdec
from keras_encdec.sharing.catalog import embedded

time.sleep = lambda seconds: None  # between tries


def load(name, **options):
    lm = keras_encdec.from_preset(name, **options)
    return {"parameters": lm.backbone.count_params(), "history": lm.provenance["history"]}


def save(folder, sources=None):
    lm = keras_encdec.from_preset("gemma2_tiny_mini")
    for side, facts in (sources or {}).items():
        lm.backbone.record.sources[side].update(facts)
    lm.save_to_preset(folder)
    lm.export_to_transformers(f"{folder}-exported")


def upload(folder, handle, **options):
    keras_encdec.upload_preset(folder, handle, **options)


def lm_upload(preset, handle, method="upload", **options):
    getattr(keras_encdec.from_preset(preset), method)(handle, **options)


def adapt(name):
    lm = keras_encdec.adapt(name)
    return lm.provenance["sources"]


def plan(name):
    from keras_encdec.sharing.load import plan as planned

    return planned(name).summary()


def fetch(handle, folder):
    """All of a model by the hub's own client, copied to a folder."""
    import huggingface_hub
    import kagglehub

    if handle.startswith("hf://"):
        found = huggingface_hub.snapshot_download(handle.removeprefix("hf://"))
    else:
        found = kagglehub.model_download(handle.removeprefix("kaggle://"))
    shutil.copytree(found, folder)


def embedded_folder(name, folder):
    shutil.copytree(embedded(name), folder)


def copy(source, folder):
    shutil.copytree(source, folder)


def environment(**values):
    os.environ.update({k: v for k, v in values.items() if v is not None})
    for name in (k for k, v in values.items() if v is None):
        os.environ.pop(name, None)


CALLS = {
    **{"load": load, "save": save, "upload": upload, "lm_upload": lm_upload, "adapt": adapt},
    **{"plan": plan, "fetch": fetch, "embedded": embedded_folder, "copy": copy},
    "environment": environment,
}


def main(cases):
    for name, call, arguments in cases:
        result, error = None, None
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("always")
            try:
                result = CALLS[call](**arguments)
            except Exception as caught:
                error = [type(caught).__name__, str(caught)]
        ours = [
            str(w.message)
            for w in warned
            if "keras_encdec" in str(w.filename) or "run_hub" in w.filename
        ]
        line = {"name": name, "result": result, "out": out.getvalue(), "warned": ours}
        print(json.dumps({**line, "error": error}, default=str), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
