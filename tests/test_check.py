"""What counts as a number, a flag and a name, whoever made it."""

from decimal import Decimal

import keras
import numpy as np
import pytest

from keras_encdec import check

FIVE = [5, np.int8(5), np.array(5, "uint64"), keras.ops.convert_to_tensor(5)]
HALF = [0.5, np.float16(0.5), np.array(0.5), keras.ops.convert_to_tensor(0.5), Decimal("0.5")]
NO_NUMBERS = [True, np.bool_(True), "5", b"5", None, [5], np.array([5]), float("nan"), {}]


@pytest.mark.parametrize("value", FIVE, ids=repr)
def test_whole_numbers(value):
    found = check.whole("n", value)
    assert (type(found), found) == (int, 5)


@pytest.mark.parametrize("value", [*FIVE, *HALF], ids=repr)
def test_real_numbers(value):
    found = check.real("x", value)
    assert type(found) is float
    assert found in (5.0, 0.5)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 5.0, 0, -1, 2**31, 10**30], ids=repr)
def test_no_whole_numbers(value):
    with pytest.raises(ValueError, match="Expected n of at least 1, a whole number below"):
        check.whole("n", value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, float("inf"), 1, 0, -0.0, 10**400], ids=repr)
def test_no_real_numbers(value):
    with pytest.raises(ValueError, match="Expected x as a finite number above 0 and below 1"):
        check.real("x", value, above=0, below=1)


def test_limits():
    assert check.whole("n", 0, least=0) == 0
    assert check.real("x", 1, least=1, most=1) == 1.0
    with pytest.raises(ValueError, match="at least 0, a whole number of at most 1000"):
        check.whole("n", 1001, least=0, most=1000)


@pytest.mark.parametrize("value", ["no", 1, 0, None, [True], np.array([True])], ids=repr)
def test_no_flags(value):
    with pytest.raises(ValueError, match="Expected tied True or False"):
        check.flag("tied", value)


def test_flags():
    assert check.flag("tied", np.bool_(True)) is True
    assert check.flag("tied", False) is False


def test_names():
    assert check.one_of("mode", "min", ("min", "max")) == "min"
    assert check.one_of("gate", True, ("auto", True)) is True
    with pytest.raises(ValueError, match=r"'min' or 'max'. Received: 'maks'. Did you mean 'max'"):
        check.one_of("mode", "maks", ("min", "max"))
    with pytest.raises(ValueError, match=r"'auto' or True. Received: 1.$"):
        check.one_of("gate", 1, ("auto", True))
    with pytest.raises(ValueError, match=r"Received: \[\].$"):
        check.one_of("mode", [], ("min",))
    with pytest.raises(ValueError, match=r"Received: 'mim'. Did you mean 'min'\?$"):
        check.one_of("mode", "mim", ("min", "max"))
    assert check.nearest("mim", ["min", "mix", 3], most=2) == " Did you mean 'mix' or 'min'?"
    assert check.nearest("mim", ["min"], cutoff=0.8) == ""


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (1, 2, ("", 1, 2)),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, ("a, c", 2, 3)),
        ({"a": 1}, {"a": 1, "b": 2}, ("b", None, 2)),
        ({"a": 1, "b": 2}, {"a": 1}, ("b", 2, None)),
        ({"a": [[1], [2]]}, {"a": [[1], [3]]}, ("a", [2], [3])),
        ({"a": [1, 2]}, {"a": [1]}, ("a", [1, 2], [1])),
        ({"a": {"b": 1}}, {"a": 3}, ("a", {"b": 1}, 3)),
    ],
)
def test_where_two_differ(one, other, found):
    assert check.difference(one, other) == found
