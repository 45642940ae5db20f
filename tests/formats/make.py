"""Writes one of each thing that is kept on disk, as this version writes it, and what it holds.

    python tests/formats/make.py tests/formats/1

A folder is written when a number in `keras_encdec.formats` rises, named by the highest, and
kept for ever: `test_formats.py` reads all of them.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

from keras_encdec.data import Teacher, batches, tokenize, write_teacher
from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import tiny_backbone, to_numpy
from keras_encdec.testing.sources import tiny_source
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training import Checkpoint, Distillation

TEXTS = [f"Text {i} says that {i} and {i} are {2 * i}, and no more of it." for i in range(12)]
PROMPTS = [text[:6] for text in TEXTS[:3]]
LENGTH, RATE = 12, 1e-2


def tokenizer_and_teacher():
    keras.utils.set_random_seed(0)
    lm = tiny_source("Qwen3", TEXTS, 280)
    return lm.preprocessor.tokenizer, lm


def new_lm(tokenizer):
    size = {"windows": (8,), "vocabulary_size": tokenizer.vocabulary_size()}
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    preprocessor = EncDecSeq2SeqLMPreprocessor(tokenizer, LENGTH, LENGTH)
    return compiled(EncDecSeq2SeqLM(backbone, preprocessor))


def compiled(lm):
    lm.compile(keras.optimizers.SGD(RATE, momentum=0.9), sampler="greedy")
    return lm


def facts_of(lm):
    """What a model computes, whatever it was read from."""
    inputs = lm.preprocessor.generate_preprocess(PROMPTS)
    inputs = {name: to_numpy(value) for name, value in inputs.items()}
    return {"logits": to_numpy(lm(inputs)), "texts": np.array(lm.generate(PROMPTS))}


def distilled(lm, tokens, folder):
    """The loss of the rows that a teacher left, for the weights that there are."""
    rows = batches(tokens, lm.preprocessor, teacher=Teacher(folder / "teacher"), batch_size=4)
    lm.compile(distillation=Distillation())
    return lm.evaluate(rows, return_dict=True, verbose=0)["loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    tokenizer, teacher = tokenizer_and_teacher()
    tokens = tokenize(TEXTS, tokenizer, folder / "tokens", shard_size=200)
    lm = new_lm(tokenizer)
    write_teacher(folder / "teacher", teacher, tokens, lm.preprocessor, k=3)
    checkpoint = Checkpoint(folder / "run", every=10)
    lm.fit(tokens, batch_size=4, callbacks=[checkpoint], verbose=0)
    expected = facts_of(lm)
    lm.save_to_preset(folder / "preset")
    lm.backbone.enable_lora(2)
    compiled(lm).fit(TEXTS, batch_size=4, verbose=0)
    lm.backbone.save_lora_weights(folder / "lora.lora.h5")
    expected |= {f"{name}_with_lora": value for name, value in facts_of(lm).items()}
    expected |= {
        "tokens": tokens[: sum(tokens.lengths)],
        "distilled": distilled(lm, tokens, folder),
    }
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main()
