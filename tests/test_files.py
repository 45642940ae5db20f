"""Folders that appear whole or not at all, and delete nothing that is not a preset's own."""

import contextlib
import errno
import json
import multiprocessing
import os
import resource

import pytest

from keras_encdec import disk
from keras_encdec.files import atomic_file, atomic_folder

# The children of a fork here touch nothing but files.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork")

PRESET = {"config.json": json.dumps({"registered_name": "a>B"}), "model.weights.h5": "old"}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def found(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def save(path, text="new", **kwargs):
    with atomic_folder(path, **kwargs) as folder:
        write(folder, {**PRESET, "model.weights.h5": text})


@pytest.fixture(params=["exchange", "two renames"])
def either_way(request, monkeypatch):
    """A system that can exchange names, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(disk, "exchange", lambda one, other: False)


def test_a_preset_is_replaced(tmp_path, either_way):
    write(tmp_path / "m", {**PRESET, "assets/tokenizer/vocabulary.spm": "of the old one"})
    save(tmp_path / "m")
    assert found(tmp_path) == {
        f"m/{name}": text for name, text in {**PRESET, "model.weights.h5": "new"}.items()
    }


def test_a_new_name_and_an_empty_folder_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "deep/er"):
        save(tmp_path / name)
        assert found(tmp_path / name)["model.weights.h5"] == "new"


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"thesis.tex": "years of work"}, "thesis.tex"),
        ({"data/model.weights.h5": "mine"}, "data/model.weights.h5"),
        ({"config.json": json.dumps({"port": 80})}, "config.json"),
        ({"config.json": "{"}, "config.json"),
        ({f"{i}.csv": "" for i in range(9)}, "and more"),
    ],
)
def test_what_is_not_ours_is_refused_by_name_and_stays(tmp_path, others, named):
    write(tmp_path / "m", {**PRESET, **others})
    before = found(tmp_path)
    with pytest.raises(ValueError, match=named):
        save(tmp_path / "m")
    assert found(tmp_path) == before


def test_so_is_what_came_while_it_was_written(tmp_path):
    write(tmp_path / "m", PRESET)
    with pytest.raises(ValueError, match=r"notes\.txt"), atomic_folder(tmp_path / "m"):
        write(tmp_path / "m", {"notes.txt": "now"})
    assert found(tmp_path) == {f"m/{n}": t for n, t in {**PRESET, "notes.txt": "now"}.items()}


def test_a_file_and_a_link_inside_are_refused(tmp_path):
    write(tmp_path, {"file": "text", **{f"m/{n}": t for n, t in PRESET.items()}})
    (tmp_path / "m" / "model_00000.weights.h5").symlink_to(tmp_path / "file")
    for name in ("file", "m"):
        with pytest.raises(ValueError, match=r"file|model_00000"):
            save(tmp_path / name)


def test_a_link_to_a_folder_stays_one(tmp_path, either_way):
    write(tmp_path / "there", PRESET)
    (tmp_path / "here").symlink_to(tmp_path / "there")
    save(tmp_path / "here")
    assert (tmp_path / "here").is_symlink()
    assert found(tmp_path / "there")["model.weights.h5"] == "new"


def test_a_readme_stays_unless_there_is_a_new_one(tmp_path, either_way):
    write(tmp_path / "m", {**PRESET, "README.md": "my card"})
    save(tmp_path / "m")
    assert found(tmp_path / "m")["README.md"] == "my card"
    with atomic_folder(tmp_path / "m") as folder:
        write(folder, {**PRESET, "README.md": "ours"})
    assert found(tmp_path / "m")["README.md"] == "ours"


def test_files_that_a_caller_wrote_are_its_own(tmp_path):
    write(tmp_path / "m", {**PRESET, "curves.png": ""})
    save(tmp_path / "m", also=["curves.png"])
    assert "curves.png" not in found(tmp_path / "m")


def test_an_error_leaves_what_was_there(tmp_path, either_way):
    write(tmp_path / "m", PRESET)
    for path in ("m", "n"):
        with (
            contextlib.suppress(KeyboardInterrupt),
            atomic_folder(tmp_path / path) as folder,
        ):
            write(folder, {"half": ""})
            raise KeyboardInterrupt
    assert found(tmp_path) == {f"m/{name}": text for name, text in PRESET.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def _killed(path, last):
    """Saves, and ends at a system call as by kill -9."""
    disk.exchange = lambda one, other: last == "exchange" or os._exit(9)
    rename, left = os.rename, {"first": 0, "second": 1}.get(last, 2)

    def renamed(one, other):
        nonlocal left
        if not left:
            os._exit(9)
        left -= 1
        rename(one, other)

    if last in ("first", "second"):
        disk.exchange, os.rename = (lambda one, other: False), renamed
    save(path, "half")


@pytest.mark.parametrize("last", ["before", "first", "second"])
def test_after_a_kill_the_next_call_tidies_and_says_so(tmp_path, last):
    write(tmp_path / "m", PRESET)
    process = multiprocessing.get_context("fork").Process(
        target=_killed, args=(tmp_path / "m", last)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    with pytest.warns(UserWarning, match="a save that was stopped"):
        save(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert found(tmp_path / "m")["model.weights.h5"] == "new"


@pytest.mark.filterwarnings("ignore:Removed")
def test_a_kill_between_two_renames_is_undone(tmp_path):
    """Even if the next save fails."""
    write(tmp_path / "m", PRESET)
    process = multiprocessing.get_context("fork").Process(
        target=_killed, args=(tmp_path / "m", "second")
    )
    process.start()
    process.join()
    assert not (tmp_path / "m").exists()
    with (
        pytest.warns(UserWarning, match="Put .*m back"),
        pytest.raises(KeyError),
        atomic_folder(tmp_path / "m"),
    ):
        raise KeyError
    assert found(tmp_path / "m") == PRESET


def test_a_save_of_another_process_is_let_be(tmp_path):
    """And one of a name that begins alike."""
    with atomic_folder(tmp_path / "m") as one, atomic_folder(tmp_path / "m-old") as other:
        write(one, PRESET)
        write(other, PRESET)
        save(tmp_path / "m", "of the second")
        assert one.exists()
        assert other.exists()
    assert found(tmp_path / "m") == PRESET


def test_room_is_asked_for_before_anything_is_written(tmp_path):
    write(tmp_path / "m", PRESET)
    for manager in (atomic_folder, atomic_file):
        with (
            pytest.raises(OSError, match="Expected room for 10,000") as error,
            manager(tmp_path / "m", 10**16),
        ):
            raise AssertionError("the block began")
        assert error.value.errno == errno.ENOSPC
    assert found(tmp_path) == {f"m/{name}": text for name, text in PRESET.items()}


def _limited(path, results, **sizes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        save(path, **sizes)
        results.put("saved")
    except OSError as error:
        results.put(error.errno)


@pytest.mark.parametrize(
    ("size", "largest", "found"),
    [
        (300_000, None, errno.ENOSPC),
        (300_000, 250_000, errno.ENOSPC),
        (300_000, 150_000, "saved"),
        (150_000, None, "saved"),
    ],
)
def test_a_limit_of_the_process_is_seen(tmp_path, size, largest, found):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    sizes = {"size": size, "largest": largest}
    process = context.Process(target=_limited, args=(tmp_path / "m", results), kwargs=sizes)
    process.start()
    process.join()
    assert results.get() == found
    assert [p.name for p in tmp_path.iterdir()] == (["m"] if found == "saved" else [])


def test_a_folder_of_one_owner(tmp_path):
    with (
        disk.owned(tmp_path),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "),
        disk.owned(tmp_path),
    ):
        pass
    with disk.owned(tmp_path):
        pass
    (tmp_path / ".lock").write_text("of a process that was killed")
    with disk.owned(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
