"""Fused attention on eight simulated devices: each computes its own rows and heads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "run_sharded_attention.py"
WIDTH = 48  # of the states


def answer(command, *meshes):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    arguments = [sys.executable, "-W", "ignore", SCRIPT, json.dumps({command: meshes})]
    found = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(found.stdout.splitlines()[-1])[command]


@pytest.mark.long
def test_every_cut_gives_the_numbers_of_one_device():
    found = answer("attend", "data", [2, 4], [1, 8])
    for case, (difference, _) in found.items():
        assert difference < 1e-5, case
    cuts = {case: said for case, (_, said) in found.items()}
    assert cuts["data, even, odd"] == "rows by 8"
    assert cuts["[2, 4], even, groups"] == "rows by 2 and heads by 4"
    assert cuts["[2, 4], even, odd"] == "rows by 2"
    assert cuts["[2, 4], odd, parts of two"] == "heads by 4"
    assert cuts["[1, 8], even, part of a group"] == "heads by 8"
    assert cuts["data, odd, groups"] == cuts["[1, 8], odd, odd"] == "whole on each device"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "meshes", "kinds"),
    [("step", ["data", [8, 1], [1, 8], [2, 4]], 2), ("splash_step", [[2, 4]], 1)],
)
def test_a_step_gives_the_loss_and_gradients_of_one_device(command, meshes, kinds):
    found = answer(command, *meshes)
    assert len(found) == kinds * len(meshes)
    for case, differences in found.items():
        assert len(differences) > 30
        assert max(differences.values()) < 1e-5, (case, max(differences, key=differences.get))


@pytest.mark.slow
def test_a_step_holds_no_square_and_gathers_no_keys():
    for mesh, found in answer("program", [8, 1], [1, 8], [2, 4]).items():
        assert found["tokens"] > 10, mesh  # the lengths are seen where they are
        assert found["squares"] == [], mesh
        assert all(shape[-1] == WIDTH for shape in found["gathered"]), (mesh, found["gathered"])
