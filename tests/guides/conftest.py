"""A test that asks for `guide` is a test of each; `small` is the environment they run in."""

import os
import sys
from pathlib import Path

import pytest
from guide_runs import GUIDES

# Each takes a minute or more; those of them that run as notebooks are tested as such.
LONG = {path.stem for path in GUIDES} - {"fine_tune_on_pairs", "share_a_model"}


def pytest_generate_tests(metafunc):
    if "guide" in metafunc.fixturenames:
        slow = metafunc.definition.get_closest_marker("slow")
        by_hand = LONG if slow else ()
        guides = [
            pytest.param(path, id=path.stem, marks=[pytest.mark.long] * (path.stem in by_hand))
            for path in GUIDES
        ]
        metafunc.parametrize("guide", guides)


@pytest.fixture
def small(monkeypatch):
    """Small, offline, with the command of this installation."""
    monkeypatch.setenv("KERAS_ENCDEC_SMALL", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
