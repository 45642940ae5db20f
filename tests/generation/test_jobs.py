"""Many prompts: any collection of them, in their order, and files that outlive a kill."""

import json
import os

import keras_hub
import numpy as np
import pytest

import keras_encdec
from keras_encdec.data.kinds import Pairs
from keras_encdec.data.prompts import in_memory
from keras_encdec.generation import BeamSearch, call, jobs

TEXTS = [f"Returns the {word} of{' all the' * i} arrays." for i, word in enumerate("abcdefg")]
PAIRS = {"encoder_text": TEXTS, "decoder_text": ["the", "a"] * 3 + ["of"]}


@pytest.fixture(scope="module")
def outputs(lm):
    return lm.generate(TEXTS, 12)


def collections(folder):
    import datasets
    import grain
    import tensorflow as tf

    rows = [dict(zip(PAIRS, row, strict=True)) for row in zip(*PAIRS.values(), strict=True)]
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    yield keras_encdec.data.read(path)
    yield from (TEXTS, tuple(TEXTS), np.array(TEXTS), (text for text in TEXTS))
    yield from ([TEXTS[:3], TEXTS[3:]], tf.constant(TEXTS), [text.encode() for text in TEXTS])
    yield tf.data.Dataset.from_tensor_slices(TEXTS)
    yield tf.data.Dataset.from_tensor_slices(TEXTS).batch(3)
    yield grain.MapDataset.source(TEXTS)
    yield grain.MapDataset.source(TEXTS).to_iter_dataset()
    yield from (PAIRS, rows, tf.data.Dataset.from_tensor_slices(PAIRS).batch(2))
    yield from (grain.MapDataset.source(rows), datasets.Dataset.from_dict({**PAIRS, "id": TEXTS}))


def test_prompts_of_any_collection(tmp_path):
    texts = pairs = 0
    for collection in collections(tmp_path):
        found = in_memory(collection)
        if isinstance(found, Pairs):
            columns = {"encoder_text": found.encoder_text, "decoder_text": found.decoder_text}
            assert columns == PAIRS
            pairs += 1
        else:
            assert found.texts() == TEXTS
            texts += 1
    assert (texts, pairs) == (12, 5)


@pytest.mark.parametrize("bad", [3, {"body": ["a"]}, {"encoder_text": ["a"], "decoder_text": []}])
def test_what_is_no_prompt(bad):
    with pytest.raises(ValueError, match="Expected"):
        in_memory(bad)


@pytest.mark.slow
def test_order_and_results_do_not_depend_on_batches(lm, outputs):
    assert lm.generate(TEXTS, 12, batch_size=2) == outputs
    assert lm.generate((text for text in TEXTS), 12, batch_size=3) == outputs
    samples = lm.generate(TEXTS, 12, batch_size=4, num_samples=2)
    assert samples == [[text] * 2 for text in outputs]
    prompted = lm.generate(PAIRS, 12, strip_prompt=True)
    assert lm.generate(PAIRS, 12, strip_prompt=True, batch_size=2) == prompted


def test_longest_first_in_batches():
    batches = []

    def write(numbers):
        batches.append(numbers)
        return [f"output {i}" for i in numbers]

    found = jobs.run(jobs.in_batches(write, 2), [5, 9, 1, 9, 7])
    assert found == [f"output {i}" for i in range(5)]
    assert batches == [[1, 3], [4, 0], [2]]


@pytest.mark.slow
def test_batches_draw_apart():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler=keras_hub.samplers.RandomSampler(temperature=1.5))
    found = lm.generate(TEXTS[:1] * 6, 12, batch_size=2, seed=3)
    assert len(set(found)) == 6
    assert lm.generate(TEXTS[:1] * 6, 12, batch_size=2, seed=3) == found


@pytest.mark.long
def test_scores_of_many():
    lm = keras_encdec.from_preset("gemma2_tiny_tiny")
    lm.compile(sampler=BeamSearch(2))
    texts, scores = lm.generate(TEXTS[:3], 8, return_scores=True)
    again, found = lm.generate(TEXTS[:3], 8, return_scores=True, batch_size=1)
    assert again == texts
    np.testing.assert_allclose(found, scores, rtol=1e-4)


@pytest.mark.slow
def test_a_file_of_outputs(lm, outputs, tmp_path):
    path = tmp_path / "new" / "outputs.jsonl"
    assert lm.generate(TEXTS, 12, path=path) == outputs
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"index": i, "output": text} for i, text in enumerate(outputs)]
    assert [p.name for p in path.parent.iterdir()] == ["outputs.jsonl"]
    with pytest.raises(ValueError, match="new file"):
        lm.generate(TEXTS, 12, path=path)


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("torn", [b"", b'{"index": 5, "out', b'{"index": 5, "output": "x"}'])
def test_resumed_after_a_kill(lm, outputs, tmp_path, monkeypatch, torn):
    path, encode, written = tmp_path / "outputs.jsonl", call.encode, []

    def counted(engine, prompts, **sizes):
        if len(written) == 2:
            raise Killed
        written.append(len(prompts))
        return encode(engine, prompts, **sizes)

    monkeypatch.setattr(call, "encode", counted)
    with pytest.raises(Killed):
        lm.generate(TEXTS, 12, batch_size=2, path=path)
    assert not path.exists()
    partial = path.with_name("outputs.jsonl.partial")
    with partial.open("ab") as file:
        file.write(torn)  # a line that broke off
    with pytest.raises(ValueError, match="of this call"):
        lm.generate(TEXTS, 13, batch_size=2, path=path)
    written.clear()
    with pytest.raises(Killed):
        lm.generate(TEXTS, 12, batch_size=1, path=path)
    written.clear()
    kept = len(partial.read_bytes().splitlines()) - 1
    assert 3 <= kept < len(TEXTS)
    monkeypatch.setattr(
        call, "encode", lambda *a, **k: written.append(len(a[1])) or encode(*a, **k)
    )
    assert lm.generate(TEXTS, 12, batch_size=2, path=path) == outputs
    assert sum(written) == len(TEXTS) - kept


def numbers(some):
    return [i * i for i in some]


@pytest.mark.parametrize("damage", [bytes(5), b"\xff\xfe\n", b"3\n", b'{"index": 1}\n', b"\n"])
def test_a_line_that_was_lost_is_written_again(tmp_path, damage):
    path, written = tmp_path / "outputs.jsonl", []

    def stopped(some):
        if len(written) == 4:
            raise Killed
        written.append(some)
        return numbers(some)

    with pytest.raises(Killed):
        jobs.run(jobs.in_batches(stopped, 1), range(6), path, "this")
    partial = path.with_name("outputs.jsonl.partial")
    head, *lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(head + lines[0] + damage + b"".join(lines[2:]))
    again = []
    write = jobs.in_batches(lambda some: again.append(some) or numbers(some), 1)
    found = jobs.run(write, range(6), path, "this")
    assert found == [0, 1, 4, 9, 16, 25]
    assert again == [[4], [3], [2], [1], [0]]  # 5, the longest, was kept
    assert [p.name for p in tmp_path.iterdir()] == ["outputs.jsonl"]


def test_what_names_no_file(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (3, ".", tmp_path):
        with pytest.raises(ValueError, match=r"Expected .* file.*Received: "):
            lm.generate(TEXTS, 12, path=path)
    assert list(tmp_path.iterdir()) == []


def second(path):
    """What another process is told that makes the same call."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            jobs.run(jobs.in_batches(numbers, 2), range(6), path, "this")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        return file.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_one_process_at_a_time(tmp_path):
    path, said = tmp_path / "outputs.jsonl", []

    def write(some):
        said.append(second(path))
        return numbers(some)

    assert jobs.run(jobs.in_batches(write, 2), range(6), path, "this") == [0, 1, 4, 9, 16, 25]
    assert len(said) == 3
    for message in said:
        assert message.startswith(f"BlockingIOError: Expected {path} for this call alone.")
        assert f"process {os.getpid()} on " in message
    assert "Expected a new file" in second(path)
    assert [p.name for p in tmp_path.iterdir()] == ["outputs.jsonl"]


def test_a_lock_of_a_process_that_is_gone_is_none(tmp_path):
    path = tmp_path / "outputs.jsonl"
    (tmp_path / "outputs.jsonl.lock").write_text('{"process": 1, "host": "gone"}')
    assert jobs.run(jobs.in_batches(numbers, 2), range(3), path, "this") == [0, 1, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["outputs.jsonl"]


@pytest.mark.slow
def test_other_weights_are_another_call(lm):
    other = keras_encdec.from_preset("gemma2_tiny_mini")
    other.compile(sampler="greedy")
    assert other._identity([], 2, {}) != lm._identity([], 2, {})
    variable = other.backbone.decoder.blocks[0].feedforward.variables[0]
    before = other._identity([])
    variable.assign(variable + 1)
    assert other._identity([]) != before


def test_bad_batch_size(lm):
    with pytest.raises(ValueError, match="batch_size"):
        lm.generate(TEXTS, batch_size=0)


def test_nothing_is_begun_where_one_prompt_is_bad(lm, tmp_path):
    for bad in ({"inputs": [*TEXTS, ""]}, {"inputs": TEXTS, "max_length": 0}):
        with pytest.raises(ValueError, match="Expected"):
            lm.generate(**bad, batch_size=2, path=tmp_path / "outputs.jsonl")
    assert not list(tmp_path.iterdir())
