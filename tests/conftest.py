"""What every test starts from: a backend chosen before Keras is imported, and one seed."""

import gc
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compiling is the cost: no optimising, and the older, quicker emitters of fusions.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# Tests build the same models again and again: what one has compiled, others load, as does the next
# run. `pytest --cache-clear` empties the folder.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "d" / "compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import pytest

# Tests whose other parameters CI runs: `long`, by hand.
BY_HAND = set(pathlib.Path(__file__).with_name("by_hand.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid in BY_HAND:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def collected():
    """Models are cycles, which the collector finds late: those of a file go with it."""
    yield
    gc.collect()
