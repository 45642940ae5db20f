"""A single token by quantised weights: the same numbers, without a copy of the weights."""

import keras
import numpy as np
import pytest

from keras_encdec.layers import rows

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="what XLA does")


def quantised():
    """Layers with int8 weights, an input of one token for each, and what they are called with."""
    einsum = keras.layers.EinsumDense("btd,dnh->btnh", (None, 4, 24))
    back = keras.layers.EinsumDense("btgh,ghd->btd", (None, 96))
    dense = keras.layers.Dense(80, use_bias=False)
    embedding = keras.layers.ReversibleEmbedding(200, 96)
    layers = [(einsum, (96,)), (back, (4, 24)), (dense, (96,)), (embedding, (96,))]
    for layer, shape in layers:
        layer.build(() if layer is embedding else (None, None, *shape))
        layer.quantize("int8")
        x = np.random.default_rng(0).normal(size=(1, 1, *shape)).astype("float32")
        yield layer, x, {"reverse": True} if layer is embedding else {}


@pytest.mark.slow
def test_the_same_numbers():
    for layer, x, kwargs in quantised():
        expected = layer(x, **kwargs)
        assert expected.shape[:2] == (1, 1)
        np.testing.assert_array_equal(rows.project(layer, x, **kwargs), expected)


def copies(project):
    """For each layer, whether its program writes the weights out in int32."""
    import jax

    found = []
    for layer, x, kwargs in quantised():
        kernel = next(w.value for w in layer.weights if w.dtype == "int8")

        def program(value, x, layer=layer, kwargs=kwargs):
            variable = next(w for w in layer.weights if w.dtype == "int8")
            with keras.StatelessScope([(variable, value)]):
                return project(layer, x, **kwargs)

        text = jax.jit(program).lower(kernel, x).compile().as_text()
        sizes = [",".join(map(str, shape)) for shape in (kernel.shape, (kernel.size,))]
        found.append(any(f"s32[{size}]" in text for size in sizes))
    return found


@pytest.mark.slow
def test_the_weights_are_read_as_they_are(monkeypatch):
    assert not any(copies(rows.project))
    monkeypatch.setattr(rows, "_on_cpu", lambda: False)
    assert any(copies(rows.project))


def test_all_else_is_one_call():
    calls = []

    class Layer:
        quantization_mode = "int8"

        def __call__(self, x):
            calls.append(x.shape)
            return x

    for shape in [(1, 2, 8), (2, 1, 8), (3, 5, 8)]:
        rows.project(Layer(), np.zeros(shape, "float32"))
    unquantised = keras.layers.Dense(8)
    assert rows.project(unquantised, np.zeros((1, 1, 8), "float32")).shape == (1, 1, 8)
    assert calls == [(1, 2, 8), (2, 1, 8), (3, 5, 8)]
