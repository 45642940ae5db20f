"""Experts apart on eight simulated devices give what one device gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "run_experts.py"


@pytest.mark.slow
def test_experts_apart_train_like_those_on_one_device():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    arguments = [sys.executable, "-W", "ignore", SCRIPT]
    found = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, check=True)
    meshes = json.loads(found.stdout.splitlines()[-1])
    for mesh, answer in meshes.items():
        assert answer["logs"] < 1e-5, mesh
        assert answer["weights"] < 1e-5, mesh
    assert meshes["[2, 4]"]["experts"] == [2, 3]  # 8 over 4 devices, and 3 that are not cut
    assert meshes["[1, 8]"]["experts"] == [1, 3]
    assert meshes["[2, 4]"]["gate"] == [2, 24, 24]  # (8, 48, 24)
