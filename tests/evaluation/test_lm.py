"""lm-eval's three questions, of pairs and of decoder-only models: right values, in any order."""

import keras_hub
import numpy as np
import pytest
from scipy.special import log_softmax

pytest.importorskip("lm_eval")

from chat_templates import GEMMA
from made_tasks import ANSWERS, CONTEXTS, PAIRS, Asked, asked
from qwen_folder import write_qwen

import keras_encdec
from keras_encdec.evaluation import LM
from keras_encdec.evaluation.harness_requests import Writing
from keras_encdec.generation.engine import Engine
from keras_encdec.sharing import catalog
from keras_encdec.testing.models import to_numpy
from keras_encdec.testing.sources import tiny_source


@pytest.fixture(scope="module")
def lm(pair):
    return LM(pair)


@pytest.fixture(scope="module")
def source():
    folder = catalog.embedded("gemma2_tiny_docs")
    return keras_hub.models.CausalLM.from_preset(folder, dtype="float32")


@pytest.fixture(scope="module")
def causal(source):
    return LM(source)


def ids_of(lm, text):
    return [int(i) for i in lm.model.converter.tokenizer(text)]


def of_logits(logits, target):
    """The sum over a target's last places, and whether each is the likeliest."""
    log_probs = log_softmax(logits.astype("float64"), axis=-1)[-len(target) :]
    chosen = log_probs[np.arange(len(target)), target]
    return chosen.sum(), bool((log_probs.argmax(axis=-1) == target).all())


def by_pair(pair, *rows):
    """Computed of the logits of `(read, begun, target)`, all padded to one size."""
    x = {}
    decoder = [[2, *begun, *target[:-1]] for _, begun, target in rows]
    for side, each in (("encoder", [read for read, _, _ in rows]), ("decoder", decoder)):
        ids, mask = padded(each)
        x |= {f"{side}_token_ids": ids, f"{side}_padding_mask": mask}
    logits = to_numpy(pair(x))
    return [
        of_logits(logits[i, : len(decoder[i])], target) for i, (_, _, target) in enumerate(rows)
    ]


def padded(each, rows=10, length=64):
    """One size, as eager operations are compiled for each."""
    ids, mask = (np.zeros((rows, length), "int32") for _ in range(2))
    for i, row in enumerate(each):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def assert_same(found, expected, atol=1e-4):
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=atol)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.slow
def test_loglikelihood_is_that_of_the_logits(lm, pair):
    rows = [(ids_of(lm, c), [], ids_of(lm, a)) for c, a in (r.args for r in PAIRS)]
    assert_same(lm.loglikelihood(PAIRS), by_pair(pair, *rows))


@pytest.mark.slow
def test_a_greedy_continuation_is_known(lm, pair):
    """What greedy search writes is greedy, with another last word it is not."""
    context = CONTEXTS[0]
    (written,) = lm.generate_until(asked((context, {"max_gen_toks": 6})))
    ids = ids_of(lm, written)
    other = lm.model.text([*ids[:-1], ids[-1] + 1])
    assert ids_of(lm, other)[:-1] == ids[:-1]
    found = lm.loglikelihood(asked((context, written), (context, other)))
    assert [greedy for _, greedy in found] == [True, False]


@pytest.mark.slow
def test_order_batch_and_padding_change_nothing(lm, pair, causal, source):
    for whole, task in ((lm, pair), (causal, source)):
        expected = whole.loglikelihood(PAIRS)
        order = np.random.default_rng(0).permutation(len(PAIRS))
        some = [PAIRS[i] for i in order]
        for batch_size in (1, 2, 32):
            longer = asked((" ".join(CONTEXTS), " and a long answer that pads the others"))
            found = LM(task, batch_size=batch_size).loglikelihood([*longer, *some])[1:]
            assert_same(found, [expected[i] for i in order], 1e-5)


@pytest.mark.slow
def test_each_distinct_context_is_read_once(pair, monkeypatch):
    read, states = [], Engine.states

    def counted(self, token_ids, mask, **options):
        read.extend(np.where(mask > 0, token_ids, -1).tolist())
        return states(self, token_ids, mask, **options)

    monkeypatch.setattr(Engine, "states", counted)
    for batch_size in (2, 32):
        read.clear()
        LM(pair, batch_size=batch_size).loglikelihood(PAIRS * 2)
        assert len(read) == len({tuple(row) for row in read}) == len(CONTEXTS)


@pytest.mark.slow
def test_white_space_belongs_to_the_next_word(lm):
    first, second = lm.loglikelihood(asked(("Sort \n", "an"), ("Sort", " \nan")))
    assert first == second


@pytest.mark.slow
def test_an_empty_context_is_the_start_token(lm, pair):
    expected = by_pair(pair, ([2], [], ids_of(lm, "Sort an array")))
    assert_same(lm.loglikelihood(asked(("", "Sort an array"))), expected)
    expected = by_pair(pair, ([2], [], ids_of(lm, " \nSort an array")))
    assert_same(lm.loglikelihood(asked((" \n", "Sort an array"))), expected)
    assert isinstance(lm.generate_until(asked(("", {"max_gen_toks": 3})))[0], str)


@pytest.mark.slow
def test_a_context_is_cut_on_the_left(pair):
    lm = LM(pair, max_length=8)
    context, answer = CONTEXTS[2], " of the"
    kept = ids_of(lm, context)[-8:]
    with pytest.warns(UserWarning, match=r"1 of 2 contexts .* up to \d+ tokens .* 8"):
        found = lm.loglikelihood(asked((context, answer), ("Sort", answer)))
    assert_same(found[:1], by_pair(pair, (kept, [], ids_of(lm, answer))))
    assert lm.cut_contexts == 1


@pytest.mark.slow
def test_prefix_lm_gives_the_decoder_the_second_half(pair):
    lm = LM(pair, split="prefix_lm")
    context = ids_of(lm, CONTEXTS[0])
    half = len(context) // 2
    expected = by_pair(pair, (context[:half], context[half:], ids_of(lm, ANSWERS[0])))
    assert_same(lm.loglikelihood(PAIRS[:1]), expected)
    text = lm.generate_until(asked((CONTEXTS[0], {"max_gen_toks": 4})))[0]
    x = lm.model._inputs([lm.model.ask(context, ())[0]])
    found = lm.model._writer(lm._writing(Asked(("", {})))).generate(
        x, len(context) - half + 5, strip_prompt=True
    )
    assert text == pair.preprocessor.generate_postprocess(found)[0]
    lm = LM(pair, split="prefix_lm", max_length=3)  # the halves do not fit, nor does the whole
    request, left_out = lm.model.ask(context * 60, ())
    assert (len(request.source), len(request.given)) == (3, lm.model.window)
    assert left_out == len(context) * 60 - (3 + lm.model.window - 1)


@pytest.mark.slow
def test_rolling_windows(pair, monkeypatch):
    monkeypatch.setattr(pair.preprocessor, "decoder_sequence_length", 16)
    lm = LM(pair)
    text = " ".join(CONTEXTS)
    ids = ids_of(lm, text)[:36]
    text = lm.model.text(ids)
    assert ids_of(lm, text) == ids
    windows = [([2], ids[:16]), (ids[15:16], ids[16:32]), (ids[19:32], ids[32:])]
    expected = sum(total for total, _ in by_pair(pair, *[(b, [], t) for b, t in windows]))
    np.testing.assert_allclose(lm.loglikelihood_rolling(asked((text,))), [expected], atol=2e-4)


@pytest.mark.slow
def test_texts_are_those_of_generate(lm, pair):
    pair.compile(sampler="greedy")
    expected = [pair.generate(c, 1 + 10) for c in CONTEXTS]
    requests = asked(*[(context, {"max_gen_toks": 10}) for context in CONTEXTS])
    assert lm.generate_until(requests) == expected
    stop = next(c for c in expected[0][2:] if c.isalpha())
    stopped = asked((CONTEXTS[0], {"until": [stop, ""], "max_gen_toks": 10}), requests[1].args)
    assert lm.generate_until(stopped) == [expected[0].partition(stop)[0], expected[1]]
    assert LM(pair, batch_size=1, max_gen_toks=10).generate_until(
        asked(*[(context, {"until": []}) for context in reversed(CONTEXTS)])
    ) == list(reversed(expected))


@pytest.mark.long
def test_what_is_drawn(pair):
    how = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 6}
    requests = asked(*[(CONTEXTS[0], how)] * 3, (CONTEXTS[1], {**how, "do_sample": False}))
    first = LM(pair, seed=3).generate_until(requests)
    assert len(set(first[:3])) > 1  # repeats of a question are asked anew
    assert LM(pair, seed=3, batch_size=1).generate_until(requests) == first
    assert LM(pair, seed=4).generate_until(requests)[:3] != first[:3]
    assert LM(pair, seed=4).generate_until(requests)[3] == first[3]


def test_what_cannot_be_asked(lm, monkeypatch):
    monkeypatch.setattr(lm.model, "score", lambda *_: pytest.fail("it was asked"))
    monkeypatch.setattr(lm.model, "write", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(ValueError, match=r"continuation .* document 7 of task 'some_task'"):
        lm.loglikelihood([*PAIRS[:2], *asked(("new context", ""))])
    with pytest.raises(ValueError, match=r"text of at least one token\. .* document 7"):
        lm.loglikelihood_rolling(asked(("",)))
    with pytest.raises(ValueError, match=r"'repetition_penalty'.*document 7"):
        lm.generate_until(asked(("a", {"repetition_penalty": 1.2})))
    with pytest.raises(ValueError, match=r"max_gen_toks .* document 7"):
        lm.generate_until(asked(("a", {"max_gen_toks": 0})))


def test_models_that_cannot_be_asked(pair):
    with pytest.raises(ValueError, match=r"Did you mean 'gemma2_tiny_tiny'"):
        LM("gemma2_tiny_tinny")
    with pytest.raises(ValueError, match="preprocessor"):
        LM(keras_encdec.models.EncDecSeq2SeqLM(pair.backbone))
    with pytest.raises(ValueError, match=r"split .*Did you mean 'prefix_lm'"):
        LM(pair, split="prefix_ml")
    with pytest.raises(ValueError, match="CausalLM"):
        LM(pair.backbone)
    with pytest.raises(ValueError, match="batch_size"):
        LM(pair, batch_size="auto")


# Decoder-only models.


def by_source(source, *rows):
    """Computed of the logits of `(given, target)`, all padded to one size."""
    read = [[*given, *target[:-1]] for given, target in rows]
    ids, mask = padded(read)
    logits = to_numpy(source({"token_ids": ids, "padding_mask": mask}))
    return [of_logits(logits[i, : len(read[i])], target) for i, (_, target) in enumerate(rows)]


@pytest.mark.slow
def test_a_decoder_only_model_reads_one_text(causal, source):
    each = [(ids_of(causal, c), ids_of(causal, a)) for c, a in (r.args for r in PAIRS)]
    rows = [([2, *context], target) for context, target in each]
    assert_same(causal.loglikelihood(PAIRS), by_source(source, *rows))
    target = ids_of(causal, "Sort an array")
    found = causal.loglikelihood(asked(("", "Sort an array")))
    assert_same(found, by_source(source, ([2], target)))
    short = LM(source, max_length=16)
    kept = 16 - (len(each[6][1]) - 1) - 1
    with pytest.warns(UserWarning, match="1 of 1 contexts"):
        found = short.loglikelihood(PAIRS[6:7])
    assert_same(found, by_source(source, ([2, *each[6][0][-kept:]], each[6][1])))


@pytest.mark.long
def test_texts_of_a_decoder_only_model(causal, source):
    source.compile(sampler="greedy")
    expected = []
    for context in CONTEXTS:
        length = 1 + len(ids_of(causal, context)) + 8
        expected.append(source.generate(context, length, strip_prompt=True))
    requests = asked(*[(context, {"max_gen_toks": 8}) for context in CONTEXTS])
    assert causal.generate_until(requests) == expected
    with pytest.raises(ValueError, match="max_gen_toks below 15"):
        LM(source, max_length=16).generate_until(asked(("a", {"max_gen_toks": 15})))


@pytest.mark.slow
def test_by_name(source, causal):
    lm = LM("gemma2_tiny_docs", batch_size=4)
    assert lm.model.lm.backbone.compute_dtype == "float32"  # Keras' policy, as of a pair
    assert_same(lm.loglikelihood(PAIRS[:4]), causal.loglikelihood(PAIRS[:4]), 1e-5)


# Chats.


def test_chats_are_framed_by_the_tokenizer():
    texts = ["Hello there, how are you?", "Fine. What is an array?"]
    lm = LM(keras_encdec.adapt(tiny_source("Qwen3", texts)))
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "What?"},
    ]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nFine.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert lm.apply_chat_template(history) == expected
    begun = [*history, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == f"{expected}It is"
    (ids,) = lm.model.contexts([expected])
    assert ids.count(lm.model.converter.tokenizer.token_to_id("<|im_end|>")) == 4
    assert "<|im_end|>" in lm.tokenizer_name
    assert "{user}" in lm.chat_template(True)
    with pytest.raises(ValueError, match="in turn"):
        lm.apply_chat_template(history[:3])


def test_chats_are_framed_by_a_template():
    pair = keras_encdec.from_preset("gemma2_tiny_tiny")
    plain = LM(pair)
    pair.preprocessor.chat_template = GEMMA
    lm = LM(pair)
    history = [{"role": "user", "content": "What?"}]
    assert lm.apply_chat_template(history) == f"<bos>{plain.apply_chat_template(history)}"
    texts = [found.apply_chat_template(history) for found in (lm, plain)]
    (framed,), (bare,) = lm.model.contexts(texts[:1]), plain.model.contexts(texts[1:])
    assert framed == [pair.preprocessor.start_token_id, *bare]
    assert lm.chat_template(True) == GEMMA
    assert lm.tokenizer_name != plain.tokenizer_name


@pytest.mark.slow
def test_folders_of_transformers(tmp_path):
    """A decoder-only folder without a start token, and a pair of it with another vocabulary."""
    lm = LM(str(write_qwen(tmp_path)))
    task, tokens = lm.model.lm, lm.model.targets
    context, target = tokens(["Return the sum of"])[0], tokens([" array elements"])[0]
    (found,) = lm.loglikelihood(asked(("Return the sum of", " array elements")))
    assert_same([found], by_source(task, (context, target)))
    end = lm.model.converter.tokenizer.end_token_id
    (found,) = lm.loglikelihood(asked(("", " array elements")))
    assert_same([found], by_source(task, ([end], target)))
    (written,) = lm.model.write([lm.model.ask(context, ())[0]], Writing(most=5), 0, 1)
    best = []
    for _ in written:
        ids, mask = padded([[*context, *best]])
        logits = to_numpy(task({"token_ids": ids, "padding_mask": mask}))[0]
        best.append(int(logits[len(context) + len(best) - 1].argmax()))
    assert written == best
    assert len(best) == 5 or best[-1] == end


@pytest.mark.long
def test_two_vocabularies(tmp_path):
    pair = keras_encdec.adapt(str(write_qwen(tmp_path)), "gemma2_mini_docs")
    pair.preprocessor.decoder_sequence_length = 8
    lm = LM(pair)
    reads, writes = pair.preprocessor.encoder_tokenizer, pair.preprocessor.tokenizer
    context = [int(i) for i in reads("Return the sum")]
    target = ids_of(lm, " of array elements")
    (found,) = lm.loglikelihood(asked(("Return the sum", " of array elements")))
    assert_same([found], by_pair(pair, (context, [], target)))
    text = "Sort the array in place; the order of equal elements is kept."
    ids = ids_of(lm, text)
    assert 16 < len(ids) <= 24
    start = reads.end_token_id  # Qwen has no start token
    before = [[start], list(reads(writes.detokenize(ids[7:8])))]
    before.append(list(reads(writes.detokenize(ids[len(ids) - 9 : 16]))))
    windows = ids[:8], ids[8:16], ids[16:]
    rows = [(b, [], t) for b, t in zip(before, windows, strict=True)]
    expected = sum(total for total, _ in by_pair(pair, *rows))
    np.testing.assert_allclose(lm.loglikelihood_rolling(asked((text,))), [expected], atol=1e-4)
    with pytest.raises(ValueError, match="prefix_lm"):
        LM(pair, split="prefix_lm")
