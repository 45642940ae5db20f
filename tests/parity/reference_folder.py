"""The folder that transformers wrote for a reference of `families/`, made again from its facts."""

import json
from pathlib import Path

import numpy as np
from drawn import drawn
from safetensors.numpy import save_file

FAMILIES = Path(__file__).parent / "families"


def facts_of(name):
    """The config.json of a reference, and the shape of each tensor by name."""
    return json.loads((FAMILIES / f"{name}.json").read_text())


def with_images():
    """Inputs of `t5gemma2` with images, and what transformers computes of them."""
    with np.load(FAMILIES / "t5gemma2.npz") as arrays:
        inputs = {
            "encoder_token_ids": arrays["image_input_ids"].astype("int32"),
            "encoder_padding_mask": arrays["attention_mask"].astype("int32"),
            "decoder_token_ids": arrays["image_decoder_input_ids"].astype("int32"),
            "decoder_padding_mask": arrays["decoder_attention_mask"].astype("int32"),
            "images": arrays["images"],
        }
        return inputs, arrays["image_states"], arrays["image_logits"]


def write_folder(folder, name, shards=1):
    """Writes config and weights, in one file or in shards with their index."""
    facts = facts_of(name)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(facts["config"]))
    model_type = facts["config"]["model_type"]
    zero_centered = "gemma" in model_type and "gemma4" not in model_type
    names = list(facts["tensors"])
    tensors = {key: drawn(key, facts["tensors"][key], zero_centered) for key in names}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {key: f"model-{i % shards}.safetensors" for i, key in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({k: tensors[k] for k in names if weight_map[k] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
