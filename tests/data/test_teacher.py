"""Teacher rows: those of a direct forward, at the right targets, or refused."""

import json

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_encdec.data import Teacher, Tokens, batches, tokenize, write_teacher
from keras_encdec.data import teacher as module
from keras_encdec.data.pipeline import Examples
from keras_encdec.models import EncDecSeq2SeqLMPreprocessor
from keras_encdec.objectives import UL2, PrefixLM, SpanCorruption, Stages
from keras_encdec.sharing import catalog

TEXTS = [f"Returns the mean of {i} numbers along an axis." * (1 + i % 4) for i in range(14)]
SENTINELS = np.arange(7, 106)
OBJECTIVES = {"prefix_lm": PrefixLM(), "spans": SpanCorruption(3, 0.3), "ul2": UL2()}
K = 12


@pytest.fixture(scope="module")
def source():
    """The model that the pairs are converted from."""
    return keras_hub.models.CausalLM.from_preset(catalog.embedded("gemma2_tiny_docs"))


@pytest.fixture(scope="module")
def tokens(source):
    return tokenize(TEXTS, source.preprocessor.tokenizer)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "_SHARD_BATCHES", 2)


def preprocessor(source, objective="prefix_lm", **kwargs):
    tokenizer = source.preprocessor.tokenizer
    return EncDecSeq2SeqLMPreprocessor(
        tokenizer, 16, 16, objective=OBJECTIVES[objective], seed=3, **kwargs
    )


def write(folder, source, tokens, pre, **kwargs):
    return write_teacher(folder, source, tokens, pre, k=K, batch_size=4, dtype="float32", **kwargs)


def direct(source, window):
    """Log-probabilities of each token of a window, from a forward over `<bos>` and all of it."""
    x = np.zeros((1, 33), "int32")  # one shape for all: what follows is not seen
    x[0, : len(window) + 1] = [2, *window]
    logits = source({"token_ids": x, "padding_mask": (x > 0).astype("int32")})
    log_probs = ops.convert_to_numpy(ops.log_softmax(ops.cast(logits, "float32")))
    return log_probs[0, : len(window)]


@pytest.fixture(scope="module")
def llama():
    """A teacher of another family, with an output layer of its own."""
    backbone = keras_hub.models.LlamaBackbone(4096, 1, 2, 16, 24, num_key_value_heads=1)
    return keras_hub.models.LlamaCausalLM(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [*OBJECTIVES, "llama"])
def test_rows_equal_a_direct_forward(source, llama, tokens, tmp_path, objective):
    pre = preprocessor(source, "ul2" if objective == "llama" else objective)
    source = llama if objective == "llama" else source
    teacher = write(tmp_path, source, tokens, pre)
    examples = Examples(tokens, pre)
    assert len(teacher) == len(examples) > 8
    for index in range(0, len(examples), 5):
        window, example = examples.windows.example(index, tokens, pre.objective)
        expected, (ids, log_probs) = direct(source, window), teacher.rows(index, window, example)
        positions = example.positions()[1]
        assert len(ids) == len(example.targets) + example.ends
        for row, position in enumerate(positions):
            if position < 0:  # a sentinel, which the teacher does not know
                assert ids[row, 0] == example.targets[row]
                assert np.exp(log_probs[row]).tolist() == [1] + [0] * (K - 1)
                continue
            top = np.sort(expected[position])[::-1][:K]
            np.testing.assert_allclose(log_probs[row], top, atol=1e-4)
            np.testing.assert_allclose(expected[position][ids[row]], log_probs[row], atol=1e-4)
        if example.ends:
            assert (ids[-1, 0], log_probs[-1, 0]) == (1, 0)


@pytest.mark.slow
def test_the_first_target_of_a_prefix_gets_the_last_word_on_the_prefix(source, tokens, tmp_path):
    pre = preprocessor(source)
    teacher = write(tmp_path, source, tokens, pre)
    window, example = Examples(tokens, pre).windows.example(0, tokens, pre.objective)
    prefix = np.array([[2, *example.inputs]], "int32")
    logits = source({"token_ids": prefix, "padding_mask": np.ones_like(prefix)})
    last = ops.convert_to_numpy(ops.log_softmax(ops.cast(logits, "float32")))[0, -1]
    ids, log_probs = teacher.rows(0, window, example)
    np.testing.assert_allclose(log_probs[0], last[ids[0]], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_carry_the_rows_of_their_labels(source, tokens, tmp_path, objective, packing):
    pre = preprocessor(source, objective, packing=packing)
    teacher = write(tmp_path, source, tokens, pre)
    found = [(y, weight) for _, y, weight in batches(tokens, pre, 4, teacher=teacher)]
    weight = np.concatenate([weight for _, weight in found])
    y = {key: np.concatenate([y[key] for y, _ in found]) for key in found[0][0]}
    plain = np.concatenate([y for _, y, _ in batches(tokens, pre, 4)])
    np.testing.assert_array_equal(y["labels"], plain)
    counted = weight > 0
    sentinel = counted & np.isin(y["labels"], SENTINELS)
    assert np.all(y["teacher_ids"][sentinel][:, 0] == y["labels"][sentinel])
    probabilities = np.exp(y["teacher_log_probs"])
    np.testing.assert_allclose(probabilities[sentinel][:, 0], 1)
    np.testing.assert_allclose(probabilities[~counted].sum(axis=-1), 1)
    assert np.all(probabilities.sum(axis=-1) < 1 + 1e-5)
    # Trained on such text, the source mostly knows the next token: alignment shows.
    text = counted & ~sentinel
    ids, labels = y["teacher_ids"][text], y["labels"][text][:, None]
    hit, beside = (ids == labels).any(axis=1), (ids[:-1] == labels[1:]).any(axis=1)
    assert hit.mean() > beside.mean() + 0.3
    assert not np.isnan(y["teacher_log_probs"]).any()


@pytest.mark.slow
def test_another_epoch_has_rows_of_its_own(source, tokens, tmp_path):
    pre = preprocessor(source, "ul2")
    teacher = write(tmp_path, source, tokens, pre, epochs=2)
    assert len(batches(tokens, pre, 4, epochs=2, teacher=teacher)) > 0
    for batch in batches(tokens, pre, 4, epochs=2, teacher=teacher):
        assert set(batch[1]) == {"labels", "teacher_ids", "teacher_log_probs"}
    once = preprocessor(source, "prefix_lm")
    teacher = write(tmp_path / "once", source, tokens, once)
    assert len(list(batches(tokens, once, 4, epochs=3, teacher=teacher))) > 0


@pytest.mark.slow
def test_stages_have_no_teacher(source, tokens, tmp_path):
    pre = preprocessor(source)
    teacher = write(tmp_path, source, tokens, pre)
    pre.objective = Stages([PrefixLM(), UL2()], [1, 1])
    with pytest.raises(ValueError, match="Received: Stages"):
        batches(tokens, pre, 4, teacher=teacher)


@pytest.mark.slow
def test_sampled_rows_are_different_tokens_at_their_probabilities(source, tokens, tmp_path):
    pre = preprocessor(source)
    teacher = write(tmp_path / "a", source, tokens, pre, method="sample")
    again = write(tmp_path / "b", source, tokens, pre, method="sample")
    windows = Examples(tokens, pre).windows
    window, example = windows.example(2, tokens, pre.objective)
    ids, log_probs = teacher.rows(2, window, example)
    assert all(len(set(row)) == K for row in ids.tolist())
    expected = direct(source, window)[example.positions()[1]]
    np.testing.assert_allclose(np.take_along_axis(expected, ids, -1), log_probs, atol=1e-4)
    assert not np.array_equal(np.sort(ids), np.sort(np.argsort(-expected)[:, :K]))
    assert np.median(np.exp(log_probs).sum(axis=1)) > 0.5  # likely ones, mostly
    np.testing.assert_array_equal(ids, again.rows(2, window, example)[0])


@pytest.mark.slow
def test_float16_is_the_default_and_near(source, tokens, tmp_path):
    pre = preprocessor(source)
    fine = write(tmp_path / "a", source, tokens, pre)
    small = write_teacher(tmp_path / "b", source, tokens, pre, k=K, batch_size=4)
    window, example = Examples(tokens, pre).windows.example(1, tokens, pre.objective)
    found, expected = (t.rows(1, window, example)[1] for t in (small, fine))
    np.testing.assert_allclose(found, expected, rtol=2**-10)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_kill_changes_nothing(source, tokens, tmp_path, monkeypatch):
    pre = preprocessor(source, "ul2")
    write(tmp_path / "whole", source, tokens, pre, method="sample")
    batch, calls = module._Run.batch, []

    def sometimes(self, numbers):
        calls.append(numbers)
        if len(calls) == 6:
            raise Killed
        return batch(self, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "batch", sometimes)
        with pytest.raises(Killed):
            write(tmp_path / "begun", source, tokens, pre, method="sample")
    with pytest.raises(ValueError, match="unfinished"):
        Teacher(tmp_path / "begun")
    write(tmp_path / "begun", source, tokens, pre, method="sample")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "begun" / path.name).read_bytes(), path.name


def test_stale_shuffled_and_damaged_rows_are_refused(source, tokens, tmp_path):
    pre = preprocessor(source, "ul2")
    teacher = write(tmp_path, source, tokens, pre)
    refused = (
        r"Expected the teacher's rows of this example in .*record 0. Received: rows of another"
    )
    ids = source.preprocessor.tokenizer
    other_text = tokenize(["Something else.", *TEXTS[1:]], ids)
    other_seed = EncDecSeq2SeqLMPreprocessor(ids, 16, 16, objective=UL2(), seed=4)
    other_objective = preprocessor(source, "spans")
    for stale_tokens, stale in ((other_text, pre), (tokens, other_seed), (tokens, other_objective)):
        with pytest.raises(ValueError, match=refused):
            batches(stale_tokens, stale, 4, shuffle=False, teacher=teacher)[0]
    window, example = Examples(tokens, pre).windows.example(1, tokens, pre.objective)
    with pytest.raises(ValueError, match=refused):
        teacher.rows(0, window, example)
    whole = (tmp_path / "shards.json").read_text()
    index = json.loads(whole)
    index["shards"] = index["shards"][1:2] + index["shards"][:1] + index["shards"][2:]
    (tmp_path / "shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=refused):
        batches(tokens, pre, 4, shuffle=False, teacher=Teacher(tmp_path))[0]
    (tmp_path / "shards.json").write_text(whole)
    rows = np.load(tmp_path / "00000.ids.npy")
    np.save(tmp_path / "00000.ids.npy", rows[::-1])
    with pytest.raises(ValueError, match=r"00000.ids.npy as it was written.*checksum"):
        batches(tokens, pre, 4, shuffle=False, teacher=Teacher(tmp_path))[0]


def test_bad_input(source, tokens, tmp_path):
    pre = preprocessor(source)
    for arguments, message in (
        ({"k": 0}, "Expected k of at least 1, a whole number of at most 4096. Received: 0"),
        ({"k": 5000}, "Expected k of at least 1, a whole number of at most 4096. Received: 5000"),
        ({"method": "best"}, "Expected method 'top' or 'sample'. Received: 'best'"),
        ({"batch_size": 0}, "Expected batch_size of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            write_teacher(tmp_path, source, tokens, pre, **arguments)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        Teacher(tmp_path)


def test_a_teacher_of_fewer_pieces(tokens, source, tmp_path):
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=100,
        num_layers=1,
        num_query_heads=1,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=8,
        head_dim=8,
    )
    with pytest.raises(ValueError, match=r"of the 4096 tokens .* Received: one of 100"):
        write(tmp_path, keras_hub.models.GemmaCausalLM(backbone), tokens, preprocessor(source))


def test_a_teacher_whose_logits_are_made_otherwise(source, tokens, tmp_path):
    class Other(keras.Model):
        def __init__(self):
            super().__init__()
            self.backbone = source.backbone

        def call(self, x):
            return 2 * source(x)

    with pytest.raises(ValueError, match="Other, whose logits differ"):
        write(tmp_path, Other(), tokens, preprocessor(source))


def test_tokens_of_one_document(source, tmp_path):
    pre = preprocessor(source)
    one = Tokens.from_documents([[300, 301, 1]])
    teacher = write(tmp_path, source, one, pre)
    assert len(teacher) == 1
    _, y, weight = batches(one, pre, 2, teacher=teacher)[0]
    assert y["teacher_ids"].shape == (2, 16, K)
    assert weight.sum() == 2
