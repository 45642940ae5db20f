"""Room for what is generated at the same time is asked for once, of memory that can be had."""

import keras
import pytest

from keras_encdec.generation import memory
from keras_encdec.generation.beams import BeamSearch
from keras_encdec.testing.models import make_inputs, tiny_lm

MEMINFO = "MemTotal:  9000 kB\nMemFree:  1000 kB\nMemAvailable:  5000 kB\nCached:  4000 kB\n"
VERSION_2 = ("memory.max", "memory.current", "memory.stat")
VERSION_1 = tuple(f"memory/memory.{n}" for n in ("limit_in_bytes", "usage_in_bytes", "stat"))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes what a machine says of its memory."""
    if any(device.memory_stats() for device in _devices()):
        pytest.skip("a device that knows its own memory")
    monkeypatch.setattr(memory, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)

    def write(meminfo="", names=VERSION_2, limit=None):
        (tmp_path / "meminfo").write_text(meminfo)
        for name, text in zip(
            names, (limit, 3_000_000, "anon 7\ninactive_file 1000000"), strict=True
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")

    return write


def _devices():
    if keras.backend.backend() != "jax":
        return []
    import jax

    return jax.local_devices()


@pytest.mark.parametrize("names", [VERSION_2, VERSION_1])
def test_what_can_be_had(machine, names):
    machine(MEMINFO, names, "max")
    assert memory.available() == 5_120_000  # and not the 1,024,000 that nobody uses
    machine(MEMINFO, names, 9_223_372_036_854_771_712)  # no limit, in version 1
    assert memory.available() == 5_120_000
    machine(MEMINFO, names, 4_000_000)  # of which 3 MB are used, 1 MB of them for files
    assert memory.available() == 2_000_000
    machine("", names, 4_000_000)
    assert memory.available() == 2_000_000
    machine("", names, "max")
    assert memory.available() is None


# Keys and values of 2 layers, 2 heads of 12, 4 bytes each; 32 tokens, the smallest size.
OF_A_ROW = 2 * 2 * 2 * 12 * 4 * 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "asked", "rows"),
    [
        ("greedy", {}, 4),
        ("greedy", {"num_samples": 3}, 12),
        ("greedy", {"batch_size": 2}, 2),
        (BeamSearch(2), {}, 8),
    ],
)
def test_of_all_rows_at_the_same_time_and_once(monkeypatch, sampler, asked, rows):
    lm, x = tiny_lm(), make_inputs()  # 3 inputs, in a batch of 4
    lm.compile(sampler=sampler)
    there, calls = rows * OF_A_ROW - 1, []
    monkeypatch.setattr(memory, "available", lambda: calls.append(there) or there)
    with pytest.raises(MemoryError, match=rf"of {rows} rows of 32 tokens"):
        lm.generate(x, 20, None, **asked)
    assert lm.compile_counts["encode"] == 0
    assert len(calls) == 1
    there += 1
    lm.generate(x, 20, None, **asked)
    assert len(calls) == 2
