"""
Title: Share a model
Author: keras_encdec
Date created: 2026/11/25
Last modified: 2026/11/25
Description: A card that tells how it was made, its licence, Kaggle, Hugging Face, transformers.
Accelerator: GPU
"""

"""
## Introduction

A model that others can use is more than its weights: what it was made of and under which
licence, what it learnt from and for how long, how it is loaded. A model of this package
remembers that from its conversion on, and writes it into a card when it is saved. This
guide goes from a trained model to one that anybody can load by a handle.

It is written for one GPU of 40 GB. With `KERAS_ENCDEC_SMALL=1` the same code runs on any
CPU in about a minute, without network: the model is a pair of 3.4 million parameters
that ships with the package, it is trained for 4 steps, and nothing is uploaded.
"""

"""
## Setup
"""

"""shell
pip install -q "keras-encdec[cuda,guides]"
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
# JAX takes 75% of a GPU's memory unless it is told to take more.
os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "1.00"

import gc
from pathlib import Path

import keras
import keras_encdec
from keras_encdec.data import docstrings

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

if SMALL:
    PAIR, PACKAGES, LENGTH, STEPS = "gemma2_mini_docs", ["keras"], 32, 4
else:
    PAIR, PACKAGES, LENGTH, STEPS = "gemma2_2b_2b", docstrings.PACKAGES, 512, 1000

keras.utils.set_random_seed(0)

"""
## A model to share

Any will do; this one is adapted as in [the first guide](convert_and_adapt.py).
"""

train_docs, held_out_docs = docstrings.load(PACKAGES)
lm = keras_encdec.from_preset(PAIR, dtype="mixed_bfloat16")
lm.preprocessor.encoder_sequence_length = LENGTH
lm.preprocessor.decoder_sequence_length = LENGTH
lm.backbone.enable_lora(8)
lm.compile(keras.optimizers.AdamW(1e-4, global_clipnorm=1.0), sampler="greedy")
lm.fit([doc.text for doc in train_docs], batch_size=8, steps_per_epoch=STEPS, verbose=2)
prompt = held_out_docs[0].text[:80]
text = lm.generate(prompt, max_length=24)

"""
## What it remembers

`lm.provenance` lists the sources with their licences, and everything that was done since:
the conversion, each `fit` with its objective, tokens, steps and losses, LoRA,
quantisation. It is saved with the model and goes on when somebody trains it further.
LoRA is merged into the weights when they are saved, which the record says, too.
"""

record = lm.provenance
for side, source in record["sources"].items():
    print(side, source)
for entry in record["history"]:
    print(entry["date"], entry["what"])

"""
## Save, and read the card

`save_to_preset` writes `README.md` into the folder. Its front matter is what the hubs
search by; the rest is for people.
"""

lm.save_to_preset("./docstring_writer")
card = Path("./docstring_writer/README.md")
print(card.read_text())

"""
Three sections are blank: what the model is for, what it was trained on, and what it
should not be trusted with. Only its author knows; models without them are hard to use
with confidence. Write them, before the first mark or behind the second. What stands
between the marks is written anew at each save; the rest is never written over.
"""

blank = "To be filled by the author."
purpose = "Continues docstrings of Python packages; an example of a guide, not a tool."
card.write_text(card.read_text().replace(blank, purpose, 1))
lm.save_to_preset("./docstring_writer")
print("still there:", purpose in card.read_text())

"""
## The licence

Weights that were made of others come under their terms. Gemma's, for one, travel with
every derivative
([Gemma Terms of Use](https://ai.google.dev/gemma/terms), section 3.1): what you share has
to say so, and the folder's file `NOTICE` does. A licence that the sources' terms do not
allow is warned of at the upload. That is a hint, and no legal advice.

## Upload

Log in once: `KAGGLE_USERNAME` and `KAGGLE_KEY` for Kaggle, `HF_TOKEN` (with the right to
write) for Hugging Face; in Colab they can be secrets of the notebook. Then one call saves,
checks that the folder is whole and holds nothing else, tells the size, and uploads, card
and licence with it. Put your own name in place of `me`. The small run uploads nothing.
"""

ME = "me"
if not SMALL:
    kaggle, hugging_face = (
        f"kaggle://{ME}/docstring_writer/keras/2b_2b",
        f"hf://{ME}/docstring_writer",
    )
    lm.upload(kaggle, license="gemma", private=True, message="First version")
    lm.upload(hugging_face, license="gemma", private=True, message="First version")

"""
The last line that it prints is the one to load it with. A folder that is there already
goes the same way, and goes on after a broken connection:

```python
keras_encdec.upload_preset("./docstring_writer", "hf://me/docstring_writer", license="gemma")
```

## Load it back

A handle, a folder: both load the same, with what the model remembers. KerasHub reads it
as well, wherever `keras_encdec` was imported.
"""

del lm
gc.collect()
handle = "./docstring_writer" if SMALL else hugging_face
lm = keras_encdec.from_preset(handle)
lm.compile(sampler="greedy")
print("writes the same:", lm.generate(prompt, max_length=24) == text)
print([entry["what"] for entry in lm.provenance["history"]])

"""
## For transformers

Pairs of Gemma 2 can be written in the released T5Gemma layout, and pairs of Gemma 3 with
`merged_attention` and `tied_embeddings` in that of T5Gemma 2, with LoRA merged and quantised
weights as floats. `transformers` then loads them, and CTranslate2 the first of the two.
"""

lm.export_to_transformers("./for_transformers")
print(sorted(os.listdir("./for_transformers")))
if not SMALL:
    lm.export_to_transformers(f"{hugging_face}-hf", license="gemma", private=True)

"""
There, without this package:

```python
import transformers

model = transformers.T5GemmaForConditionalGeneration.from_pretrained("./for_transformers")
tokenizer = transformers.AutoTokenizer.from_pretrained("./for_transformers")
inputs = tokenizer("Returns the sum of", add_special_tokens=False, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```

Pairs of other families, with gates or with two tokenizers have no such layout: they stay
in Keras, and the export says which field it cannot hold.
"""
