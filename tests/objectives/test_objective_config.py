"""Objectives as JSON and back, and what they take from a tokenizer."""

import json
import re

import keras_hub
import numpy as np
import pytest
import tokenizers
from qwen_folder import write_qwen

from keras_encdec.models.json_tokenizer import JsonTokenizer
from keras_encdec.objectives import UL2, Mixture, Objective, PrefixLM, SpanCorruption, Stages
from keras_encdec.objectives.config import from_config, to_config
from keras_encdec.objectives.control import plain
from keras_encdec.objectives.tokenizer import encode
from keras_encdec.sharing import catalog

OBJECTIVES = [
    PrefixLM("random", 0.25),
    SpanCorruption(8, 0.5, sentinels=(9, 8, 7), overflow="cap"),
    UL2("t5gemma2", mode_tokens=True),
    UL2([SpanCorruption(), PrefixLM("random")], [3, 1], mode_tokens={"R": (1,), "S": (2,)}),
    Mixture([PrefixLM(), UL2(overflow="error")], [0.7, 0.3]),
    Stages([UL2(), PrefixLM()], [0.9, 0.1]),
]


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_json_and_back(objective):
    config = json.loads(json.dumps(to_config(objective)))
    again = from_config(config)
    assert to_config(again) == to_config(objective)
    assert type(again) is type(objective)
    if isinstance(objective, Objective):
        tokens = np.arange(1000, 1400, dtype="int32")
        if objective == OBJECTIVES[2]:
            return  # needs a tokenizer
        one, other = objective(tokens, 3), again(tokens, 3)
        assert one.inputs.tolist() == other.inputs.tolist()


@pytest.mark.parametrize("name", ["ul2", "ul2r", "t5gemma2", "prefix_lm"])
def test_names(name):
    assert isinstance(from_config(name), Objective)


@pytest.mark.parametrize("config", ["ul3", {"class": "Nonsense"}, {}, 7, lambda tokens, seed: None])
def test_no_objective(config):
    with pytest.raises(ValueError, match=r"Expected an objective.*Received"):
        from_config(config)


def test_an_objective_of_ones_own_cannot_be_saved():
    class Mine(Objective):
        pass

    with pytest.raises(ValueError, match=r"to save it\. Received"):
        to_config(Mine())


def test_sentinels_and_mode_tokens_come_from_the_tokenizer(tokenizer):
    bound = Mixture([PrefixLM(), UL2(mode_tokens=True)]).bind(tokenizer).objectives[1]
    spans = [d for d in bound.mixture.objectives if isinstance(d, SpanCorruption)]
    ids = [tokenizer.token_to_id(f"<unused{i}>") for i in range(99)]
    assert [list(d.sentinels) for d in spans] == [ids] * 6
    assert {k: list(v) for k, v in bound.mode_tokens.items()} == {
        "R": list(tokenizer("[NLU]")),
        "X": list(tokenizer("[NLG]")),
        "S": list(tokenizer("[S2S]")),
    }
    own = SpanCorruption(sentinels=(5, 4)).bind(tokenizer)
    assert own.sentinels == (5, 4)


@pytest.mark.parametrize(
    "piece",
    [
        "<|reserved_special_token_0|>",  # Llama 3
        "[control_8]",  # Mistral 7B v0.3
        "<SPECIAL_14>",  # Mistral NeMo
        "<|reserved_200013|>",  # gpt-oss
        "<|extra_id_0|>",  # OLMo 2
    ],
)
def test_what_other_vocabularies_keep_free(tmp_path, piece):
    path = write_qwen(tmp_path) / "tokenizer.json"
    known = tokenizers.Tokenizer.from_file(str(path))
    number = int(re.search(r"\d+", piece)[0])
    free = [re.sub(r"\d+", str(number + i), piece) for i in (0, 1, 5)]
    known.add_special_tokens(free)
    known.save(str(path))
    tokenizer = JsonTokenizer(path, end_token="<|endoftext|>")
    sentinels = SpanCorruption().bind(tokenizer).sentinels
    assert [tokenizer.id_to_token(i) for i in sentinels] == free
    (ids,) = encode(tokenizer, plain(tokenizer, [f"A text that spells {piece}, for all that."]))
    assert not set(ids) & set(sentinels)


class WithoutSentinels:
    """A tokenizer that answers unknown pieces with <unk>, as SentencePiece does."""

    def token_to_id(self, piece):
        return 3

    def id_to_token(self, token_id):
        return "<unk>"


def test_a_tokenizer_without_sentinels():
    with pytest.raises(ValueError, match=r"Expected a tokenizer .*Pass sentinels"):
        SpanCorruption().bind(WithoutSentinels())
    assert PrefixLM().bind(WithoutSentinels()) == PrefixLM()
