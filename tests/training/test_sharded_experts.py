"""Experts apart on eight simulated devices give what one device gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "run_experts.py"


@pytest.mark.slow
def test_experts_apart_and_their_gradients_are_those_of_one_device():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    arguments = [sys.executable, "-W", "ignore", SCRIPT]
    output = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(output.splitlines()[-1])
    assert max(difference for difference, *_ in found.values()) < 1e-5
    # 8 experts over 4 devices; 3, which 4 do not divide, on each, but their widths apart.
    for kind in ("biased", "shared", "in int8"):
        assert found[f"{kind} encoder"][1:] == [[2], ["model", "batch"]]
        assert found[f"{kind} decoder"][1:] == [[3], [None, "batch"]]
