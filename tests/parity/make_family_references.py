"""Logits of tiny models of each family in transformers, in float32 with eager attention.

Writes families/NAME.json, the model's config.json with the shape of each tensor of its
safetensors file, and families/NAME.npz, inputs and logits. Weights follow from names
(drawn.py), so that a test can write the file itself. Run with
`python make_family_references.py [NAME ...]` where transformers==5.23.0 and torch 2.13 (CPU) are
installed.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from drawn import drawn
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "families"
LOCAL, GLOBAL = "sliding_attention", "full_attention"
# Values that bite: K < N, N * H != D, a large epsilon, windows shorter than the texts, a
# rotary base that turns fast, and a query scale that is not the head width's.
COMMON = {
    "vocab_size": 96,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-2,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
HEADS = {"head_dim": 12}
FAST = {"rope_type": "default", "rope_theta": 100.0}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BY_LENGTH = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.2, 1.4, 1.8, 2.0, 3.0],
    "long_factor": [1.0, 2.0, 4.0, 6.0, 9.0, 12.0],
}
# Texts are longer than the original length; of six pairs two stay and one is slow.
SLOWED = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 1.0,
    "beta_slow": 0.1,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
WIDER = {
    "sliding_window": 6,
    "global_head_dim": 16,
    "rope_parameters": {
        LOCAL: FAST,
        GLOBAL: {
            "rope_type": "proportional",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.25,
        },
    },
}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
# The family's class, and its config.
MODELS = {
    "gemma": ("Gemma", {**HEADS, "num_key_value_heads": 1, "rope_parameters": FAST}),
    "gemma2": (
        "Gemma2",
        {
            **HEADS,
            **CAPS,
            "sliding_window": 6,
            "query_pre_attn_scalar": 10,
            "rope_parameters": FAST,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            **HEADS,
            "sliding_window": 6,
            "query_pre_attn_scalar": 10,
            "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL],
            "rope_parameters": {
                LOCAL: FAST,
                GLOBAL: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
            },
        },
    ),
    "llama": ("Llama", {**HEADS, "rope_parameters": STRETCHED}),
    "smollm2": ("Llama", {"rope_parameters": FAST, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**HEADS, "sliding_window": 6, "rope_parameters": FAST}),
    "qwen2": (
        "Qwen2",
        {
            "rope_parameters": FAST,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 2,
        },
    ),
    "smollm3": ("SmolLM3", {"rope_parameters": FAST, "no_rope_layers": [1, 1, 0, 1]}),
    "qwen3": ("Qwen3", {**HEADS, "rope_parameters": FAST, "tie_word_embeddings": True}),
    "mixtral": (
        "Mixtral",
        {
            **HEADS,
            "sliding_window": 6,
            "rope_parameters": FAST,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **HEADS,
            "use_sliding_window": True,
            "sliding_window": 6,
            "rope_parameters": FAST,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 28,
            "mlp_only_layers": [1],
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 3,
            "rope_parameters": FAST,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 28,
            "shared_expert_intermediate_size": 52,
            "mlp_only_layers": [1],
        },
    ),
    "olmo2": ("Olmo2", {**HEADS, "rope_parameters": FAST}),
    "granite": (
        "Granite",
        {
            **HEADS,
            "rope_parameters": FAST,
            "embedding_multiplier": 1.5,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
            "logits_scaling": 3.0,
        },
    ),
    "gemma4": (
        "Gemma4",
        {
            **HEADS,
            **WIDER,
            "final_logit_softcapping": 3.0,
            "layer_types": [LOCAL, GLOBAL] * 2,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
            "use_bidirectional_attention": "vision",
        },
    ),
    "gemma4_e2b": (
        "Gemma4",
        {
            **HEADS,
            **WIDER,
            "num_key_value_heads": 1,
            "num_hidden_layers": 5,
            "layer_types": [LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL],
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 6,
            "vocab_size_per_layer_input": 96,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            **HEADS,
            "sliding_window": 6,
            "rope_parameters": SLOWED,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
        },
    ),
    "gemma4_moe": (
        "Gemma4",
        {
            **HEADS,
            **WIDER,
            "final_logit_softcapping": 3.0,
            "layer_types": [LOCAL, GLOBAL] * 2,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 3,
            "moe_intermediate_size": 28,
        },
    ),
    "phi3": ("Phi3", {"rope_parameters": FAST, "sliding_window": 6}),
    "phi4": (
        "Phi3",
        {
            "rope_parameters": BY_LENGTH,
            "hidden_size": 64,  # of a head's 16 then 12 turn
            "tie_word_embeddings": True,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 16,
        },
    ),
}
LENGTHS = (20, 13)
IMAGES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
IMAGES |= {"num_attention_heads": 2, "image_size": 4, "patch_size": 2}
BEGIN, END, IMAGE = 89, 90, 91  # ids around an image of T5Gemma 2, and for it


def make(name):
    """A model with the weights of its tensors' names, and what save_pretrained writes."""
    family, changes = MODELS[name]
    with_text = family in ("Gemma3", "Gemma4")
    config_class = f"{family}TextConfig" if with_text else f"{family}Config"
    config = getattr(transformers, config_class)(**{**COMMON, **changes}, dtype="float32")
    model_class = getattr(transformers, f"{family}ForCausalLM")
    zero_centered = family in ("Gemma", "Gemma2", "Gemma3")
    return filled(model_class, config, zero_centered)


def make_with_images():
    """Gemma 3 inside a model that reads images too, as small as can be."""
    text = {**COMMON, **HEADS, **MODELS["gemma3"][1]}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=IMAGES,
        mm_tokens_per_image=4,
        image_token_index=91,
        dtype="float32",
    )
    return filled(transformers.Gemma3ForConditionalGeneration, config, zero_centered=True)


def filled(model_class, config, zero_centered):
    """Its tensors are drawn as they lie on disk, where T5Gemma 2 and experts have other names."""
    with tempfile.TemporaryDirectory() as folder:
        model_class._from_config(config).save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        path = Path(folder) / "model.safetensors"
        with safe_open(path, framework="np") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        tensors = {key: drawn(key, shape, zero_centered) for key, shape in shapes.items()}
        save_file(tensors, path, metadata={"format": "pt"})
        model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
    return model, {"config": config, "tensors": shapes}


def padded(rng, lengths, words=90, start=None):
    """Random ids below `words` with their mask, padded with 0 to the right."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype("int64")
    ids = rng.integers(3, words, mask.shape)
    if start is not None:
        ids[:, 0] = start
    return ids * mask, mask


def make_t5gemma2():
    """A whole pair, past its windows on both sides; an image takes four tokens."""
    text = {
        **COMMON,
        **HEADS,
        "sliding_window": 6,
        "query_pre_attn_scalar": 10,
        "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL],
        "rope_parameters": MODELS["gemma3"][1]["rope_parameters"],
    }
    images = {**IMAGES, "intermediate_size": 12, "num_hidden_layers": 2, "image_size": 8}
    ids = {"boi_token_index": BEGIN, "eoi_token_index": END, "image_token_index": IMAGE}
    encoder = transformers.T5Gemma2EncoderConfig(
        text_config=text, vision_config=images, mm_tokens_per_image=4, **ids
    )
    decoder = transformers.T5Gemma2DecoderConfig(**text)
    config = transformers.T5Gemma2Config(encoder=encoder, decoder=decoder, image_token_index=IMAGE)
    return config, transformers.T5Gemma2ForConditionalGeneration


def save_t5gemma2():
    config, model_class = make_t5gemma2()
    model, facts = filled(model_class, config, zero_centered=True)
    rng = np.random.default_rng(6)
    ids, mask = padded(rng, (20, 13))
    target_ids, target_mask = padded(rng, (16, 9), start=2)
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": target_ids,
        "decoder_attention_mask": target_mask,
    }
    with torch.no_grad():
        tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
        output = model(**tensors, use_cache=False)
    states = output.encoder_last_hidden_state.numpy()
    arrays |= {"states": states, "logits": output.logits.numpy()}
    write("t5gemma2", facts, **arrays, **with_images(model, arrays, rng))


def with_images(model, arrays, rng):
    """Two images in the first row and one in the second, its last in no window of its first.

    Pixels in our order, (rows, images, height, width, 3), filled up with one that nobody reads.
    """
    ids, target_ids = arrays["input_ids"].copy(), arrays["decoder_input_ids"].copy()
    image = [BEGIN, IMAGE, IMAGE, IMAGE, IMAGE, END]
    for row, at in ((0, 1), (0, 13), (1, 5)):
        ids[row, at : at + len(image)] = image
    target_ids[0, 4] = END  # which the decoder embeds by itself, too
    pixels = rng.uniform(-1, 1, (2, 2, 8, 8, 3)).astype("float32")
    seen = np.concatenate([pixels[0], pixels[1, :1]]).transpose(0, 3, 1, 2)
    given = {"input_ids": ids, "attention_mask": arrays["attention_mask"], "pixel_values": seen}
    given |= {"decoder_input_ids": target_ids}
    given |= {"decoder_attention_mask": arrays["decoder_attention_mask"]}
    with torch.no_grad():
        tensors = {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in given.items()}
        output = model(**tensors, use_cache=False)
    return {
        "image_input_ids": ids,
        "image_decoder_input_ids": target_ids,
        "images": pixels,
        "image_states": output.encoder_last_hidden_state.numpy(),
        "image_logits": output.logits.numpy(),
    }


def write(name, facts, **arrays):
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    np.savez_compressed(HERE / f"{name}.npz", **arrays)
    print(f"{name}: logits of spread {arrays['logits'].std():.2f}")


def main(names):
    HERE.mkdir(exist_ok=True)
    asked = names or [*MODELS, "gemma3_images", "t5gemma2"]
    if "t5gemma2" in asked:
        save_t5gemma2()
    for name in (name for name in asked if name != "t5gemma2"):
        with_images = name == "gemma3_images"
        model, facts = make_with_images() if with_images else make(name)
        rng = np.random.default_rng(5)
        ids, mask = padded(rng, LENGTHS, words=90 if with_images else 96)
        write(name, facts, input_ids=ids, attention_mask=mask, logits=logits_of(model, ids, mask))


def logits_of(model, ids, mask):
    """Row by row, as LongRoPE there turns all rows of a batch as the longest asks for."""
    logits = np.zeros((*ids.shape, model.config.get_text_config().vocab_size), "float32")
    with torch.no_grad():
        for row, length in enumerate(mask.sum(axis=1)):
            inputs = torch.from_numpy(ids[row : row + 1, :length])
            logits[row, :length] = model(input_ids=inputs, use_cache=False).logits[0].numpy()
    return logits


if __name__ == "__main__":
    main(sys.argv[1:])
