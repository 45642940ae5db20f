"""Kill -9 while something is written: what is left is the old, the new or nothing, and goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

SCRIPT = Path(__file__).with_name("run_killed.py")
KILLS = os.environ.get("ENCDEC_KILLS", "20")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone is run"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
]


def run(folder, name):
    command = [sys.executable, "-W", "ignore", SCRIPT, folder, KILLS, name]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])[name]
    print(name, found)
    return found


@pytest.mark.parametrize("name", ["save", "export"])
def test_a_folder_is_replaced_whole(tmp_path, name):
    found = run(tmp_path, name)
    assert found.get("old", 0) + found.get("new", 0) == int(KILLS)
    assert found["same call"]
    assert not found["rest"]


@pytest.mark.parametrize("name", ["tokenize", "teacher", "documents", "outputs", "checkpoint"])
def test_a_job_goes_on(tmp_path, name):
    found = run(tmp_path, name)
    assert found["killed"] > 0
    assert found["same"]
