"""Private names of Keras, KerasHub and Tokamax: there, of the same meaning, and in one file.

A test that fails here after an upgrade names what `keras_encdec/private.py` has to find again.
"""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_encdec import private

PACKAGE = Path(private.__file__).parent
PRIVATE = {"src", "_src"}

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="needs JAX")


def private_modules(source):
    """Names of private modules that a file imports, or reaches by attributes."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Call):  # importlib.import_module("keras.src")
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        yield from (n for n in names if isinstance(n, str) and PRIVATE & set(n.split(".")))


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_private_modules_stand_in_one_file(path):
    found = list(private_modules(path.read_text()))
    assert bool(found) == (path.name == "private.py"), found


@pytest.mark.parametrize(
    "line",
    [
        "from keras.src import backend",
        "from keras import src",
        "def f():\n    import keras_hub.src.utils",
        "keras.src.backend.AutocastScope(None)",
        "importlib.import_module('tokamax._src.ops')",
    ],
)
def test_every_way_to_a_private_module_is_seen(line):
    assert list(private_modules(line))
    assert not list(private_modules("import keras\nkeras.backend.backend()\nsrc = 'a.txt'"))


class Numbers(private.DataAdapter):
    """Three batches of one number each, as `x`."""

    def get_numpy_iterator(self):
        return iter([(np.full((1, 1), float(i)),) for i in (1, 2, 3)])

    get_jax_iterator = get_numpy_iterator

    def get_tf_dataset(self):
        import tensorflow as tf

        spec = (tf.TensorSpec((1, 1), "float64"),)
        return tf.data.Dataset.from_generator(self.get_numpy_iterator, output_signature=spec)

    def get_torch_dataloader(self):
        return self.get_numpy_iterator()

    num_batches, batch_size, has_partial_batch, partial_batch_size = 3, 1, False, None


def test_keras_takes_a_data_adapter_as_it_is():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(10.0)])
    np.testing.assert_array_equal(model.predict(Numbers(), verbose=0), [[10], [20], [30]])


def test_an_autocast_scope_of_none_gives_a_variable_as_it_is_kept():
    variable = keras.Variable(np.array([1.0, 1e-3]), dtype="float32")
    dtypes = []
    with private.AutocastScope("bfloat16"):
        dtypes.append(variable.value.dtype)
        with private.AutocastScope(None):
            dtypes.append(variable.value.dtype)
    assert [keras.backend.standardize_dtype(d) for d in dtypes] == ["bfloat16", "float32"]


def test_deferred_variables_are_those_that_keras_would_fill():
    with keras.StatelessScope(initialize_variables=False):
        first, second = (keras.Variable(keras.initializers.Ones(), (2,)) for _ in range(2))
    waiting = private.deferred_variables()
    assert any(v is first for v in waiting)
    waiting[:] = [v for v in waiting if v is not first]  # off the list, for good
    with keras.StatelessScope():
        pass
    assert second._value is not None
    assert first._value is None
    assert private.deferred_variables() == []


def test_a_file_of_a_preset_is_found_in_its_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert Path(private.get_file(str(tmp_path), "config.json")).read_text() == "{}"
    with pytest.raises(FileNotFoundError):
        private.get_file(str(tmp_path), "tokenizer.json")


def softmax_attention(query, key, value, start, end, scale, soft_cap):
    """One row and one head, in float64: query t sees keys from start[t] up to end[t]."""
    output = np.zeros((len(query), value.shape[1]))
    for t, q in enumerate(query.astype("float64")):
        seen = slice(start[t], end[t])
        logits = soft_cap * np.tanh(key[seen] @ q * scale / soft_cap)
        weights = np.exp(logits - logits.max())
        output[t] = weights @ value[seen] / weights.sum()
    return output


@pytest.mark.slow
@on_jax
def test_tokamax_takes_a_range_of_keys_for_each_query():
    implementations, make_mask = private.tokamax_attention()
    assert {"xla_chunked", "triton", "mosaic_gpu", "mosaic_tpu"} <= set(implementations)
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(0, 1.5, (n, 8)).astype("float32") for n in (5, 7, 7))
    start, end = np.array([0, 2, 3, 0, 6]), np.array([7, 4, 7, 1, 7])
    found = implementations["xla_chunked"](
        *(keras.ops.convert_to_tensor(x[None, :, None]) for x in (query, key, value)),
        mask=make_mask(
            k_start=keras.ops.convert_to_tensor(start[None, None]),
            k_end=keras.ops.convert_to_tensor(end[None, None]),
        ),
        logits_scale=0.7,
        logits_soft_cap=2.0,
    )
    expected = softmax_attention(query, key, value, start, end, 0.7, 2.0)
    np.testing.assert_allclose(np.asarray(found)[0, :, 0], expected, atol=1e-5)
