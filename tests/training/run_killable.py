"""A short run with everything that a state holds; prints a digest of what it ends with.

`python run_killable.py FOLDER`: dropout, warm-up of the cross-attention, checkpoints so
often that one is nearly always being written. Says "begun" at its first step. With
`preferences` behind it, LoRA learns from preferred answers, by a reference kept in the folder; with
`policy`, from rewards of answers that it draws, beside an anchor that follows it.
"""

import hashlib
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np

from keras_encdec.models import EncDecSeq2SeqLM, EncDecSeq2SeqLMPreprocessor
from keras_encdec.sharing import catalog
from keras_encdec.spec import PairSpec
from keras_encdec.testing.models import make_inputs, tiny_backbone, tiny_lm
from keras_encdec.testing.specs import tiny_decoder, tiny_encoder
from keras_encdec.training import DPO, RLOO, Checkpoint, CrossAttentionWarmup

ROWS, EPOCHS, WARMUP = 30, 10, 40


class Begun(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.said = False

    def on_train_batch_end(self, batch, logs=None):
        if not self.said:
            print("begun", flush=True)
        self.said = True


def main(folder, what="tokens"):
    keras.utils.set_random_seed(0)
    RUNS[what](folder)


def on_tokens(folder):
    one = {"windows": (8,), "dropout": 0.1}
    lm = tiny_lm(pair=PairSpec(tiny_encoder(**one), tiny_decoder(**one)))
    lm.compile(keras.optimizers.AdamW(1e-2, global_clipnorm=1.0))
    x = make_inputs(source=range(1, ROWS + 1), target=range(ROWS, 0, -1))
    y, weight = np.roll(x["decoder_token_ids"], -1, 1), x["decoder_padding_mask"]
    callbacks = [Checkpoint(folder, every=2), CrossAttentionWarmup(WARMUP), Begun()]
    options = {"batch_size": 2, "epochs": EPOCHS, "verbose": 0, "callbacks": callbacks}
    lm.fit(x, y, sample_weight=weight.astype("float32"), **options)
    print_digest(lm)


def on_preferences(folder):
    one = {"windows": (8,), "dropout": 0.1, "vocabulary_size": 4096}
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    backbone = tiny_backbone(PairSpec(tiny_encoder(**one), tiny_decoder(**one)))
    backbone.enable_lora(2)
    lm = EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer, 24, 12))
    lm.compile(keras.optimizers.AdamW(1e-2), loss=DPO(path=f"{folder}/reference"))
    answers = [f"Mean of {i}." for i in range(ROWS)]
    data = {"prompt": [f"Of {i}?" for i in range(ROWS)], "chosen": answers}
    data["rejected"] = [*answers[1:], answers[0]]
    callbacks = [Checkpoint(f"{folder}/run", every=2), Begun()]
    lm.fit(data, batch_size=2, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    print_digest(lm)


def on_policy(folder):
    size = {"windows": (8,), "vocabulary_size": 4096}
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    lm = EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 6))
    path = Path(folder) / "rollouts.jsonl"
    loss = RLOO(lengths, num_samples=2, reference="ema", path=str(path))
    lm.compile(keras.optimizers.Adam(1e-2), loss=loss)
    callbacks = [Checkpoint(f"{folder}/run", every=2), Begun()]
    prompts = [f"Prompt {i}." for i in range(8)]
    lm.fit(prompts, batch_size=2, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    print_digest(lm, path.read_bytes())


def lengths(prompts, texts, records):
    return [len(text) / 10 for text in texts]


RUNS = {"tokens": on_tokens, "preferences": on_preferences, "policy": on_policy}


def print_digest(lm, *files):
    every = [*lm.variables, *lm.optimizer.variables, *lm.anchor_variables]
    state = [np.ascontiguousarray(keras.ops.convert_to_numpy(v.value)).tobytes() for v in every]
    digest = hashlib.sha256(b"".join([*state, *files]))
    print("digest", digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
