"""
Title: Images and texts
Author: keras_encdec
Date created: 2026/11/27
Last modified: 2026/11/27
Description: A T5Gemma 2 that says what it sees: generate, fine-tune, look at predictions, save.
Accelerator: GPU
"""

"""
## Introduction

T5Gemma 2 reads images beside texts: a vision Transformer, SigLIP, turns each image into
a few hundred tokens of the encoder, and the decoder writes about them what it is asked.
That is an encoder-decoder's usual work, with one more kind of input. So everything here is
a call of the other guides with one more column, `images`: questions about a photograph, a
caption, the fields of a form.

This guide teaches such a model to say what is drawn in an image, and looks whether it does,
in images that it has not seen.

With `KERAS_ENCDEC_SMALL=1` it runs on any CPU in about a minute, without network. The
model is then a pair of under a million parameters that knows nothing: its weights, SigLIP's
too, are random numbers. It reads images of 32 pixels instead of 896.
"""

"""
## Setup
"""

"""shell
pip install -q "keras-encdec[cuda,guides]"
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras_encdec
import matplotlib.pyplot as plt
import numpy as np
from keras_encdec import models, spec

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"


def make_tiny(path):
    """A folder in T5Gemma 2's layout, as small as can be, of random weights."""
    attention = spec.AttentionSpec(
        num_heads=4,
        num_kv_heads=2,
        head_dim=24,
        query_pre_attn_scalar=24,
        query_key_norm=spec.NormSpec(),
    )
    side = spec.StackSpec(
        vocabulary_size=4100,
        width=96,
        feedforward_dim=192,
        attention=attention,
        windows=(None, None),
    )
    vision = spec.VisionSpec(
        image_size=32,
        patch_size=4,
        width=64,
        feedforward_dim=128,
        num_layers=1,
        num_heads=4,
        tokens_per_image=16,
        begin_token_id=4096,
        image_token_id=4097,
        end_token_id=4098,
    )
    backbone = models.EncDecBackbone(
        side,
        side,
        cross_attention=spec.CrossAttentionSpec(merged=True),
        tied_embeddings=True,
        vision=vision,
    )
    tokenizer = keras_encdec.from_preset("gemma2_tiny_tiny").preprocessor.tokenizer
    preprocessor = models.EncDecSeq2SeqLMPreprocessor(tokenizer, vision=vision)
    models.EncDecSeq2SeqLM(backbone, preprocessor).export_to_transformers(path)


keras.utils.set_random_seed(0)

if SMALL:
    START, READ, WRITE = "./tiny_t5gemma2", 32, 16
    DRAWN, HELD_OUT, BATCH_SIZE, STEPS, LEARNING_RATE = 2000, 96, 32, 180, 3e-3
    make_tiny(START)
else:
    START, READ, WRITE = "hf://google/t5gemma-2-270m-270m", 320, 16
    DRAWN, HELD_OUT, BATCH_SIZE, STEPS, LEARNING_RATE = 2000, 128, 8, 500, 1e-4

"""
The real weights come from Hugging Face. Accept their licence on
[the model's page](https://huggingface.co/google/t5gemma-2-270m-270m) once, and set
`HF_TOKEN`; in Colab it can be a secret of the notebook. Any folder of that layout loads the
same way.
"""

lm = keras_encdec.from_preset(START, dtype=None if SMALL else "bfloat16")
if not SMALL:
    lm.backbone.enable_lora(16)
lm.preprocessor.encoder_sequence_length = READ
lm.preprocessor.decoder_sequence_length = WRITE
lm.compile(sampler="greedy")

"""
## What an image becomes

Every image is resized to the same square, whatever its shape was, and stands for the same
number of tokens. They count against `encoder_sequence_length`, so leave room for the text;
where there is none, that is an error with the length it takes, as no image is ever cut.
"""

vision = lm.backbone.spec.vision
print(f"{vision.image_size} x {vision.image_size} pixels, as floats from -1 to 1")
print(f"{vision.tokens_per_image} tokens, and one before and one behind them")

"""
Arrays (height, width, 3) of integers from 0 to 255 or of floats from 0 to 1 are images, of
NumPy or any framework; so are pictures of PIL, paths of files, what is in a file as bytes,
and arrays of one channel or of four. What is transparent is put on white, and photographs
stand upright, as in transformers. Here they are drawn: two shapes on a ground, one left of
the other or above it.
"""

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 50),
}
SHAPES = "circle", "square", "triangle"
SIDE = 32
PLACES = np.mgrid[:SIDE, :SIDE]


def inside(shape, middle, radius):
    """(SIDE, SIDE) bool: which pixels belong to a shape."""
    down, right = PLACES - np.reshape(middle, (2, 1, 1))
    if shape == "circle":
        return down**2 + right**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(down), abs(right)) <= radius * 0.85
    return (down <= radius * 0.8) & (2 * abs(right) <= down + radius)


def draw(rng):
    """An image, and the words for it."""
    image = np.full((SIDE, SIDE, 3), rng.integers(200, 256), "uint8")
    relation = str(rng.choice(["left of", "above"]))
    said = []
    for along in (8, 24):  # the first shape is left, or above
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        middle = along + rng.integers(-1, 2), 16 + rng.integers(-5, 6)
        middle = middle[::-1] if relation == "left of" else middle
        image[inside(shape, middle, rng.integers(5, 8))] = COLOURS[colour]
        said.append(f"{colour} {shape}")
    return image, f"{said[0]} {relation} {said[1]}"


def drawn(count, seed):
    """Columns of a data set: what `fit` takes, and a frame or a dataset has."""
    rng = np.random.default_rng(seed)
    images, captions = zip(*(draw(rng) for _ in range(count)), strict=True)
    question = "What is where?"
    return {
        "images": list(images),
        "inputs": [question] * count,
        "targets": list(captions),
    }


train, held_out = drawn(DRAWN, seed=0), drawn(HELD_OUT, seed=1)
print(train["targets"][0])
x, y, sample_weight = lm.preprocessor({name: train[name][:2] for name in train})
print({name: array.shape for name, array in x.items()})

"""
## Ask

`images` beside `text`, or `inputs`: for each text one image, a list of several, or None. They
stand in front of their text, in order; a text that says `<start_of_image>` once for each
image has them there.
"""

image = held_out["images"][0]
print(lm.generate({"images": image, "text": "What is where?"}))
both = "Is <start_of_image> the same as <start_of_image>?"
lm.preprocessor.encoder_sequence_length = 2 * READ
print(lm.generate({"images": [image, image[:, ::-1]], "text": both}))
lm.preprocessor.encoder_sequence_length = READ

"""
## Fine-tune

SigLIP and what projects its states are frozen; the encoder learns what to make of them, and
the decoder what to write. `lm.backbone.vision.trainable = True` before `compile` trains them
too. Losses are means over the tokens of captions: 0 would be certainty of all of them.
"""

lm.compile(keras.optimizers.AdamW(LEARNING_RATE, global_clipnorm=1.0), sampler="greedy")
EPOCHS = 3
history = lm.fit(
    train,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    steps_per_epoch=STEPS // EPOCHS,
    validation_data=held_out,
    verbose=2,
)

"""
## Does it see?

Captions have five parts: a colour and a shape, where, another colour and another shape. What
is right of those of held-out images is counted beside two things that see nothing: captions
of *other* images, which is what guessing comes to, and the same model shown other images.
"""


def parts(caption):
    """The five words of a caption; what the model writes may have other ones, or fewer."""
    words = caption.replace("left of", "left_of").split()
    return [*words, *[""] * 5][:5]


def shares_right(captions):
    """Of each of the five parts, how often it is right."""
    rows = zip(captions, held_out["targets"], strict=True)
    return np.mean([np.equal(parts(a), parts(b)) for a, b in rows], axis=0)


def shifted(column):
    """Of each image that of the next one."""
    return [*column[1:], column[0]]


asked = {"images": held_out["images"], "text": held_out["inputs"]}
written = lm.generate(asked)
blind = lm.generate({**asked, "images": shifted(held_out["images"])})
for name, captions in {
    "guessed": shifted(held_out["targets"]),
    "shown another image": blind,
    "shown its image": written,
}.items():
    whole = np.mean(np.equal(captions, held_out["targets"]))
    print(f"{name}: parts {shares_right(captions).round(2)}, whole {whole:.2f}")

"""
With `KERAS_ENCDEC_SMALL=1`, on a CPU, this printed 0.51 to 0.64 for the colours and 0.36 to
0.51 for the shapes, where guessing has 0.26 to 0.31; which of the two relations it is stayed
a guess (0.47), and 0.05 of the captions were right as a whole. So a minute teaches a random
SigLIP's readers to see colours, shapes in part, and not yet where things are.

`score` asks the other way round: how likely is a caption beside its image, and beside
another?
"""

pairs = {name: column[:16] for name, column in held_out.items()}
right = lm.score(pairs).total.mean()
wrong = lm.score({**pairs, "images": shifted(pairs["images"])}).total.mean()
print(f"its own image {right:.2f}, another's {wrong:.2f} nats")

"""
Numbers do not tell what goes wrong. Look.
"""

figure, axes = plt.subplots(2, 4, figsize=(10, 5.5), layout="constrained")
for axis, image, text, caption in zip(
    axes.flat, held_out["images"], written, held_out["targets"], strict=False
):
    axis.imshow(image)
    axis.set_axis_off()
    axis.set_title(text, fontsize=8, color="black" if text == caption else "crimson")
figure.savefig("predictions.png")

"""
## Keep it

A preset holds all of it, SigLIP included; `export_to_transformers` writes what
`T5Gemma2ForConditionalGeneration` loads.
"""

lm.save_to_preset("./says_what_it_sees")
again = keras_encdec.from_preset("./says_what_it_sees")
again.compile(sampler="greedy")
first = {name: column[:4] for name, column in asked.items()}
print("the same as before it was saved:", again.generate(first) == written[:4])

"""
## Your own images

The same columns, in any form that texts have: rows, a data frame, a Hugging Face dataset
whose column `image` holds pictures or files, a generator, tf.data. Files are read when their
batch is made, so a data set takes the room of its files rather than of its pixels.

    lm.fit({"images": paths, "inputs": questions, "targets": answers})
    lm.fit(datasets.load_dataset("...").rename_columns({"question": "inputs", "answer": "targets"}))
"""

import tensorflow as tf

columns = {**held_out, "images": np.stack(held_out["images"])}
in_tensorflow = tf.data.Dataset.from_tensor_slices(columns)


def rows():
    """A generator; a row may have no image, one or several."""
    for number in range(HELD_OUT):
        yield {name: column[number] for name, column in held_out.items()}


for data in (held_out, in_tensorflow, in_tensorflow.batch(8), rows()):
    print(f"{lm.evaluate(data, verbose=0, return_dict=True)['loss']:.4f}")

"""
Conversations have images in what the user says, `{"messages": [...]}` with parts such as
`{"type": "image", "image": ...}` and `{"type": "text", "text": ...}`, in `fit`, `generate`
and `chat`. What images do not go with is an error that says so: packing, and tasks that read
texts alone.

What to do next: [generate](generation.py) in bulk, [fine-tune on texts](fine_tune_on_pairs.py)
or [share what you have made](share_a_model.py).
"""
