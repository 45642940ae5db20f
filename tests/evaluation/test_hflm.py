"""What lm-eval's own model for transformers says of our export, kept as arrays and asked anew."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from made_tasks import asked

import keras_encdec
from keras_encdec.evaluation import LM

PARITY = Path(__file__).parents[1] / "parity"
HOW = {"until": ["\n"], "max_gen_toks": 24, "do_sample": False}
WINDOW = 128


@pytest.fixture(scope="module")
def lm():
    pair = keras_encdec.from_preset("gemma2_tiny_tiny")
    pair.preprocessor.decoder_sequence_length = WINDOW
    return LM(pair, max_length=WINDOW)


@pytest.fixture(scope="module")
def reference():
    with np.load(PARITY / "lm_eval_seq2seq.npz") as found:
        return dict(found)


@pytest.mark.slow
def test_continuations(lm, reference):
    found = lm.loglikelihood(asked(*map(tuple, reference["pairs"].tolist())))
    np.testing.assert_allclose([x for x, _ in found], reference["totals"], atol=1e-4)
    assert [greedy for _, greedy in found] == reference["greedy"].tolist()
    assert 0 < reference["greedy"].sum() < len(found)


@pytest.mark.slow
def test_windows(lm, reference):
    found = lm.loglikelihood_rolling(asked(*[(text,) for text in reference["long"].tolist()]))
    np.testing.assert_allclose(found, reference["rolled"], rtol=2e-6)
    assert max(len(lm.model.targets([text])[0]) for text in reference["long"]) > WINDOW


@pytest.mark.slow
def test_texts(lm, reference):
    found = lm.generate_until(asked(*[(c, HOW) for c in reference["contexts"].tolist()]))
    assert found == reference["texts"].tolist()


@pytest.mark.slow
@pytest.mark.transformers
def test_asked_anew(lm, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from make_lm_eval_reference import asked as requests_of
    from make_lm_eval_reference import pieces, texts_of, theirs

    pairs = pieces(lm.model.converter.tokenizer, 40, seed=1)
    requests, other = requests_of(pairs), theirs(lm.model.lm, tmp_path / "export")
    for kind, some in requests.items():
        found = getattr(lm, kind)(some)
        if kind == "generate_until":
            assert found == texts_of(other, some)
        else:
            np.testing.assert_allclose(found, getattr(other, kind)(some), atol=1e-4, rtol=2e-6)
