"""A folder of shards goes on after whatever stopped it, and ends as one that nothing stopped."""

import hashlib
import json

import numpy as np
import pytest

from keras_encdec.data.shards import Shards, ShardWriter

PARTS = [{"a": np.arange(i + 1), "b": np.full(3, i)} for i in range(4)]


def write(folder, until=4, about=None):
    """The same call each time: what is there is not written again."""
    with ShardWriter(folder, "tokens", about or {"k": 1}) as writer:
        done = len(writer.shards)
        for part in PARTS[done:until]:
            writer.write(part, {"n": len(part["a"])})
        if until == len(PARTS):
            writer.finish({"all": len(PARTS)})
    return done


def files(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture
def whole(tmp_path):
    write(tmp_path / "whole")
    return files(tmp_path / "whole")


def stopped_early(folder):
    """A kill before the first index, in the middle of a shard."""
    folder.mkdir()
    (folder / ".lock").write_text("{}")
    (folder / "00000.a.npy").write_bytes(b"half")
    (folder / "shards.json.incomplete").write_text('{"kind')
    return 0


def stopped_later(folder):
    write(folder, until=2)
    (folder / "00002.a.npy").write_bytes(b"half")
    return 2


@pytest.mark.parametrize("stopped", [stopped_early, stopped_later])
def test_after_a_kill(tmp_path, whole, stopped):
    folder = tmp_path / "run"
    done = stopped(folder)
    assert write(folder) == done
    assert files(folder) == whole
    assert len(Shards(folder, "tokens")) == len(PARTS)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_after_a_shard_was_damaged(tmp_path, whole, finished, damage):
    folder = tmp_path / "run"
    write(folder, until=4 if finished else 3)
    path = folder / "00001.b.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    {
        "cut": lambda: path.write_bytes(data[:-5]),
        "flipped": lambda: path.write_bytes(data),
        "gone": path.unlink,
    }[damage]()
    with pytest.warns(UserWarning, match="Shard 1 of .*run is damaged"):
        assert write(folder) == 1
    assert files(folder) == whole


def test_a_finished_one_is_let_be(tmp_path, whole):
    with pytest.raises(ValueError, match="which is finished"):
        write(tmp_path / "whole")
    assert files(tmp_path / "whole") == whole


def test_other_settings_and_other_files_are_refused(tmp_path):
    write(tmp_path / "run", until=1)
    with pytest.raises(ValueError, match=r"begun with tokens \{'k': 2\}"):
        write(tmp_path / "run", about={"k": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"with notes\.txt in it"):
        write(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="a file"):
        write(tmp_path / "mine" / "notes.txt")


def test_an_index_that_leads_out_is_refused(tmp_path):
    write(tmp_path / "run", until=1)
    index = json.loads((tmp_path / "run" / "shards.json").read_text())
    index["shards"][0]["files"]["a"]["file"] = "../secret"
    (tmp_path / "run" / "shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="leads out of it"):
        write(tmp_path / "run")


def test_two_at_once(tmp_path):
    with (
        ShardWriter(tmp_path / "run", "tokens", {"k": 1}),
        pytest.raises(BlockingIOError, match=r"one that process \d+ on .* writes to"),
    ):
        write(tmp_path / "run")
    assert write(tmp_path / "run") == 0
