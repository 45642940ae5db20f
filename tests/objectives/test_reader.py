"""What an encoder alone reads of texts, by a tokenizer of single characters."""

import numpy as np
import pytest

from keras_encdec.objectives.reader import Reader, _cut


class Characters:
    """One token a character; its number is the character's."""

    start_token_id, end_token_id, pad_token_id = 1, 2, 0

    def __call__(self, texts):
        return [[ord(c) for c in text] for text in texts]

    def get_vocabulary(self):
        return []


def text_of(ids):
    return "".join(chr(i) if i > 2 else {1: "<", 2: ">", 0: "_"}[i] for i in ids)


@pytest.fixture
def read(monkeypatch):
    monkeypatch.setattr("keras_encdec.objectives.reader.plain", lambda tokenizer, row: list(row))

    def read(rows, **options):
        return [text_of(ids) for ids in Reader(Characters(), **options).rows_of(rows)]

    return read


def test_texts_one_behind_another(read):
    assert read([("ab",), ("a", "b", "c")]) == ["ab", "a\nb\nc"]
    assert read([("a", "b")], separator=" | ") == ["a | b"]
    assert read([("ab",)], add_start_token=True, add_end_token=True) == ["<ab>"]


def test_the_longest_is_cut_and_told(read):
    with pytest.warns(UserWarning, match="2 of 3 texts were cut to sequence_length = 8"):
        found = read([("abcdefgh", "xy"), ("ab", "c"), ("abcdefghij",)], sequence_length=8)
    assert found == ["abcde\nxy", "ab\nc", "abcdefgh"]
    with pytest.warns(UserWarning, match="the longest has 10"):
        found = read([("abcdefghij",)], sequence_length=8, add_start_token=True, add_end_token=True)
    assert found == ["<abcdef>"]


@pytest.mark.parametrize("seed", range(20))
def test_cut_takes_from_the_longest(seed):
    """As taking a token from whichever is longest, one at a time."""
    rng = np.random.default_rng(seed)
    parts = [list(range(n)) for n in rng.integers(0, 30, rng.integers(1, 5))]
    room = int(rng.integers(4, 40))
    sizes = [len(part) for part in parts]
    while sum(sizes) > room:
        sizes[sizes.index(max(sizes))] -= 1
    found = [len(part) for part in _cut(parts, room)]
    assert sum(found) == sum(sizes)
    assert sorted(found) == sorted(sizes)


def test_rows_no_longer_than_they_need():
    reader = Reader(Characters(), sequence_length=40)
    laid = reader.lay([[5] * 3, [6] * 17])
    assert laid["token_ids"].shape == (2, 32)
    assert laid["padding_mask"].sum(axis=1).tolist() == [3, 17]
    assert (laid["token_ids"][0] == [5] * 3 + [0] * 29).all()
    assert reader.lay([[5] * 40])["token_ids"].shape == (1, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 2}, "sequence_length"),
        ({"add_end_token": "yes"}, "add_end_token"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Reader(Characters(), **options)


def test_a_token_that_there_is_not():
    tokenizer = Characters()
    tokenizer.start_token_id = None
    with pytest.raises(ValueError, match="start_token_id"):
        Reader(tokenizer, add_start_token=True)
