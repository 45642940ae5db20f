"""What was answered is on disk: nothing is asked twice, nothing damaged is believed."""

import json

import pytest

pytest.importorskip("lm_eval")

from made_tasks import CONTEXTS, PAIRS, asked

from keras_encdec.evaluation import LM
from keras_encdec.evaluation.harness_answers import Answers

WRITTEN = asked(*[(context, {"max_gen_toks": 4}) for context in CONTEXTS])
DRAWN = asked(*[(CONTEXTS[0], {"do_sample": True, "max_gen_toks": 4})] * 3)


def all_of(lm):
    return lm.loglikelihood(PAIRS), lm.generate_until(WRITTEN), lm.generate_until(DRAWN)


def refuse(lm, monkeypatch):
    for name in ("score", "write"):
        monkeypatch.setattr(lm.model, name, lambda *_: pytest.fail("it was asked again"))


@pytest.mark.slow
def test_nothing_is_asked_twice(pair, tmp_path, monkeypatch):
    path = tmp_path / "new" / "answers.jsonl"
    expected = all_of(LM(pair))
    assert all_of(LM(pair, answers=path)) == expected
    again = LM(pair, answers=path)
    refuse(again, monkeypatch)
    assert all_of(again) == expected


@pytest.mark.slow
def test_it_goes_on_where_it_broke_off(pair, tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    lm = LM(pair, answers=path, batch_size=1)
    score, left = lm.model.score, [1]

    def broken(requests, batch_size):
        if not left.pop() if left else True:
            raise KeyboardInterrupt
        return score(requests, batch_size)

    monkeypatch.setattr(lm.model, "score", broken)
    with pytest.raises(KeyboardInterrupt):
        lm.loglikelihood(PAIRS)
    kept = len(path.read_text().splitlines()) - 1
    assert 0 < kept < len(PAIRS)
    lm = LM(pair, answers=path)
    counted, score = [], lm.model.score
    monkeypatch.setattr(lm.model, "score", lambda r, n: counted.extend(r) or score(r, n))
    found = lm.loglikelihood(PAIRS)
    assert len(counted) == len(PAIRS) - kept
    expected = LM(pair).loglikelihood(PAIRS)
    for (one, greedy), (other, also) in zip(found, expected, strict=True):
        assert abs(one - other) < 1e-5
        assert greedy == also


def add(answers, **new):
    with answers.open():
        answers.add(new)


def test_damage_is_left_out_and_told(tmp_path):
    path = tmp_path / "answers.jsonl"
    add(Answers(path), a=[-1.5, True], b="text \u2028 and more")
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole.replace(b"-1.5", b"-2.5"), whole[:-1] + b",\n"):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="broke off or is damaged"):
            add(again := Answers(path), c=3)
        assert ("a" in again) == (b"-1.5" in damaged)
        assert "b" not in again
        with (found := Answers(path)).open():
            assert found["c"] == 3
    path.write_bytes(whole)
    with (found := Answers(path)).open():
        assert (found["a"], found["b"]) == ([-1.5, True], "text \u2028 and more")


@pytest.mark.parametrize("text", ["", "a letter\n", "{}\n", '{"key": 1}\n'])
def test_other_files_are_not_touched(tmp_path, text):
    path = tmp_path / "letter.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"Expected a file of answers"):
        Answers(path)
    assert path.read_text() == text


def test_a_later_format(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"format": {"number": 99, "version": "9.0"}}) + "\n")
    with pytest.raises(ValueError, match=r"keras-encdec>=9.0"):
        Answers(path)


def test_two_at_a_time(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Answers(path).open(), pytest.raises(BlockingIOError), Answers(path).open():
        pass


@pytest.mark.slow
def test_other_weights_other_answers(pair, tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    before = LM(pair, answers=path).loglikelihood(PAIRS[:1])
    weight = pair.backbone.decoder.weights[-1]
    kept = weight.numpy() if hasattr(weight, "numpy") else weight.value
    try:
        weight.assign(weight.value + 0.5)
        assert LM(pair, answers=path).loglikelihood(PAIRS[:1]) != before
    finally:
        weight.assign(kept)
    assert LM(pair, answers=path).loglikelihood(PAIRS[:1]) == before
