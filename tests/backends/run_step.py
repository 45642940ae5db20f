"""Run in a process per backend: logits and weights before and after one training step, scores.

    KERAS_BACKEND=torch python run_step.py weights.npz result.npz

Writes a file of weights for each pair beside weights.npz if it does not exist yet; otherwise
starts from it.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from keras_encdec.models import (
    EncDecBackbone,
    EncDecReranker,
    EncDecRerankerPreprocessor,
    EncDecSeq2SeqLM,
)
from keras_encdec.sharing.load import tokenizer_alone
from keras_encdec.spec import AdaptorSpec, CrossAttentionSpec, MoESpec, PairSpec
from keras_encdec.testing.specs import (
    later,
    other_pair,
    tiny_decoder,
    tiny_encoder,
    tiny_pair,
    uneven,
)

PAIRS = {
    "usual": tiny_pair(),
    "other": other_pair(),
    "merged": tiny_pair(
        decoder=tiny_encoder(),
        cross_attention=CrossAttentionSpec(merged=True),
        tied_embeddings=True,
    ),
    "adapted": tiny_pair(
        cross_attention=CrossAttentionSpec(rotary="continuous"), adaptor=AdaptorSpec(3, 24)
    ),
    "later": tiny_pair(encoder=later(tiny_encoder(), 20), decoder=later(tiny_decoder(), 18)),
    "uneven": tiny_pair(encoder=uneven(tiny_encoder()), decoder=uneven(tiny_encoder(width=42))),
}


def main(weights_file: str, result_file: str) -> None:
    results = {}
    for name, pair in PAIRS.items():
        found = step(pair, Path(weights_file).with_name(f"{name}.npz"))
        results |= {f"{name}/{key}": value for key, value in found.items()}
    results["experts/scores"] = scores(Path(weights_file).with_name("experts.npz"))
    np.savez(result_file, **results)


def step(pair, weights: Path) -> dict[str, np.ndarray]:
    lm = EncDecSeq2SeqLM(EncDecBackbone.of(pair))
    set_weights(lm, weights)
    x, y, weight = inputs()
    result = {"logits": keras.ops.convert_to_numpy(lm(x))}
    lm.compile(optimizer=keras.optimizers.SGD(0.01), sampler="greedy")
    result["loss"] = np.array(lm.train_on_batch(x, y, sample_weight=weight))
    result |= {f"after/{v.path}": keras.ops.convert_to_numpy(v.value) for v in lm.weights}
    result["generated"] = np.asarray(lm.generate(x, stop_token_ids=(1,))["decoder_token_ids"])
    return result


def scores(weights: Path) -> np.ndarray:
    """Of a reranker with experts, which TensorFlow's XLA cannot compile."""
    tokenizer = tokenizer_alone("gemma2_mini_docs")
    sizes = {"windows": (8,), "vocabulary_size": tokenizer.vocabulary_size()}
    shared = {"shared_dim": 12, "shared_gate": True, "separate_norms": True}
    shared |= {"router_norm": 1e-2, "expert_scale": True}
    sizes["experts"] = MoESpec(num_experts=4, top_k=2, expert_dim=20, **shared)
    pair = PairSpec(tiny_encoder(**sizes), tiny_decoder(**sizes))
    reranker = EncDecReranker(
        EncDecBackbone.of(pair), EncDecRerankerPreprocessor(tokenizer, words=("True", "False"))
    )
    set_weights(reranker, weights)
    documents = ["A sum.", "This is the key.", "Of a list, none"]
    return reranker.score(["Which one has a sum?"] * len(documents), documents)


def set_weights(lm, path: Path) -> None:
    if not path.exists():
        rng = np.random.default_rng(0)
        arrays = {v.path: rng.normal(0, 0.3, v.shape).astype("float32") for v in lm.weights}
        np.savez(path, **arrays)
    with np.load(path) as arrays:
        for variable in lm.weights:
            variable.assign(arrays[variable.path])


def inputs():
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 96, (2, 43)).astype("int32")
    mask = np.ones((2, 24), "int32")
    mask[1, 17:] = 0
    target_mask = np.ones((2, 18), "int32")
    target_mask[1, 11:] = 0
    x = {
        "encoder_token_ids": ids[:, :24] * mask,
        "encoder_padding_mask": mask,
        "decoder_token_ids": ids[:, 24:42] * target_mask,
        "decoder_padding_mask": target_mask,
    }
    return x, ids[:, 25:43] * target_mask, target_mask.astype("float32")


if __name__ == "__main__":
    main(*sys.argv[1:])
