"""JAX, TensorFlow and PyTorch give the same logits, the same step, the same text."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "run_step.py"
BACKENDS = [b for b in ("jax", "tensorflow", "torch") if importlib.util.find_spec(b)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    outputs = {}
    for backend in BACKENDS:
        files = [folder / "weights.npz", folder / f"{backend}.npz"]
        environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([sys.executable, SCRIPT, *files], check=True, env=environment)
        with np.load(files[1]) as arrays:
            outputs[backend] = dict(arrays)
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree(results, backend):
    expected, received = results["jax"], results[backend]
    assert expected.keys() == received.keys()
    for name, value in expected.items():
        if name.endswith("generated"):
            np.testing.assert_array_equal(received[name], value)
        else:
            np.testing.assert_allclose(received[name], value, 1e-5, 1e-4, err_msg=name)


@pytest.mark.slow
def test_the_step_moves_every_weight(results):
    # A weight that no backend trains would agree everywhere.
    for pair in ("usual", "other", "merged", "adapted", "later"):
        prefix = f"{pair}/after/"
        weights = {k: v for k, v in results["jax"].items() if k.startswith(prefix)}
        rng = np.random.default_rng(0)
        for name, after in weights.items():
            before = rng.normal(0, 0.3, after.shape).astype("float32")
            assert not np.array_equal(before, after), name
