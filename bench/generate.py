"""Greedy generation beside KerasHub and transformers: the same weights, the same tokens.

    python bench/generate.py
    python bench/generate.py --workloads growth --peers ours

A pair of T5Gemma's S-S shape (vocabulary 256,000), random weights in float32, from one export
that every peer loads: ours, KerasHub's T5GemmaSeq2SeqLM (both on JAX) and transformers in
torch, with eager attention, which alone has the soft cap. Workloads:

    W1       1 input of 512 tokens, 64 new ones
    W2       4 inputs of 2048 tokens, 64 new ones
    W3       20 inputs of 20 different lengths, one after another, 16 new tokens each,
             compilation included
    W5       1 input of 512 tokens, with room for 512 with <bos>: until the first is there
    growth   seconds per new token at 256 to 8192 input tokens; ours of one encoding
    rollouts 1 input of 512 tokens, 8 drawn outputs of 64 tokens; tokens differ, as chance does

Random weights soon say one word again and again, which drafts would take eight at a time: they
are off but for `--drafts`.

Every peer and workload is run in a process of its own, in turn. Except in W3 a first call is
left out, and medians over the next ones are printed: the last line can be compared, in which
"1.50x" are a peer's seconds over ours. The peers' tokens are checked to be the same, up to the
places where the two likeliest tokens are as good as equally likely.

The floor of a decoding step is the time that this machine takes to read, with all cores, the
bytes that a step cannot do without: the decoder's weights and the cached keys and values.
"""

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

START = 2
WORKLOADS = {
    "W1": {"rows": 1, "source": 512, "new": 64},
    "W2": {"rows": 4, "source": 2048, "new": 64},
    "W3": {"rows": 1, "sources": [20 + 23 * i for i in range(20)], "new": 16},
    "W5": {"rows": 1, "source": 512, "new": 511},
    "rollouts": {"rows": 1, "source": 512, "new": 64, "samples": 8},
    "growth": {"rows": 1, "growth": [256, 512, 1024, 2048, 4096, 8192], "new": 33},
}


def tokens(rows, source, new):
    """Model inputs without padding in the encoder, and with room for the output."""
    rng = np.random.default_rng(source)
    ids = rng.integers(3, 256_000, (rows, source)).astype("int32")
    target = np.zeros((rows, 1 + new), "int32")
    target[:, 0] = START
    return {
        "encoder_token_ids": ids,
        "encoder_padding_mask": np.ones_like(ids),
        "decoder_token_ids": target,
        "decoder_padding_mask": (target == START).astype("int32"),
    }


class Ours:
    def __init__(self, folder, options):
        import keras_encdec

        self.lm = keras_encdec.from_preset(folder, preprocessor=None)
        if options.quantize:
            self.lm.quantize(options.quantize)
        self.lm.backbone.output_screen = False if options.no_screen else "auto"
        self.lm.compile(sampler="greedy")
        self.options = {"draft": "auto" if options.drafts else None}

    def __call__(self, inputs, stops=None):
        found = self.lm.generate(inputs, stop_token_ids=stops, **self.options)
        return found["decoder_token_ids"]

    def drawing(self, samples):
        self.lm.compile(sampler="random")
        return lambda inputs: self.lm.generate(
            inputs, stop_token_ids=None, num_samples=samples, **self.options
        )

    def of_one_encoding(self, inputs):
        encoding = self.lm.encode(inputs)

        def decode(_, stops=None):
            found = self.lm.decode(encoding, stop_token_ids=stops, **self.options)
            return found["decoder_token_ids"]

        return decode


class KerasHub:
    def __init__(self, folder, options):
        import keras_hub

        backbone = keras_hub.models.T5GemmaBackbone.from_preset(folder)
        self.lm = keras_hub.models.T5GemmaSeq2SeqLM(backbone, preprocessor=None)
        self.lm.compile(sampler="greedy")

    def __call__(self, inputs, stops=None):
        found = self.lm.generate(inputs, stop_token_ids=stops)
        return np.asarray(found["decoder_token_ids"])

    def drawing(self, samples):
        self.lm.compile(sampler="random")
        return lambda inputs: self({k: np.repeat(x, samples, axis=0) for k, x in inputs.items()})


class Transformers:
    def __init__(self, folder, options):
        import torch
        from transformers import T5GemmaForConditionalGeneration

        torch.set_grad_enabled(False)
        load = T5GemmaForConditionalGeneration.from_pretrained
        self.lm, self.torch = load(folder, attn_implementation="eager").eval(), torch

    def drawing(self, samples):
        chance = {"do_sample": True, "top_k": 0, "num_return_sequences": samples}
        return lambda inputs: self(inputs, **chance)

    def __call__(self, inputs, stops=None, **chance):
        given = {name: self.torch.tensor(x).long() for name, x in inputs.items()}
        new = inputs["decoder_token_ids"].shape[1] - 1
        return self.lm.generate(
            input_ids=given["encoder_token_ids"],
            attention_mask=given["encoder_padding_mask"],
            decoder_input_ids=given["decoder_token_ids"][:, :1],
            max_new_tokens=new,
            min_new_tokens=None if stops else new,
            eos_token_id=list(stops) if stops else None,
            **({"do_sample": False} | chance),
        ).numpy()


PEERS = {"ours": Ours, "KerasHub": KerasHub, "transformers": Transformers}


def timed(generate, inputs, repeats, **kwargs):
    """Seconds of each call but the first, and the tokens."""
    found, seconds = generate(inputs, **kwargs), []
    for _ in range(repeats):
        start = time.perf_counter()
        generate(inputs, **kwargs)
        seconds.append(time.perf_counter() - start)
    return seconds, found


def run(generate, name, repeats):
    """What a workload is measured as, in a process that did nothing else before."""
    work = WORKLOADS[name]
    if "sources" in work:
        inputs = [tokens(work["rows"], source, work["new"]) for source in work["sources"]]
        start = time.perf_counter()
        found = [generate(x)[0].tolist() for x in inputs]
        return {"seconds": [time.perf_counter() - start], "tokens": found}
    if "growth" in work:
        each = [per_token(generate, source, repeats) for source in work["growth"]]
        return {"seconds": each, "floors": [floor(1, s, work["new"]) for s in work["growth"]]}
    inputs = tokens(work["rows"], work["source"], work["new"])
    if "samples" in work:
        return {"seconds": timed(generate.drawing(work["samples"]), inputs, repeats)[0]}
    if name == "W5":
        first = int(generate(tokens(1, work["source"], 8))[0, 1])
        seconds, found = timed(generate, inputs, repeats, stops=(first,))
        return {"seconds": seconds, "tokens": found[:, :2].tolist()}
    seconds, found = timed(generate, inputs, repeats)
    short, _ = timed(generate, inputs, repeats, stops=tuple(set(found[:, 1].tolist())))
    step = (statistics.median(seconds) - statistics.median(short)) / (work["new"] - 1)
    sizes = work["rows"], work["source"], work["new"]
    return {"seconds": seconds, "tokens": found.tolist(), "step": step, "floor": floor(*sizes)}


def per_token(generate, source, repeats):
    """Seconds of one more token: those of 32 more over 32."""
    new = WORKLOADS["growth"]["new"]
    inputs = tokens(1, source, new)
    generate = getattr(generate, "of_one_encoding", lambda _: generate)(inputs)
    whole, found = timed(generate, inputs, repeats)
    first, _ = timed(generate, inputs, repeats, stops=(int(found[0, 1]),))
    return (statistics.median(whole) - statistics.median(first)) / (new - 1)


def floor(rows, source, new):
    """Seconds that reading what a step needs takes this machine."""
    import keras_encdec
    from keras_encdec.spec import count_parameters

    pair = keras_encdec.presets["t5gemma_s_s"].spec
    decoder, once = pair.decoder, ("cross_attention/key", "cross_attention/value")
    weights = pair.weights().items()
    read = {name: shape for name, shape in weights if not any(part in name for part in once)}
    read = {name: shape for name, shape in read.items() if name.startswith("decoder/")}
    cached = decoder.num_layers * 2 * decoder.attention.num_kv_heads * decoder.attention.head_dim
    return 4 * (count_parameters(read) + rows * cached * (source + new)) / bandwidth()


_BANDWIDTH = []


def bandwidth():
    """Bytes a second that all cores read together: the best of some passes over 1 GB."""
    if not _BANDWIDTH:
        cores = os.cpu_count()
        parts = [np.ones(2**28 // cores, "float32") for _ in range(cores)]
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            for _ in range(5):
                start = time.perf_counter()
                list(pool.map(lambda x: np.dot(x, x), parts))
                _BANDWIDTH.append(2**30 / (time.perf_counter() - start))
    return max(_BANDWIDTH)


def export(folder):
    """Writes random weights of the pair where every peer can read them."""
    import keras

    import keras_encdec

    keras.utils.set_random_seed(0)
    keras_encdec.from_preset("t5gemma_s_s", preprocessor=None).export_to_transformers(folder)


def in_a_process(folder, *arguments):
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--folder", folder]
    run = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def report(name, results):
    """One line for a workload."""
    if name == "growth":
        for peer, result in results.items():
            rows = zip(WORKLOADS[name]["growth"], result["seconds"], result["floors"], strict=True)
            for source, seconds, least in rows:
                share = f"{least / seconds:.0%} of bandwidth"
                print(f"growth {peer} {source:5}: {seconds * 1e3:6.1f} ms a token, {share}")
        return
    base = results.get("ours", {}).get("seconds")
    parts = []
    for peer, result in results.items():
        seconds = statistics.median(result["seconds"])
        part = f"{peer} {seconds:.2f} s"
        part += f" ({seconds / statistics.median(base):.2f}x)" if base and peer != "ours" else ""
        if "step" in result:
            share = result["floor"] / result["step"]
            part += f" [step {result['step'] * 1e3:.1f} ms, {share:.0%} of bandwidth]"
        parts.append(part)
    print(f"generate {name}: " + " | ".join(parts), flush=True)
    if all("tokens" in result for result in results.values()):
        print("  tokens like ours: " + agreement(results), flush=True)


def agreement(results):
    """Share of the tokens that are ours, by peer."""
    first = results.get("ours", {}).get("tokens")
    others = {peer: result["tokens"] for peer, result in results.items() if peer != "ours"}
    same = {peer: np.mean(np.array(first) == np.array(found)) for peer, found in others.items()}
    return ", ".join(f"{peer} {share:.1%}" for peer, share in same.items()) or "no other peer"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS)[:4])
    parser.add_argument("--repeats", type=int, default=3, help="timed calls in a process")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each peer, in turn")
    parser.add_argument("--quantize", choices=["int8", "int4"], help="ours alone")
    parser.add_argument("--drafts", action="store_true", help="ours alone; see bench/drafts.py")
    parser.add_argument("--no-screen", action="store_true", help="ours alone")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        peer, name = options.one
        if peer == "export":
            export(options.folder)
        result = (
            {}
            if peer == "export"
            else run(PEERS[peer](options.folder, options), name, options.repeats)
        )
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        in_a_process(folder, "--one", "export", "")
        for name in options.workloads:
            rounds = [
                {peer: in_a_process(folder, "--one", peer, name) for peer in options.peers}
                for _ in range(options.rounds)
            ]
            report(name, {peer: merged([r[peer] for r in rounds]) for peer in options.peers})


def merged(results):
    """One result of several: all of their seconds, and the median step and floor."""
    if len(results) == 1 or "floors" in results[0]:
        return results[-1]
    numbers = {
        key: statistics.median(r[key] for r in results)
        for key in ("step", "floor")
        if key in results[0]
    }
    return {**results[0], **numbers, "seconds": [s for r in results for s in r["seconds"]]}


if __name__ == "__main__":
    main()
