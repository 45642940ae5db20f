"""A short run with everything that a state holds; prints a digest of what it ends with.

`python run_killable.py FOLDER`: dropout, warm-up of the cross-attention, checkpoints so
often that one is nearly always being written. Says "begun" at its first step.
`python run_killable.py FOLDER policy`: answers that are drawn and rewarded, an anchor that
follows, and their file beside the folder.
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
from keras_encdec.training import RLOO, Checkpoint, CrossAttentionWarmup

ROWS, EPOCHS, WARMUP = 30, 10, 40


class Begun(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.said = False

    def on_train_batch_end(self, batch, logs=None):
        if not self.said:
            print("begun", flush=True)
        self.said = True


def pairs(folder):
    """A task and what it is fitted on."""
    one = {"windows": (8,), "dropout": 0.1}
    lm = tiny_lm(pair=PairSpec(tiny_encoder(**one), tiny_decoder(**one)))
    lm.compile(keras.optimizers.AdamW(1e-2, global_clipnorm=1.0))
    x = make_inputs(source=range(1, ROWS + 1), target=range(ROWS, 0, -1))
    y, weight = np.roll(x["decoder_token_ids"], -1, 1), x["decoder_padding_mask"]
    warmup = [CrossAttentionWarmup(WARMUP)]
    return lm, (x, y), {"sample_weight": weight.astype("float32"), "callbacks": warmup}


def policy(folder):
    """The same, of prompts alone."""
    size = {"windows": (8,), "vocabulary_size": 4096}
    backbone = tiny_backbone(PairSpec(tiny_encoder(**size), tiny_decoder(**size)))
    tokenizer = keras_hub.models.Tokenizer.from_preset(catalog.embedded("gemma2_tiny_docs"))
    lm = EncDecSeq2SeqLM(backbone, EncDecSeq2SeqLMPreprocessor(tokenizer, 16, 6))

    def is_long(prompts, texts, records):
        return [len(text) / 10 for text in texts]

    options = {"num_samples": 2, "reference": "ema", "path": f"{folder}.jsonl"}
    lm.compile(keras.optimizers.Adam(1e-2), loss=RLOO(is_long, **options))
    return lm, ([f"Prompt {i}." for i in range(8)],), {"callbacks": []}


def main(folder, kind="pairs"):
    keras.utils.set_random_seed(0)
    lm, data, options = {"pairs": pairs, "policy": policy}[kind](folder)
    callbacks = [Checkpoint(folder, every=2), *options.pop("callbacks"), Begun()]
    options |= {"batch_size": 2, "epochs": EPOCHS, "verbose": 0, "callbacks": callbacks}
    lm.fit(*data, **options)
    every = [*lm.variables, *lm.optimizer.variables, *lm.anchor_variables]
    state = [np.ascontiguousarray(keras.ops.convert_to_numpy(v.value)).tobytes() for v in every]
    drawn = Path(f"{folder}.jsonl")
    state += [drawn.read_bytes()] if drawn.exists() else []
    print("digest", hashlib.sha256(b"".join(state)).hexdigest(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
