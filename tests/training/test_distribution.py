"""Eight simulated devices, and two processes, give what one gives, in their share of memory."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "run_distributed.py"
COUNTERS = 64  # bytes of seeds and counters beside the weights
MESHES = ["data", [8, 1], [1, 8], [4, 2]]  # [2, 4] is in the quick test


def start(devices=8, **calls):
    """A process with that many devices, which makes the calls."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "ignore", SCRIPT, json.dumps(calls)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def answer(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


OTHERS = ["other", "experts", "uneven", "sunk"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("presets") / "ours")
    return answer(start(fit=[[[2, 4]]], load=[folder], write=[[[2, 4]]]))


@pytest.fixture(scope="module")
def by_hand():
    meshes = ["data", [2, 4]]
    return answer(start(fit_others=[[[2, 4]], OTHERS], write=[["data"]], classify=[meshes]))


@pytest.mark.slow
def test_a_mixed_mesh_trains_like_one_device(quick):
    assert_same(quick["fit"]["[2, 4]"])


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_another_family_trains_like_on_one_device(by_hand, name):
    assert_same(by_hand["fit_others"][name]["[2, 4]"])


@pytest.mark.long
@pytest.mark.parametrize("mesh", ["data", "[2, 4]"])
def test_a_classifier_trains_like_on_one_device(by_hand, mesh):
    assert_same(by_hand["classify"][mesh])


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("prefer", marks=pytest.mark.slow),
        pytest.param("judge", marks=pytest.mark.long),
        pytest.param("reward", marks=pytest.mark.long),
    ],
)
def test_meshes_prefer_like_one_device(what):
    """By a reference that they compute, as a reward model, and of answers that they draw."""
    for differences in answer(start(**{what: [["data", [2, 4]]]}))[what].values():
        assert_same(differences)


@pytest.mark.slow
def test_a_mixed_mesh_writes_like_one_device(quick):
    assert_writes(quick["write"]["[2, 4]"])


@pytest.mark.long
def test_devices_of_data_write_like_one_device(by_hand):
    assert_writes(by_hand["write"]["data"])


def assert_writes(found):
    same, difference = found
    assert same
    assert difference < 1e-4


@pytest.mark.long
def test_a_mesh_scans_like_one_device_and_gathers_one_block_at_a_time():
    found = answer(start(scanned=[[[2, 4]]], gathered=[[2, 4]]))
    assert_same(found["scanned"]["[2, 4]"])
    plain, scanned = found["gathered"]
    assert "f32[192,192]" in plain  # a kernel of the feed-forward
    assert set(scanned) <= set(plain)  # none has an axis of blocks


@pytest.fixture(scope="module")
def uneven():
    return answer(start(uneven=[[[2, 4]]], order=[[2, 4]], teacher=[[[2, 4]]]))


@pytest.mark.long
def test_data_that_devices_do_not_divide(uneven):
    found = uneven["uneven"]["[2, 4]"]
    assert len(found) == 10
    assert max(found.values()) < 1e-5, max(found, key=found.get)


@pytest.mark.long
def test_what_was_made_before_the_distribution_is_named(uneven):
    said = dict(uneven["order"])
    assert "'batch' of 2 devices" in said.pop("int4")
    assert said.keys() == {"model, fit", "model, generate", "optimizer"}
    for name, message in said.items():
        assert f"the {name.split(',')[0]} to be made after" in message
        assert "on 1 of 8 devices" in message


@pytest.mark.long
def test_a_teacher_lies_on_all_devices(uneven):
    difference, share = uneven["teacher"]["[2, 4]"]
    assert difference < 1e-5
    assert share < 0.13


def assert_same(differences):
    assert len(differences) > 25  # the loss and every weight: a classifier has the fewest
    assert max(differences.values()) < 1e-5, max(differences, key=differences.get)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_t5gemma", "gemma2_tiny_mini", "load_weights", "ours"])
def test_no_device_holds_more_than_its_share(quick, name):
    found = quick["load"][name]
    assert found["share"] < found["all"] / 3
    replaced = found["shard"] if name in ("load_weights", "ours") else 0  # random until then
    assert found["share"] <= found["peak"] <= found["share"] + replaced + COUNTERS


@pytest.mark.slow
def test_no_tensor_passes_through_one_device(quick):
    load = quick["load"]
    assert load["hf_t5gemma"]["alone"] <= COUNTERS
    assert load["load_weights"]["alone"] <= COUNTERS
    assert load["ours"]["alone"] <= load["ours"]["tensor"] + COUNTERS  # Keras' random start
    # The sources lie on the host, which here is the first device.
    adapted = load["gemma2_tiny_mini"]
    assert adapted["alone"] <= adapted["all"] + adapted["tensor"]


@pytest.mark.long
def test_every_mesh_trains_like_one_device():
    for differences in answer(start(fit=[MESHES]))["fit"].values():
        assert_same(differences)


@pytest.mark.long
def test_devices_hold_what_was_estimated():
    for case in answer(start(held=[[2, 4]]))["held"]:
        assert case["held"] == case["estimated"]
        assert case["finite"]


@pytest.mark.parametrize(
    "meshes",
    [
        pytest.param([[2, 4]], marks=pytest.mark.slow),
        pytest.param([[8, 1], [1, 8]], marks=pytest.mark.long),
    ],
)
def test_a_step_needs_what_was_estimated(meshes):
    """In one, in four parts, and with a teacher that is asked."""
    found = answer(start(step=meshes))["step"]
    assert len(found) == 3 * len(meshes)
    for case, (needed, estimated) in found.items():
        assert estimated == pytest.approx(needed, rel=0.15), case


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("presets") / "ours")
    return folder, answer(start(devices=1, hosts=["none", 0, None], read=[folder, 0, None]))


@pytest.mark.parametrize(
    "mesh",
    [pytest.param(mesh, marks=pytest.mark.long) for mesh in ("data", [8, 1], [1, 8])]
    + [pytest.param([2, 4], marks=pytest.mark.slow)],
)
def test_two_processes_train_like_one(mesh, one_process):
    for found in in_two_processes("hosts", mesh):
        expected = one_process[1]["hosts"]
        assert_same({k: abs(found[k] - v) / max(1, v) for k, v in expected.items()})


@pytest.mark.long
def test_two_processes_load_what_one_loads(one_process):
    folder, expected = one_process
    for found in in_two_processes("read", folder):
        assert found == expected["read"]


def in_two_processes(command, argument):
    """The answers of two processes of four devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(devices=4, **{command: [argument, i, port]}) for i in range(2)]
    return [answer(process)[command] for process in processes]
