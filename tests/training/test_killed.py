"""Kill -9 at random moments: every resumed run ends bit for bit as one left alone."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_killable.py")
KILLS = int(os.environ.get("ENCDEC_KILLS", "2"))


def start(folder, what="tokens"):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", SCRIPT, folder, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def finish(process):
    """The digest that a run ends with."""
    for line in process.stdout:
        if line.startswith("digest"):
            return line.split()[1]
    raise AssertionError(f"The run ended with {process.wait()}.")


def kill(process, rng):
    """Whether it was killed before it ended, up to four seconds behind its first step."""
    for line in process.stdout:
        if line.startswith("begun"):
            break
    time.sleep(rng.uniform(0, 4))
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


@pytest.mark.long
@pytest.mark.parametrize("what", ["tokens", "preferences", "policy"])
def test_killed_at_random_moments(tmp_path, what):
    expected, rng, kills, number = finish(start(tmp_path / "alone", what)), random.Random(0), 0, 0
    while kills < KILLS:
        process = start(tmp_path / f"run_{number}", what)
        if kill(process, rng):
            found = (tmp_path / f"run_{number}").rglob("[0-9]*")
            steps = sorted(int(p.name) for p in found if p.name.isdigit())
            print(f"kill {kills}: run {number}, checkpoints {steps}")
            kills += 1
        else:
            number += 1
    for i in range(number + 1):
        assert finish(start(tmp_path / f"run_{i}", what)) == expected, i
