"""
Title: Any family, any pair
Author: keras_encdec
Date created: 2026/11/25
Last modified: 2026/11/27
Description: Qwen, Llama and SmolLM as encoder-decoders; two tokenizers, fewer layers, the gate, experts.
Accelerator: GPU
"""

"""
## Introduction

What Encoder-Decoder Gemma does to Gemma 2 can be done to any model of the same build.
Sources may be

- Gemma 1 to 4, Llama 2 and 3, SmolLM 2 and 3, Mistral, Qwen 2, 2.5 and 3, OLMo 2,
  Granite 3, Phi-3, 3.5 and 4; of a Gemma 3 or 4 that reads images, its text part;
- the mixtures of experts Mixtral, Qwen 2 MoE, Qwen 3 MoE, Gemma 4 26B-A4B and gpt-oss,
  whose MXFP4 becomes bfloat16 or float32, number for number;
- presets of KerasHub, its backbones and tasks in memory, or folders and `hf://` handles
  in the format of transformers (`config.json` with safetensors).

Families differ in where they normalise, in biases, windows, soft caps, sinks and rotary
positions; in Gemma 4 E2B and E4B the last layers borrow keys and values of earlier ones
too, and each layer has an embedding of its own. All of that is read from the configuration of the source. A field that would be
ignored is an error that names it.

Phi-3.5 and Phi-4-mini turn their positions otherwise in long texts (LongRoPE). Here a text's
own length decides, whatever stands beside it in a batch, so an encoder reads long documents.
What a decoder writes stays within the length of pretraining, 4096 tokens there: beyond it
the tokens already written would have to turn again, and `max_length` is refused.

The guide is written for one GPU of 16 GB and models of up to 0.6 billion parameters. With
`KERAS_ENCDEC_SMALL=1` the same code runs on any CPU in about a minute, without network:
Qwen 3 and Llama 3 are then models of two layers and random weights, made in place, and
where a trained model is needed, the one of docstrings that ships with the package takes
the place of SmolLM2.
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
from keras_encdec.data import docstrings
from keras_encdec.testing.sources import tiny_source

SMALL = os.environ.get("KERAS_ENCDEC_SMALL") == "1"

train_docs, held_out_docs = docstrings.load(["keras"] if SMALL else docstrings.PACKAGES)
texts = [doc.text for doc in train_docs]

if SMALL:
    QWEN, LLAMA = tiny_source("Qwen3", texts[:200]), tiny_source("Llama3", texts[:200])
    TRAINED, EVERY_OTHER = "gemma2_mini_docs", range(0, 4, 2)
    LENGTH, BATCH_SIZE, STEPS, HELD_OUT = 32, 8, 12, 6
else:
    QWEN, LLAMA = "qwen3_0.6b_en", "llama3.2_1b"
    TRAINED, EVERY_OTHER = "hf://HuggingFaceTB/SmolLM2-135M", range(0, 30, 2)
    LENGTH, BATCH_SIZE, STEPS, HELD_OUT = 512, 8, 1000, 128

keras.utils.set_random_seed(0)
held_out = [doc.text for doc in held_out_docs[:HELD_OUT]]


def prepared(lm):
    """The pair with the lengths of this guide."""
    lm.preprocessor.encoder_sequence_length = LENGTH
    lm.preprocessor.decoder_sequence_length = LENGTH
    lm.compile(keras.optimizers.AdamW(3e-4, global_clipnorm=1.0), sampler="greedy")
    return lm


"""
## One line for each

`adapt` takes a decoder-only model and gives a pair. What it found in the source is a
spec: plain data that says all there is to know of each side.
"""

for name, source in {"Qwen 3": QWEN, "Llama 3": LLAMA}.items():
    lm = keras_encdec.adapt(source)
    spec = lm.backbone.spec.decoder
    print(f"{name}: {lm.backbone.count_params():,} parameters")
    print(f"  {spec.num_layers} layers of width {spec.width}, {spec.attention}")
    print(
        f"  post norms {spec.post_norm}, gate {lm.backbone.spec.cross_attention.gate}"
    )

"""
## The gate

Where the two sides are alike, the cross-attention starts as a copy of the decoder's
self-attention. In Gemma 2 a norm behind each sublayer bounds what such a copy adds at
first. Llama, Qwen and SmolLM have no such norm. Their pairs get a gate: what the
cross-attention adds is multiplied by the tanh of a number that starts at 0
([arXiv 2204.14198](https://arxiv.org/abs/2204.14198)), so the pair starts as its source,
one that does not look at the input yet.

`cross_attention_gate="auto"` has the gate where the family needs it. Here are held-out
losses at the very start, with it and without, in nats per token:
"""

start = {}
for gate in (True, False):
    lm = prepared(keras_encdec.adapt(TRAINED, cross_attention_gate=gate))
    logs = lm.evaluate(held_out, return_dict=True, verbose=0)
    start[f"gate {gate}"] = round(logs["loss"], 3)
print(start)

"""
SmolLM2-135M begins at 3.23 with the gate, and after 100 steps of 8 windows of 64 + 64
tokens it stood at 2.65; without the gate it stood at 8.44 after 25 steps (LOG.md). The
gated pair has to learn to look at its input at all, which takes its steps, too.

## A smaller decoder

The decoder may keep some layers of its source: the first n, or any by number. It then
writes faster, and begins worse, as the layers that are left were never trained without
the others. T5Gemma 2 has further switches
([arXiv 2512.14856](https://arxiv.org/abs/2512.14856), section 2): the self-attention may
see the encoder too, in place of a cross-attention of its own, and both sides may share
one embedding.
"""

variants = {
    "every other layer": {"decoder_layers": EVERY_OTHER},
    "as in T5Gemma 2": {"merged_attention": True, "tied_embeddings": True},
    "cross-attention in two layers": {"cross_attention_layers": [1, 3]},
}
for name, options in variants.items():
    lm = keras_encdec.adapt(TRAINED, **options)
    print(f"{name:30} {lm.backbone.count_params():,} parameters")

"""
These are fields of the pair's spec and are saved with it. Released T5Gemma 2 checkpoints
load by `keras_encdec.from_preset("hf://google/t5gemma-2-270m-270m")`, with what reads images.

## Two tokenizers

The sides may come from different families. Each then keeps its own vocabulary: what is
read is tokenised for the encoder, what is written for the decoder.
"""

lm = prepared(keras_encdec.adapt(QWEN, TRAINED))
sides = {
    "encoder": lm.preprocessor.encoder_tokenizer,
    "decoder": lm.preprocessor.tokenizer,
}
for side, tokenizer in sides.items():
    ids = tokenizer("An encoder reads, a decoder writes.")
    pieces = [tokenizer.id_to_token(int(i)) for i in ids]
    print(f"{side} of {tokenizer.vocabulary_size():,} pieces: {pieces}")

"""
Pairs of texts train it, and so does PrefixLM: a text is cut by the decoder's tokens, and
the half that is read is tokenised again. UL2 and teachers need one vocabulary, and say
so:
"""

try:
    lm.preprocessor.objective = "ul2"
    lm.fit(texts[:8])
except ValueError as error:
    print(error)
lm.preprocessor.objective = "prefix_lm"

"""
The rest is as for any pair. With two sources that differ, the cross-attention is fresh,
so it may train alone first; see
[the guide on unbalanced pairs](unbalanced_pairs_and_distribution.py).
"""

before = lm.evaluate(held_out, return_dict=True, verbose=0)["loss"]
lm.fit(texts, batch_size=BATCH_SIZE, steps_per_epoch=STEPS, verbose=2)
after = lm.evaluate(held_out, return_dict=True, verbose=0)["loss"]
print(f"held-out loss {before:.3f} -> {after:.3f}")

prompt = held_out[0][:40]
print(f"{prompt!r}\n  -> {lm.generate(prompt, max_length=24)!r}")

lm.save_to_preset("./two_families")
again = keras_encdec.from_preset("./two_families")
again.compile(sampler="greedy")
same = again.generate(prompt, max_length=24) == lm.generate(prompt, max_length=24)
print("the same after loading:", same)

"""
## Experts

A mixture of experts may be the source of either side or of both, as any other family. Each
of its layers keeps its router and all experts, and a token goes through its own few; in
Qwen 2 MoE and Gemma 4 all tokens go through a shared expert beside them. The smallest
released one of these families has 14 billion parameters, so one of two layers and random
weights stands in here: it reads, and Qwen 3 writes.

`fit` adds the loss of uneven experts, with the weight that the source's config gives it (none
for Gemma 4, whose config names no such loss), and
logs how evenly the tokens were spread: `encoder_expert_load` and `decoder_expert_load` are
the tokens of the busiest expert over the mean of all, 1 where all have as many.
"""

mixture = tiny_source("Qwen3Moe", texts[:200])
lm = prepared(keras_encdec.adapt(mixture, QWEN))
print(lm.backbone.spec.encoder.experts)
history = lm.fit(texts, batch_size=BATCH_SIZE, steps_per_epoch=4, verbose=0).history
print(f"busiest over mean: {history['encoder_expert_load'][-1]:.2f}")

"""
Nearly all weights of such a model are its experts'. In int8 they take a byte each, and are
computed with in the dtype of what they are given; LoRA trains beside them. What experts
cannot do yet is refused by name: int4, `training.estimate`, and `texts_at_once` of an embedder.
"""

lm.quantize("int8", filters=keras_encdec.training.pretrained)
lm.backbone.enable_lora(4)
lm.compile(1e-4)
history = lm.fit(texts, batch_size=BATCH_SIZE, steps_per_epoch=4, verbose=0).history
print(f"loss of LoRA beside int8: {history['loss'][-1]:.3f}")

try:
    lm.quantize("int4")
except ValueError as error:
    print(error)

"""
A family that is not here yet is one short file of data:
[CONTRIBUTING.md](../CONTRIBUTING.md) goes through it.
"""
