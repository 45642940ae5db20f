"""Makes tiny random T5Gemma and Gemma2 checkpoints in Hugging Face form, with their outputs.

Writes hf_t5gemma/, hf_t5gemma_sharded/ (the same model in shards), hf_gemma2/ and, beside them,
hf_t5gemma.npz and hf_gemma2.npz with inputs and outputs of eager attention in float32. Run with
`python make_transformers_reference.py` where transformers==5.23.0, torch 2.13 (CPU) and
safetensors are installed with pip.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
)

HERE = Path(__file__).parent
VOCAB = 96
START_ID = 2
LAYER_TYPES = ["sliding_attention", "full_attention"]
SHARED = {
    "vocab_size": VOCAB,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "max_position_embeddings": 64,
    "dtype": "float32",
}
DECODER = dict(SHARED, hidden_size=40, intermediate_size=72, head_dim=12, query_pre_attn_scalar=10)


def t5gemma_config():
    encoder = T5GemmaModuleConfig(
        **SHARED,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        head_dim=16,
        query_pre_attn_scalar=16,
        layer_types=LAYER_TYPES * 2,
        sliding_window=16,
    )
    decoder = T5GemmaModuleConfig(
        **DECODER,
        num_hidden_layers=2,
        layer_types=LAYER_TYPES,
        sliding_window=16,
        cross_attention_hidden_size=48,
    )
    return T5GemmaConfig(encoder=encoder, decoder=decoder, vocab_size=VOCAB, dtype="float32")


def gemma2_config():
    return Gemma2Config(
        **DECODER, num_hidden_layers=4, layer_types=LAYER_TYPES * 2, sliding_window=6
    )


def draw_parameter(rng, name, shape):
    """A parameter in steps of 1/512 (exact in float32, and compresses better)."""
    if "norm" in name:
        std = 0.3
    elif "embed_tokens" in name:
        std = 0.4
    else:
        gain = 1.8 if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj") else 1.5
        std = gain * shape[1] ** -0.5
    return np.round(rng.normal(0.0, std, shape) * 512) / 512


def make_model(model_class, config, rng):
    """A model with eager attention, in eval mode, with all parameters drawn from numpy."""
    model = model_class._from_config(config, attn_implementation="eager").eval()
    parameters = dict(model.named_parameters())  # tied embeddings appear once
    with torch.no_grad():
        for name in sorted(parameters):
            value = draw_parameter(rng, name, tuple(parameters[name].shape))
            parameters[name].copy_(torch.from_numpy(value))
    return model


def make_ids(rng, lengths, start_id=None):
    """Random ids in 3..95 with their mask, right-padded with 0."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = rng.integers(3, VOCAB, mask.shape)
    if start_id is not None:
        ids[:, 0] = start_id
    return ids * mask, mask


def run(model, inputs):
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        return model(**tensors, use_cache=False)


def report(name, model, inputs, logits):
    """Prints what is near the final cap and what padding, caps and window change.

    Right padding cannot matter to a causal model, nor the window to the short T5Gemma inputs.
    """
    mask = inputs.get("decoder_attention_mask", inputs["attention_mask"]) == 1
    print(f"{name}: {np.mean(np.abs(logits[mask]) > 2.7):.1%} of final logits near the cap")

    def show(change, others):
        moved = np.abs(run(model, others).logits.numpy() - logits)[mask]
        print(f"  {change}: mean change {moved.mean():.3f}, largest {moved.max():.3f}")

    show("attention_mask all one", inputs | {"attention_mask": inputs["attention_mask"] * 0 + 1})
    attentions = [m for m in model.modules() if hasattr(m, "attn_logit_softcapping")]
    for module in attentions:
        module.attn_logit_softcapping = None
    show(f"no cap in {len(attentions)} attentions", inputs)
    for module in attentions:
        module.attn_logit_softcapping = 5.0
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "sliding_window"):
            module.config.sliding_window = 1000
    show("no window", inputs)


def save_t5gemma():
    """A T5Gemma within its window: there transformers and the release agree."""
    rng = np.random.default_rng(3)
    model = make_model(T5GemmaForConditionalGeneration, t5gemma_config(), rng)
    input_ids, attention_mask = make_ids(rng, (14, 9))
    decoder_input_ids, decoder_attention_mask = make_ids(rng, (12, 7), START_ID)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "decoder_input_ids": decoder_input_ids,
        "decoder_attention_mask": decoder_attention_mask,
    }
    output = run(model, inputs)
    outputs = {
        "encoder_last_hidden_state": output.encoder_last_hidden_state.numpy(),
        "logits": output.logits.numpy(),
    }
    np.savez_compressed(HERE / "hf_t5gemma.npz", **inputs, **outputs)
    model.save_pretrained(HERE / "hf_t5gemma")
    model.save_pretrained(HERE / "hf_t5gemma_sharded", max_shard_size="170KB")
    report("hf_t5gemma", model, inputs, outputs["logits"])


def save_gemma2():
    """A Gemma2 past two windows: transformers is right on the causal side."""
    rng = np.random.default_rng(4)
    model = make_model(Gemma2ForCausalLM, gemma2_config(), rng)
    input_ids, attention_mask = make_ids(rng, (20, 13), START_ID)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    logits = run(model, inputs).logits.numpy()
    np.savez_compressed(HERE / "hf_gemma2.npz", **inputs, logits=logits)
    model.save_pretrained(HERE / "hf_gemma2")
    report("hf_gemma2", model, inputs, logits)


def main():
    save_t5gemma()
    save_gemma2()


if __name__ == "__main__":
    main()
