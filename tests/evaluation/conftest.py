"""A folder of tasks, and the pair that is asked them."""

import pytest
from made_tasks import make_tasks

import keras_encdec


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder of tasks."""
    found = tmp_path_factory.mktemp("tasks")
    make_tasks(found)
    return found


@pytest.fixture(scope="session")
def pair():
    """The embedded pair."""
    return keras_encdec.from_preset("gemma2_tiny_tiny")
