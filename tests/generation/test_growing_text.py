"""What of a growing text can be shown."""

import pytest

from keras_encdec.generation.text import certain, completed_at, cut


def test_cut_at_the_first_stop():
    assert cut("one two three", ["three", "two"]) == "one "
    assert cut("one two", ["three"]) == "one two"
    assert cut("one", []) == "one"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc", "abc"),
        ("ab#", "ab"),  # may become a stop
        ("ab##", "ab"),
        ("ab##c", "ab##c"),  # did not
        ("ab###c", "ab"),
        ("ab\ufffd\ufffd", "ab"),  # half a character
        ("ab#\ufffd", "ab"),
    ],
)
def test_only_what_is_certain_is_shown(text, shown):
    assert certain(text, ["###", "##!"]) == shown


def test_how_many_tokens_complete_a_stop():
    tokens = ["a", "b ", "st", "op", " c", "stop"]

    def completed(*stops, count=6):
        return completed_at(lambda n: "".join(tokens[:n]), count, stops)

    assert completed("stop") == 4
    assert completed("stop", "b") == 2
    assert completed("a") == 1
    assert completed("op c") == 5
    assert completed("never") == 6
    assert completed("stop", count=3) == 3
    assert completed("stop", count=0) == 0
