"""The output loss in shards of the vocabulary: what one device gives, and nothing whole."""

import functools

import keras
import numpy as np
import pytest
from test_distribution import answer, start

from keras_encdec.training.words import ALL, Shard

SHARDS, SIZE = 4, 5


def on_shards(function, x):
    """`function(words, x)` on each shard of the last axis of x, by JAX's own simulation."""
    import jax

    parts = np.stack(np.split(x, SHARDS, axis=-1))
    return np.asarray(jax.vmap(functools.partial(function, Shard(("a",))), axis_name="a")(parts))


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="shards are JAX's")
@pytest.mark.parametrize(
    ("function", "cut"),
    [
        (lambda words, x: words.max(x), False),
        (lambda words, x: words.sum(x), False),
        (lambda words, x: words.sum(x) / words.count(x), False),
        (lambda words, x: words.log_softmax(x), True),
        (lambda words, x: words.take(x, IDS[..., 0]), False),
        (lambda words, x: words.one_hot(IDS[..., 0], x.shape[-1]), True),
        (lambda words, x: words.scatter(VALUES, IDS, x.shape[-1]), True),
    ],
    ids=["max", "sum", "mean", "log_softmax", "take", "one_hot", "scatter"],
)
def test_shards_of_the_words_give_what_all_give(function, cut):
    x = np.random.default_rng(0).normal(size=(2, 3, SHARDS * SIZE)).astype("float32")
    expected = np.asarray(function(ALL, x))
    found = on_shards(function, x)
    found = np.concatenate(found, axis=-1) if cut else found
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-6)


IDS = np.random.default_rng(1).permuted(np.tile(np.arange(SHARDS * SIZE), (2, 3, 1)), axis=-1)
IDS = IDS[..., :6].astype("int32")
VALUES = np.random.default_rng(2).random(IDS.shape, "float32")


@pytest.mark.parametrize(
    "meshes",
    [
        pytest.param([[2, 4]], marks=pytest.mark.slow),
        pytest.param(["data", [8, 1], [1, 8]], marks=pytest.mark.long),
    ],
)
def test_values_and_gradients_are_those_of_one_device(meshes):
    found = answer(start(loss=[meshes]))["loss"]
    assert len(found) == 12 * len(meshes)
    assert max(found.values()) < 1e-5, max(found, key=found.get)


@pytest.mark.parametrize(
    "meshes",
    [
        pytest.param([[8, 1]], marks=pytest.mark.slow),
        pytest.param([[2, 4], [4, 2]], marks=pytest.mark.long),
    ],
)
def test_no_device_holds_the_embedding_or_its_gradient(meshes):
    """Not even what the batch axis cuts, put together again; with a teacher that is asked too."""
    found = answer(start(program=meshes))["program"]
    assert not any(found.values())
    assert len(found) == 2 * len(meshes)
