"""Batches: an order that can be taken up at any step, shared, and staged."""

import hashlib
import socket
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest

from keras_encdec.data import Tokens, batches, tokenize
from keras_encdec.data.pipeline import READ_AHEAD, Examples
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import UL2, Mixture, PrefixLM, SpanCorruption, Stages
from keras_encdec.sharing import catalog

TEXTS = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 9) for i in range(80)]
SENTINELS = range(7, 106)
PIPELINES = {
    "prefix_lm": {},
    "ul2, crossing": {"objective": "ul2", "cross_documents": True},
    "joint, packed": {"objective": Mixture([PrefixLM("random"), UL2("ul2r")]), "packing": True},
    "two stages": {"objective": Stages([UL2(), PrefixLM()], [0.9, 0.1])},
}


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenize(TEXTS, tokenizer, shard_size=500)


def make(tokens, tokenizer, name, **kwargs):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, seed=5, **PIPELINES[name])
    return batches(tokens, preprocessor, 8, **{"epochs": 2, **kwargs})


def flat(batch):
    x, y, weight = batch
    return [*x.values(), y, weight]


def raw(batch):
    return b"".join(array.tobytes() for array in flat(batch))


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("step", [1, 7, -1])
def test_what_is_left_at_any_step(tokens, tokenizer, name, step):
    """A new pipeline, taken up at a step, and an iterator whose state was kept."""
    whole = [raw(batch) for batch in make(tokens, tokenizer, name)]
    step %= len(whole)
    again = make(tokens, tokenizer, name)
    assert [raw(batch) for batch in again[step:]] == whole[step:]
    iterator = iter(again.to_iter_dataset(READ_AHEAD))
    for _ in range(step):
        next(iterator)
    state = iterator.get_state()
    resumed = iter(make(tokens, tokenizer, name).to_iter_dataset(READ_AHEAD))
    resumed.set_state(state)
    assert [raw(batch) for batch in resumed] == whole[step:]


@pytest.mark.parametrize("name", PIPELINES)
def test_two_hosts_read_what_one_reads(tokens, tokenizer, name):
    whole = list(make(tokens, tokenizer, name))
    hosts = [list(make(tokens, tokenizer, name, host=(i, 2))) for i in range(2)]
    assert len(whole) == len(hosts[0]) == len(hosts[1])
    for batch, *shares in zip(whole, *hosts, strict=True):
        for array, one, other in zip(flat(batch), *map(flat, shares), strict=True):
            joined = np.stack([one, other], axis=1).reshape(array.shape)
            np.testing.assert_array_equal(joined, array)


@pytest.mark.parametrize("name", ["prefix_lm", "ul2, crossing"])
def test_an_epoch_is_all_of_the_text_in_another_order(tokens, tokenizer, name):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, **PIPELINES[name])
    for epoch in range(2):
        examples = Examples(tokens, preprocessor, epoch)
        stream = np.concatenate([examples[i].reassemble() for i in range(len(examples))])
        assert abs(len(stream) - len(tokens)) <= len(TEXTS)
        if name == "ul2, crossing":
            np.testing.assert_array_equal(stream, tokens[:])
    data = batches(tokens, preprocessor, 8, epochs=2)
    half = len(data) // 2
    first, second = ([raw(batch) for batch in part] for part in (data[:half], data[half:]))
    assert not set(first) & set(second)


def test_unshuffled_is_what_the_preprocessor_makes_of_the_texts(tokens, tokenizer):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective="ul2")
    expected = preprocessor(TEXTS)
    rows = len(expected[1])
    (batch,) = batches(tokens, preprocessor, rows, shuffle=False)
    for found, array in zip(flat(batch), flat(expected), strict=True):
        np.testing.assert_array_equal(found, array)


def test_masks_are_drawn_anew_in_each_epoch(tokens, tokenizer):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective="ul2")
    one, other = (Examples(tokens, preprocessor, epoch) for epoch in (0, 1))
    assert one.windows.seeds[0] != other.windows.seeds[0]
    assert {e.denoiser for e in map(one.__getitem__, range(len(one)))} != {"S(0.25)"}


def test_the_last_batch_is_filled_with_rows_that_count_nothing(tokens, tokenizer):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32)
    rows = len(Examples(tokens, preprocessor))
    data = batches(tokens, preprocessor, 64)
    assert len(data) == -(-rows // 64)
    assert rows % 64
    *_, (x, _, weight) = data
    assert (weight.sum(axis=1) > 0).sum() == rows % 64
    assert x["encoder_token_ids"].shape == (64, 32)


def stage_of(batch):
    """`1` where a batch holds sentinels, as UL2's do."""
    return int(np.isin(batch[1], SENTINELS).any())


@pytest.mark.parametrize(
    ("order", "stages"), [([UL2(), PrefixLM()], "10"), ([PrefixLM(), UL2()], "01")]
)
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_second_stage_begins_at_its_step(tokens, tokenizer, order, stages, share):
    objective = Stages(order, [share, 1 - share])
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective=objective)
    data = batches(tokens, preprocessor, 8, steps=40)
    found = "".join(str(stage_of(batch)) for batch in data)
    switch = round(40 * share)
    assert found == stages[0] * switch + stages[1] * (40 - switch)
    alone = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective=order[0])
    assert len(batches(tokens, preprocessor, 8)) == len(batches(tokens, alone, 8))


def test_a_joint_mixture_has_both(tokens, tokenizer):
    objective = Mixture([PrefixLM(), UL2()], [0.5, 0.5])
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective=objective)
    examples = Examples(tokens, preprocessor)
    names = [examples[i].denoiser for i in range(len(examples))]
    share = names.count("PrefixLM") / len(names)
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(names))
    assert len(set(names)) == 8


def test_bad_input(tokens, tokenizer):
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective="ul2")
    for arguments, message in (
        ({"batch_size": 0}, "Expected a batch_size of 1 or more"),
        ({"batch_size": 9, "host": (0, 2)}, "that 2 hosts can share. Received: 9"),
        ({"batch_size": 8, "host": (2, 2)}, "index below count"),
        (
            {"batch_size": 8, "epochs": 0},
            r"Expected epochs of at least 1.*Received: 0",
        ),
        (
            {"batch_size": 8, "steps": -1},
            r"Expected steps of at least 1.*Received: -1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            batches(tokens, preprocessor, **arguments)
    for empty in (Tokens.from_documents([]), Tokens.from_documents([[1], [1]])):
        with pytest.raises(ValueError, match="Expected text for at least one example"):
            batches(empty, preprocessor, 8)
    spans = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective=SpanCorruption())
    held = Tokens.from_documents([[300] * 9, [300] * 9 + [8]])
    with pytest.raises(ValueError, match=r"In document 1 .*8, which stands for a hidden span"):
        batches(held, spans, 2)[0]
    with pytest.raises(ValueError, match=r"below 4096.*Received: 4096 in document 2"):
        batches(Tokens.from_documents([[5, 6], [7], [8, 4096]]), preprocessor, 1)


def test_tokens_of_another_tokenizer(tokenizer, tmp_path):
    tokenize(TEXTS, tokenizer, tmp_path)
    foreign = Tokens.load(tmp_path)
    foreign.vocabulary = "another"
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32)
    with pytest.raises(ValueError, match="Expected tokens of the preprocessor's tokenizer"):
        batches(foreign, preprocessor, 8)


WORKER = """
import hashlib, sys
import absl.flags
import grain
from keras_encdec.data import Tokens, batches
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
import keras_hub

if __name__ == "__main__":
    folder, workers, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective="ul2", seed=5)
    data = batches(Tokens.load(folder), preprocessor, 8, epochs=2)[step:].to_iter_dataset()
    if workers:
        absl.flags.FLAGS.mark_as_parsed()  # Grain's workers read flags
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    for x, y, weight in data:
        arrays = [*(x[key] for key in sorted(x)), y, weight]
        print(hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest(), flush=True)
"""


HOST = """
import hashlib, sys
import jax

if __name__ == "__main__":
    folder, port, rank = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
    import keras_hub
    from keras_encdec.data import Tokens, batches
    from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
    from keras_encdec.sharing import catalog

    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective="ul2", seed=5)
    for x, y, weight in batches(Tokens.load(folder), preprocessor, 8):
        print(*(hashlib.sha256(row.tobytes()).hexdigest() for row in y), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="hosts are JAX processes")
def test_two_processes_read_what_one_reads(tokens, tokenizer, tmp_path):
    tokenize(TEXTS, tokenizer, tmp_path / "shards", shard_size=500)
    (tmp_path / "host.py").write_text(HOST)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", tmp_path / "host.py", tmp_path / "shards", port]
    hosts = [
        subprocess.Popen([*map(str, command), str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    shares = [host.communicate()[0].splitlines() for host in hosts]
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, 32, 32, objective="ul2", seed=5)
    whole = list(batches(tokens, preprocessor, 8))
    assert len(whole) == len(shares[0]) == len(shares[1])
    for (_, y, _), *lines in zip(whole, *shares, strict=True):
        digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in y]
        assert [digests[0::2], digests[1::2]] == [line.split() for line in lines]


@pytest.mark.long
def test_a_killed_process_and_any_number_of_workers(tokenizer, tmp_path):
    """Byte for byte: in one process, in one that is killed and taken up, and in two workers."""
    tokenize(TEXTS, tokenizer, tmp_path / "shards", shard_size=500)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def start(workers, step):
        command = [sys.executable, "-W", "ignore", script, tmp_path / "shards", workers, step]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)

    whole = start(0, 0).communicate()[0].split()
    assert len(whole) > 20
    killed = start(0, 0)
    seen = [
        killed.stdout.readline().strip() for _ in range(np.random.default_rng().integers(1, 20))
    ]
    killed.kill()
    rest = start(0, len(seen)).communicate()[0].split()
    assert seen + rest == whole
    assert start(2, 0).communicate()[0].split() == whole
