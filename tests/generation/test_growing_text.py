"""What of a growing text can be shown."""

import pytest

from keras_encdec.generation.text import certain, cut


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
