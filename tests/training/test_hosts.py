"""Two processes of four devices do what one does: train, write, save, and say what is wrong."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.long  # two processes of four devices, minutes for each mesh

SCRIPT = Path(__file__).parent / "run_hosts.py"
DIFFER = "in every process. Received: in [1] other than in 0"


def start(folder, mesh, index, port):
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    arguments = json.dumps([str(folder), mesh, index, port])
    command = [sys.executable, "-W", "ignore", SCRIPT, arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def answers(*processes):
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return answers(start(tmp_path_factory.mktemp("one"), None, 0, None))[0]


@pytest.fixture(scope="module", params=[[4, 2], "data", [1, 8]], ids=str)
def two(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return answers(*(start(folder, request.param, i, port) for i in range(2)))


def test_each_row_counts_once(one, two):
    for found in two:
        for name, expected in one["train"].items():
            for log, values in expected.items():
                np.testing.assert_allclose(
                    found["train"][name][log], values, rtol=2e-5, err_msg=f"{name}, {log}"
                )


def test_a_checkpoint_goes_on(one, two):
    for found in two:
        np.testing.assert_allclose(found["checkpoint"], one["checkpoint"], rtol=2e-5)


def test_each_process_has_all_that_is_written(one, two):
    for found in two:
        found, expected = (copy.deepcopy(some["write"]) for some in (found, one))
        np.testing.assert_allclose(found.pop("scores"), expected.pop("scores"), rtol=1e-5)
        np.testing.assert_allclose(found["beams"].pop(), expected["beams"].pop(), rtol=1e-5)
        assert found == expected


def test_one_process_writes_files(one, two):
    for found in two:
        assert found["files"] == one["files"]
        assert found["files"]["same"]
        assert {"outputs.jsonl", "adapter.lora.h5"} < set(found["files"]["names"])


def test_all_processes_learn_of_an_error(two):
    for number, found in enumerate(two):
        errors = found["errors"]
        assert len(errors) == 8
        assert {kind for kind, _ in errors.values()} == {"ValueError"}
        assert "thesis.tex" in errors["foreign"][1]
        assert "which is there" in errors["job"][1]
        assert ("said by the first process" in errors["job"][1]) == (number == 1)
        for name in ("texts", "batch", "prompts", "options", "score"):
            assert DIFFER in errors[name][1], name
        assert "one process for logits" in errors["predict"][1]
