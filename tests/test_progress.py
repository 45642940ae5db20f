"""What takes long says how far it is: a bar in a terminal, lines in a log file."""

import io
import itertools

import keras
import pytest
import rich
import rich.console

from keras_encdec import progress


@pytest.fixture
def clock(monkeypatch):
    """A second passes at each look at the clock."""
    seconds = itertools.count(100)
    monkeypatch.setattr(progress, "monotonic", lambda: next(seconds))


@pytest.fixture(autouse=True)
def _interactive_logging():
    enabled = keras.config.is_interactive_logging_enabled()
    keras.config.enable_interactive_logging()
    yield
    if enabled:
        keras.config.enable_interactive_logging()
    else:
        keras.config.disable_interactive_logging()


@pytest.mark.usefixtures("clock")
def test_a_log_file_gets_a_line_every_few_seconds(capsys):
    """The clock reads 100 at the start and 100 + n after n items, so every fifth one prints."""
    assert list(progress.track(range(2000), "Tokenising")) == list(range(2000))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Tokenising: 5 of 2,000 (0%), 5 s"
    assert lines[259] == "Tokenising: 1,300 of 2,000 (65%), 1300 s"
    assert lines[-1] == "Tokenising: 2,000 of 2,000 (100%), 2000 s"
    assert len(lines) == 400


@pytest.mark.usefixtures("clock")
def test_a_stream_of_unknown_length(capsys):
    assert sum(progress.track((i for i in range(12)), "Reading")) == 66
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Reading: 5, 5 s", "Reading: 10, 10 s", "Reading: 12, 13 s"]


@pytest.mark.usefixtures("clock")
def test_what_is_quick_prints_nothing(capsys):
    assert list(progress.track("abcd", "Packing")) == list("abcd")
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("clock")
def test_nothing_where_keras_is_quiet(capsys):
    keras.config.disable_interactive_logging()
    assert list(progress.track(range(100), "Packing")) == list(range(100))
    assert not capsys.readouterr().out


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    screen = io.StringIO()
    console = rich.console.Console(force_terminal=True, file=screen, width=80, _environ={})
    monkeypatch.setattr(rich, "_console", console)
    assert list(progress.track(range(3), "Packing")) == [0, 1, 2]
    assert "Packing" in screen.getvalue()
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("clock")
def test_one_bar_at_a_time(capsys):
    """What is gone through inside of another bar draws none, and the next one does again."""
    for _ in progress.track(range(2), "Scoring"):
        assert list(progress.track(range(10), "Rows")) == list(range(10))
    assert list(progress.track((i for i in range(6)), "Writing", 6)) == list(range(6))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Writing: 5 of 6 (83%), 5 s", "Writing: 6 of 6 (100%), 7 s"]
