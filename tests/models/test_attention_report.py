"""What `attention_report` says is what a step takes."""

import keras
import pytest

from keras_encdec.layers import attention
from keras_encdec.models import EncDecSeq2SeqLM
from keras_encdec.spec import CrossAttentionSpec
from keras_encdec.testing.models import make_inputs, tiny_backbone
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder, tiny_pair

LONG = "xla_by_head" if keras.backend.backend() == "jax" else "plain"  # under a soft cap, on a CPU
LENGTHS = {"source": 640, "target": 576}


@pytest.mark.slow
def test_each_kind_has_a_row():
    lm = EncDecSeq2SeqLM(tiny_backbone())
    report = lm.attention_report(**LENGTHS)
    kinds = [(row.kind, row.layers, row.queries, row.keys) for row in report.rows]
    assert kinds == [
        ("encoder, window 8", 2, 640, 640),
        ("encoder, all tokens", 2, 640, 640),
        ("decoder, window 6", 1, 576, 576),
        ("decoder, all tokens", 1, 576, 576),
        ("decoder to encoder", 2, 576, 640),
    ]
    assert {row.choice.path for row in report.rows} == {LONG}
    lines = str(report).splitlines()
    assert lines[0].split("  ")[0] == "attention"
    assert lines[0].endswith("faster ones, and why not they")
    assert lines[1].startswith("encoder, window 8    2       640 x 640 ")
    if LONG != "plain":
        assert lines[1].endswith("splash runs on tpu, and this is cpu")


def test_it_follows_setting_and_lengths():
    lm = EncDecSeq2SeqLM(tiny_backbone())
    short = lm.attention_report(source=64, target=8192)
    taken = [row.choice.path for row in short.rows]
    assert taken == ["plain", "plain", LONG, LONG, LONG]
    lm.backbone.attention = "plain"
    assert {row.choice.path for row in lm.attention_report(**LENGTHS).rows} == {"plain"}
    with pytest.raises(ValueError, match="Expected source of at least 1"):
        lm.attention_report(source=0)


def test_merged_attention_is_plain():
    merged = CrossAttentionSpec(merged=True, layers=(0,))
    sides = tiny_encoder(), tiny_encoder(windows=(None, None))
    pair = tiny_pair(encoder=sides[0], decoder=sides[1], cross_attention=merged)
    rows = EncDecSeq2SeqLM(tiny_backbone(pair)).attention_report(**LENGTHS).rows
    assert [(row.kind, row.choice.path) for row in rows[2:]] == [
        ("decoder, all tokens, merged with the encoder's", "plain"),
        ("decoder, all tokens", LONG),
    ]
    assert rows[2].choice.refused == (("fused", "takes no merged attention"),)


@pytest.mark.slow
def test_a_forward_pass_takes_what_is_reported(monkeypatch):
    taken = []

    def noted(path, problem, choose=attention.choice.choose):
        chosen = choose(path, problem)
        taken.append((problem, chosen))
        return chosen

    monkeypatch.setattr(attention.choice, "choose", noted)
    encoder, decoder = tiny_encoder(windows=(8, None)), tiny_decoder(windows=(6, None))
    lm = EncDecSeq2SeqLM(tiny_backbone(tiny_pair(encoder=encoder, decoder=decoder)))
    inputs = make_inputs((640, 3), (576, 5))
    taken.clear()  # of making the model
    lm(inputs)
    rows = lm.attention_report(**LENGTHS, batch_size=2).rows
    own, cross = rows[:4], rows[4]
    expected = [own[0], own[1], own[2], cross, own[3], cross]
    assert [chosen for _, chosen in taken] == [row.choice for row in expected]
    for problem, _ in taken:
        assert problem.query[0] == 2
        assert problem.limits is not None
