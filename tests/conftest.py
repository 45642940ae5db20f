"""What every test starts from: a backend chosen before Keras is imported, and one seed."""

import os
import shutil
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compiling is the cost: no optimising, and the older, quicker emitters of fusions.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# Tests build the same models again and again: what one has compiled, others load.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="compiled-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import pytest


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def pytest_unconfigure(config):
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    mine = not hasattr(config, "workerinput")  # a worker of pytest-xdist has its parent's folder
    if mine and os.path.basename(folder).startswith("compiled-"):
        shutil.rmtree(folder, ignore_errors=True)
