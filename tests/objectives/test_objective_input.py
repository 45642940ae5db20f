"""What cannot be is refused, with what was expected and what was received."""

import numpy as np
import pytest

from keras_encdec.objectives import UL2, Mixture, PrefixLM, SpanCorruption, Stages

TOKENS = np.arange(1000, 1100, dtype="int32")

BAD_TOKENS = {
    "none": [],
    "one": [1000],
    "two axes": [[1000, 1001]],
    "floats": [1000.0, 1001.0],
    "negative": [1000, -1],
}


@pytest.mark.parametrize("objective", [PrefixLM(), PrefixLM("random"), SpanCorruption(), UL2()])
@pytest.mark.parametrize("tokens", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_tokens(objective, tokens):
    with pytest.raises(ValueError, match=r"Expected .* Received"):
        objective(np.array(tokens), 0)


def test_sentinels_in_the_data():
    with pytest.raises(ValueError, match="Received: 8, which stands for a hidden span"):
        SpanCorruption()(np.array([1000, 8, 1001, 1002]), 0)
    PrefixLM()(np.array([1000, 8, 1001, 1002]), 0)  # needs none


def test_more_spans_than_sentinels_can_be_an_error():
    objective = SpanCorruption(3, 0.5, overflow="error")
    objective(np.arange(1000, 1500), 0)
    with pytest.raises(ValueError, match=r"at most 99 spans.*Received: 766 tokens.*in 128"):
        objective(np.arange(1000, 1766), 0)


def test_mode_tokens_need_a_tokenizer():
    with pytest.raises(ValueError, match="bind"):
        UL2(mode_tokens=True)(TOKENS, 0)


MAKERS = {
    "mean_span": lambda: SpanCorruption(0.5),
    "rate of all": lambda: SpanCorruption(3, 1.0),
    "rate of none": lambda: PrefixLM("random", 0.0),
    "split": lambda: PrefixLM("third"),
    "overflow": lambda: SpanCorruption(overflow="wrap"),
    "no sentinels": lambda: SpanCorruption(sentinels=()),
    "twice the same sentinel": lambda: SpanCorruption(sentinels=(5, 5)),
    "mixture": lambda: UL2("ul3"),
    "denoiser": lambda: UL2([Mixture([PrefixLM()])]),
    "no denoisers": lambda: UL2([]),
    "rates of zero": lambda: UL2(rates=[0] * 7),
    "negative rate": lambda: Mixture([PrefixLM(), UL2()], [2, -1]),
    "rate that is no number": lambda: Mixture([PrefixLM(), UL2()], [1, float("nan")]),
    "too few rates": lambda: Mixture([PrefixLM(), UL2()], [1]),
    "no objective": lambda: Mixture(["ul2"]),
    "stages of nothing": lambda: Stages([PrefixLM(), UL2()], [0, 0]),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_settings(make):
    with pytest.raises(ValueError, match=r"Expected .* Received"):
        make()
