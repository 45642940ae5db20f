"""What the catalogue of bad input is tried on, and a look at what each case left behind."""

import hashlib
import types

import keras_hub
import pytest

from keras_encdec.data import Tokens
from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_backbone
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder

TEXTS = ["A text.", "Another text.", "A third one."]


def make_lm(tokenizer):
    size = {"windows": (8,), "vocabulary_size": 4096}
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    lm = EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 16))
    lm.compile(sampler="greedy")
    return lm


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """One of each: `lm`, `pre`, `tokenizer`, `tokens`, `texts`, `pairs`, `x`, a `source`."""
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    lm = make_lm(tokenizer)
    found = types.SimpleNamespace(lm=lm, pre=lm.preprocessor, tokenizer=tokenizer, texts=TEXTS)
    found.pairs = {"encoder_text": TEXTS, "decoder_text": TEXTS}
    found.tokens = Tokens.from_documents([[5, 6, 7, 1]] * 9, 4096)
    found.x = make_inputs()
    found.source = catalog.embedded("gemma2_mini_docs")
    found.teacher = keras_hub.models.CausalLM.from_preset(found.source)
    return found


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, empty, and as it was when a case has ended."""
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    yield tmp_path
    assert contents(tmp_path) == before
