"""Seconds per query of a decoder-only model and of the pairs made of it: figure 4 in miniature.

    python bench/figure4.py

The embedded `gemma2_tiny_docs` reads a prompt and goes on from it (KerasHub's GemmaCausalLM);
`gemma2_tiny_tiny`, the balanced pair made of it, and `gemma2_tiny_mini`, with a smaller decoder,
read the same tokens with their encoder and write as many (ours, and KerasHub's T5Gemma for the
balanced pair, so that one engine does both). Greedy, one query at a time, no end token; the
first call of each is left out. Figure 4 of arXiv 2504.06225 finds that a balanced pair costs
about as much per query as its source; the encoder reads the prompt instead of the decoder.
"""

import argparse
import os
import statistics
import tempfile
import time

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_hub

import keras_encdec
from keras_encdec.sharing import catalog

SOURCE, PAIRS = "gemma2_tiny_docs", ("gemma2_tiny_tiny", "gemma2_tiny_mini")


def seconds(call, repeats):
    """Of each call, the first left out."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def of_the_source(prompt, new):
    lm = keras_hub.models.GemmaCausalLM.from_preset(catalog.embedded(SOURCE), preprocessor=None)
    lm.compile(sampler="greedy")
    ids = np.pad(prompt, [(0, 0), (0, new)])
    inputs = {"token_ids": ids, "padding_mask": (np.arange(ids.shape[1])[None] < prompt.shape[1])}
    return lambda: lm.generate(inputs, stop_token_ids=None)


def pair_inputs(prompt, new):
    target = np.zeros((1, 1 + new), "int32")
    target[:, 0] = 2
    return {
        "encoder_token_ids": prompt,
        "encoder_padding_mask": np.ones_like(prompt),
        "decoder_token_ids": target,
        "decoder_padding_mask": (target > 0).astype("int32"),
    }


def of_a_pair(name, prompt, new):
    lm = keras_encdec.from_preset(name, preprocessor=None)
    lm.compile(sampler="greedy")
    return lambda: lm.generate(pair_inputs(prompt, new), stop_token_ids=None)


def of_a_pair_in_keras_hub(name, prompt, new):
    with tempfile.TemporaryDirectory() as folder:
        keras_encdec.from_preset(name, preprocessor=None).export_to_transformers(folder)
        backbone = keras_hub.models.T5GemmaBackbone.from_preset(folder)
    lm = keras_hub.models.T5GemmaSeq2SeqLM(backbone, preprocessor=None)
    lm.compile(sampler="greedy")
    return lambda: lm.generate(pair_inputs(prompt, new), stop_token_ids=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    for length in options.prompts:
        prompt = np.random.default_rng(0).integers(300, 8000, (1, length)).astype("int32")
        calls = {f"{SOURCE} KerasHub": of_the_source(prompt, options.new)}
        calls |= {name: of_a_pair(name, prompt, options.new) for name in PAIRS}
        calls[f"{PAIRS[0]} KerasHub"] = of_a_pair_in_keras_hub(PAIRS[0], prompt, options.new)
        found = {name: seconds(call, options.repeats) for name, call in calls.items()}
        base = next(iter(found.values()))
        parts = [f"{name} {s * 1e3:.0f} ms ({s / base:.2f}x)" for name, s in found.items()]
        print(f"figure4 {length}+{options.new}: " + " | ".join(parts), flush=True)


if __name__ == "__main__":
    main()
