"""Every guide runs from its first line to its last, and none of our warnings is in it."""

import subprocess
import sys

import pytest
from guide_runs import warnings_of_ours


@pytest.mark.slow
def test_a_guide_runs(guide, small, tmp_path):
    done = subprocess.run(
        [sys.executable, str(guide)], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not warnings_of_ours(done.stderr, guide.name)


def test_a_warning_of_ours_is_found():
    """The pattern above, on what Python prints."""
    printed = "/x/guides/one.py:12: UserWarning: 1 of 2 prompts were cut\n  lm.generate(texts)\n"
    assert warnings_of_ours(printed, "one.py")
    assert not warnings_of_ours(printed.replace("guides/one", "keras/src/model"), "one.py")
