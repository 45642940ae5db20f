"""Tiny models with every weight drawn by name, and inputs for them.

Stands on `keras_encdec.models`; nothing but tests imports it.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.spec import PairSpec, Shape, Tensor
from keras_encdec.testing.specs import tiny_pair

VOCABULARY = 96
SIDES = ("encoder", "decoder")


def draw(name: str, shape: Shape) -> np.ndarray:
    """Values that depend on the name and the shape only, and are far from Keras's initial ones."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {shape}".encode()))
    if name.endswith("scale"):
        return rng.normal(0.0, 0.3, shape).astype("float32")
    if name.endswith("embeddings"):
        return rng.normal(0.0, 0.4, shape).astype("float32")
    fan_in = np.prod(shape[:-1]) if "attention_output" in name else shape[0]
    return rng.normal(0.0, 1.8 * fan_in**-0.5, shape).astype("float32")


def tiny_backbone(pair: PairSpec | None = None, **kwargs: Any) -> EncDecBackbone:
    """A backbone of `pair` (by default the tiny one) with all weights drawn."""
    pair = pair or tiny_pair()
    model = EncDecBackbone.of(pair, **kwargs)
    for weight in model.weights:
        weight.assign(draw(weight.path, tuple(weight.shape)))
    return model


def tiny_lm(**kwargs: Any) -> EncDecSeq2SeqLM:
    """A task of `tiny_backbone`, without preprocessor."""
    return EncDecSeq2SeqLM(tiny_backbone(**kwargs))


def make_inputs(
    source: Sequence[int] = (20, 13, 1), target: Sequence[int] = (16, 9, 1), seed: int = 0
) -> dict[str, np.ndarray]:
    """Right-padded model inputs; a row for each pair of lengths, ids from 3 up, padding 0."""
    rng, inputs = np.random.default_rng(seed), {}
    for side, lengths in zip(SIDES, (source, target), strict=True):
        shape = (len(lengths), max(lengths))
        mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype("int32")
        inputs[f"{side}_padding_mask"] = mask
        inputs[f"{side}_token_ids"] = rng.integers(3, VOCABULARY, shape).astype("int32") * mask
    return inputs


def pad(
    inputs: Mapping[str, np.ndarray], side: str, *, left: int = 0, right: int = 0, token: int = 0
) -> dict[str, np.ndarray]:
    """The inputs with padding added to one side; `token` is what stands there."""
    width, padded = ((0, 0), (left, right)), dict(inputs)
    padded[f"{side}_token_ids"] = np.pad(inputs[f"{side}_token_ids"], width, constant_values=token)
    padded[f"{side}_padding_mask"] = np.pad(inputs[f"{side}_padding_mask"], width)
    return padded


def run(model: keras.Model, inputs: Mapping[str, np.ndarray]) -> Any:
    """Outputs of a backbone, or logits of a task, as numpy."""
    outputs = model(inputs)
    if isinstance(outputs, dict):
        return {key: to_numpy(value) for key, value in outputs.items()}
    return to_numpy(outputs)


def silence_cross_attention(backbone: EncDecBackbone) -> None:
    """Makes the decoder what it was without an encoder; not where attention is merged."""
    for block in backbone.decoder.blocks:
        assert not block.merged
        if block.cross_attention is not None:
            for weight in block.cross_attention.output_dense.weights:
                weight.assign(np.zeros(weight.shape, "float32"))


def logits_without_input(backbone: EncDecBackbone, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(B, T, V) of the decoder alone, whose source model's they are to be."""
    silence_cross_attention(backbone)
    states = backbone.encoder(ids[:, ::-1], mask[:, ::-1])
    return to_numpy(backbone.decoder.logits(backbone.decoder(ids, mask, states, mask)))


def to_numpy(x: Tensor) -> np.ndarray:
    """A backend tensor as a float32 array."""
    return np.asarray(ops.convert_to_numpy(x), "float32")


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Within `tolerance`, absolute up to size 1 and relative above it."""
    np.testing.assert_array_less(
        np.abs(actual - expected), tolerance * np.maximum(1, np.abs(expected))
    )


def decoded(
    decoder: Any, token_ids: Tensor, index: int, cache: Any, context: Any
) -> tuple[Tensor, Any]:
    """The states of the next tokens (B, T), from number `index` on, and the cache with them."""
    states, new = decoder.step(token_ids, index, cache, context)
    rows, count = token_ids.shape
    return states, decoder.keep(cache, new, index, ops.full((rows,), count, "int32"))
