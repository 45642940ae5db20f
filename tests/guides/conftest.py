"""A test that asks for `guide` is a test of each; `small` is the environment they run in."""

import os
import sys
from pathlib import Path

import pytest
from guide_runs import GUIDES


def pytest_generate_tests(metafunc):
    if "guide" in metafunc.fixturenames:
        metafunc.parametrize("guide", GUIDES, ids=lambda path: path.stem)


@pytest.fixture
def small(monkeypatch):
    """Small, offline, with the command of this installation."""
    monkeypatch.setenv("KERAS_ENCDEC_SMALL", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
