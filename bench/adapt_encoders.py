"""One decoder-only model made an encoder in several ways, for comparisons of what they have learnt.

    python bench/adapt_encoders.py FOLDER [--steps 1000]
    keras-encdec superglue DATA --output FOUND --models source=gemma2_mini_docs:causal \
        bidirectional=gemma2_mini_docs prefix=FOLDER/prefix_lm ul2=FOLDER/ul2 mntp=FOLDER/mntp
    python bench/retrieval.py --models source=gemma2_mini_docs:causal ...

The pair is balanced, its cross-attention is initialised from self-attention, and it is adapted
by PrefixLM or by UL2; the third arm is the encoder alone, by MNTP. All see the same docstrings in
windows of as many tokens, as many of them a step, and the same rate. What is there already is left.
"""

import argparse
from pathlib import Path

import keras

import keras_encdec
from keras_encdec.data import docstrings
from keras_encdec.models import EncDecMaskedLM
from keras_encdec.objectives import UL2, PrefixLM
from keras_encdec.progress import track

WINDOW = 64


def of_pair(source, objective):
    lm = keras_encdec.adapt(source)
    pre = lm.preprocessor
    pre.objective, pre.packing = objective, True
    pre.encoder_sequence_length = pre.decoder_sequence_length = WINDOW
    return lm


def masked(source):
    return EncDecMaskedLM.from_preset(source, sequence_length=2 * WINDOW, packing=True)


ARMS = {
    "prefix_lm": lambda source: of_pair(source, PrefixLM()),
    "ul2": lambda source: of_pair(source, UL2()),
    "mntp": masked,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, value in {"steps": 1000, "batch": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--source", default="gemma2_mini_docs")
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    train, held = docstrings.load(progress=lambda files: track(files, "Reading docstrings"))
    for arm, make in ARMS.items():
        if (options.folder / arm).exists():
            continue
        keras.utils.set_random_seed(0)
        model = make(options.source)
        rate = keras.optimizers.schedules.CosineDecay(options.rate, options.steps)
        model.compile(keras.optimizers.AdamW(rate, global_clipnorm=1.0))
        history = model.fit(
            [text.text for text in train],
            batch_size=options.batch,
            steps_per_epoch=options.steps // 4,
            epochs=4,
            validation_data=[text.text for text in held][:256],
            verbose=2,
        ).history
        model.save_to_preset(options.folder / arm)
        print(arm, [round(loss, 3) for loss in history["val_loss"]], flush=True)


if __name__ == "__main__":
    main()
