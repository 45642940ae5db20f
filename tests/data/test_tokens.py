"""Documents to a stream of tokens: in memory, on disk, after a kill, and with bad records."""

import sys
from concurrent.futures import ThreadPoolExecutor

import keras_hub
import numpy as np
import pytest

from keras_encdec.data import Tokens, tokenize
from keras_encdec.data import tokenizing as tokens_module
from keras_encdec.sharing import catalog

TEXTS = [f"Returns the mean of {i} numbers." * (1 + i % 7) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(tokens_module, "_TOGETHER", 4)


def stream(tokenizer, texts):
    return [token for text in texts for token in (*tokenizer(text), 1)]


def test_the_stream_is_every_document_and_its_end(tokenizer, tmp_path):
    expected = stream(tokenizer, TEXTS)
    in_memory = tokenize(TEXTS, tokenizer, shard_size=300)
    on_disk = tokenize(TEXTS, tokenizer, tmp_path / "shards", shard_size=300)
    for found in (in_memory, on_disk, Tokens.load(tmp_path / "shards")):
        assert found[:].tolist() == expected
        assert found[:].dtype == "int32"
        assert found[290:910].tolist() == expected[290:910]
        assert found[5:5].tolist() == []
        assert len(found) == len(expected)
        assert found.lengths.tolist() == [len(tokenizer(text)) + 1 for text in TEXTS]
    assert len(list((tmp_path / "shards").glob("*.tokens.npy"))) > 2


def test_what_is_left_out_is_counted_and_said(tokenizer, capsys):
    texts = ["", *TEXTS[:3], "  \n", "Holds <unused4>."]
    found = tokenize(texts, tokenizer)
    assert found[:].tolist() == stream(tokenizer, TEXTS[:3])
    assert found.skipped == {"they are empty": 2, "they hold a sentinel": 1}
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out 2 of 6 documents: they are empty, first text 0" in said
    assert "Left out 1 of 6 documents: they hold a sentinel, first text 5" in said


class Killed(Exception):
    pass


def killed_after(texts, count):
    yield from texts[:count]
    raise Killed


@pytest.mark.parametrize("count", [3, 21, 40, 59])
def test_a_kill_changes_nothing(tokenizer, tmp_path, count):
    texts = [*TEXTS[:10], "", *TEXTS[10:]]
    whole = tokenize(texts, tokenizer, tmp_path / "whole", shard_size=300)
    with pytest.raises(Killed):
        tokenize(killed_after(texts, count), tokenizer, tmp_path / "begun", shard_size=300)
    if (tmp_path / "begun" / "shards.json").exists():
        with pytest.raises(ValueError, match="unfinished"):
            Tokens.load(tmp_path / "begun")
    again = tokenize(texts, tokenizer, tmp_path / "begun", shard_size=300)
    assert again.skipped == whole.skipped == {"they are empty": 1}
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "begun" / path.name).read_bytes()


def test_other_texts_than_it_was_begun_with(tokenizer, tmp_path):
    with pytest.raises(Killed):
        tokenize(killed_after(TEXTS, 50), tokenizer, tmp_path, shard_size=300)
    with pytest.raises(ValueError, match="Expected the texts that the folder was begun with"):
        tokenize(["Other.", *TEXTS[1:]], tokenizer, tmp_path, shard_size=300)
    with pytest.raises(ValueError, match=r"Expected .* to be begun with"):
        tokenize(TEXTS, tokenizer, tmp_path, shard_size=500)
    assert len(tokenize(TEXTS, tokenizer, tmp_path, shard_size=300).lengths) == 60


def test_folders_that_are_not_ours_to_write(tokenizer, tmp_path):
    tokenize(TEXTS, tokenizer, tmp_path / "done")
    with pytest.raises(ValueError, match="which is finished"):
        tokenize(TEXTS, tokenizer, tmp_path / "done")
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match="Expected an empty folder"):
        tokenize(TEXTS, tokenizer, tmp_path)
    with pytest.raises(FileNotFoundError, match="Expected shards at"):
        Tokens.load(tmp_path / "nowhere")


def test_damaged_shards(tokenizer, tmp_path):
    tokenize(TEXTS, tokenizer, tmp_path, shard_size=300)
    path = tmp_path / "00001.tokens.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = Tokens.load(tmp_path)
    found[:200]  # the first shard is whole
    with pytest.raises(ValueError, match=r"00001.tokens.npy as it was written.*checksum"):
        found[:]
    path.unlink()
    with pytest.raises(ValueError, match=r"00001.tokens.npy. Received: no such file"):
        Tokens.load(tmp_path)[:]


@pytest.mark.slow
def test_many_threads_open_many_shards(tokenizer, tmp_path):
    """Python 3.11 fails here in NumPy's reading of headers, if several are read at once."""
    expected = tokenize(TEXTS, tokenizer, tmp_path, shard_size=1)[:].tolist()
    stretches = [slice(i, i + 9) for i in range(0, len(expected), 9)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            with ThreadPoolExecutor(16) as pool:
                parts = list(pool.map(Tokens.load(tmp_path).__getitem__, stretches))
            assert np.concatenate(parts).tolist() == expected
    finally:
        sys.setswitchinterval(interval)


def test_documents_that_are_tokenised_already():
    found = Tokens.from_documents([[5, 6, 1], np.array([7, 1]), []], vocabulary_size=8)
    assert found[:].tolist() == [5, 6, 1, 7, 1]
    assert found.lengths.tolist() == [3, 2, 0]
    for bad, message in (
        ([[5], [8]], "from 0 to 7 in document 1. Received: 8"),
        ([[-2]], "document 0. Received: -2"),
        ([[0.5]], "document 0 to be a 1-D array of integers. Received: float64"),
        ([[[1]]], "document 0 to be a 1-D array"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokens.from_documents(bad, vocabulary_size=8)


def test_nothing_at_all(tokenizer):
    assert len(tokenize([], tokenizer)) == 0
    assert tokenize([""], tokenizer)[:].tolist() == []
