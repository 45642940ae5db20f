"""Peak memory and time of converting a folder of safetensors of Llama 3.2 3B's shape into 3B-3B.

    python bench/convert_folder.py /tmp/llama_3b_shape

The first call writes config.json and shards of random bfloat16 weights (6.4 GB) to that folder.
Prints one line: seconds, peak resident memory, and its ratio to the finished model.
"""

import json
from pathlib import Path

import numpy as np
from convert_2b import main

# config.json of meta-llama/Llama-3.2-3B
CONFIG = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
}
SHARD = 2_000_000_000  # bytes


def write(folder: Path) -> None:
    """Names and shapes as the family's rules have them, a shard at a time."""
    import ml_dtypes
    from safetensors.numpy import save_file

    from keras_encdec.families import dialect, llama

    (family,) = llama.FAMILIES
    bound = dialect.bind(family.transformers, family.from_transformers(CONFIG).weights())
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    some = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(ml_dtypes.bfloat16)
    weight_map, pending, size = {}, {}, 0
    for tensor in [*bound.values(), None]:
        if tensor is None or size > SHARD:
            file = f"model-{len(set(weight_map.values()))}.safetensors"
            save_file(pending, folder / file)
            weight_map |= dict.fromkeys(pending, file)
            pending, size = {}, 0
        if tensor is not None:
            pending[tensor.name] = np.resize(some, tensor.shape)
            size += pending[tensor.name].nbytes
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main(__file__, __doc__.split("\n")[0], write, "a folder, 3B-3B bfloat16")
